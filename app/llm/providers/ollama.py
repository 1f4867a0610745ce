"""What is particular to Ollama: where it is, what its models can do, and what LiteLLM is told for one call."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from app.llm.candidates import ProviderCaps
from app.llm.endpoints import header_pairs, is_local_url
from app.llm.providers import ollama_says
from app.llm.providers.listings import Inquiry, ListedModel
from app.llm.providers.openai_messages import (
    rendered_messages,
    rendered_response_format,
    rendered_tools,
)
from app.llm.schemas import Dialects, SchemaDialect, in_dialects
from app.llm.settings import LLMSettings
from app.llm.types import LLMProfile, LLMRequest, WireFormat

_CLOUD_SUFFIXES = ("-cloud", ":cloud")  # https://ollama.com/blog/cloud-models: such models run on ollama.com
_TALKS_ONLY = {"supports_tools": False}
_SEES = {"supports_vision": True}
_SEES_ONLY = {"supports_tools": False, "supports_vision": True}
# A text must have a unit, so "-1" is refused: `Duration.UnmarshalJSON` in Ollama's api/types.go.
_SECONDS = re.compile(r"-?\d+")

_DIALECTS = Dialects(answer=SchemaDialect.OLLAMA_FORMAT, tools=SchemaDialect.OLLAMA_TOOLS)

_FAMILIES: Mapping[str, Mapping[str, bool]] = {
    "llama3.1": {},
    "llama3.2": {},
    "llama3.2-vision": _SEES_ONLY,
    "llama3.3": {},
    "llama3": _TALKS_ONLY,
    "llama4": _SEES,
    "qwen2.5": {},
    "qwen2.5-coder": {},
    "qwen2.5vl": _SEES_ONLY,
    "qwen3": {},
    "qwen3-coder": {},
    "qwen3-vl": _SEES,
    "qwq": {},
    "mistral": {},
    "mistral-nemo": {},
    "mistral-small3.1": _SEES,
    "mistral-small3.2": _SEES,
    "mixtral": {},
    "gpt-oss": {},
    "granite3.3": {},
    "command-r": {},
    "deepseek-r1": {},
    "phi3": _TALKS_ONLY,
    "phi4": _TALKS_ONLY,
    "phi4-mini": {},
    "gemma2": _TALKS_ONLY,
    "gemma3": _SEES_ONLY,
    "llava": _SEES_ONLY,
    "moondream": _SEES_ONLY,
}
"""Families as in https://ollama.com/search, by the name before the tag; what is not said is the default below."""

wire = WireFormat.OLLAMA


def api_base(settings: LLMSettings) -> str:
    """Return the root of the API, without a trailing slash."""
    return settings.ollama_api_base.rstrip("/")


def usable(settings: LLMSettings) -> bool:  # noqa: ARG001  # the same signature in each provider module
    """Return whether credentials are there; Ollama needs none."""
    return True


def local(settings: LLMSettings, model: str) -> bool:
    """Return whether a prompt to `model` stays on a host of `LLM_LOCAL_HOSTS`."""
    return is_local_url(api_base(settings), settings.local_hosts) and not _is_cloud(model)


def caps(settings: LLMSettings, model: str) -> ProviderCaps:
    """Return what `model` can do; `assumed` when its family is not in the table.

    The window is what is configured, because that is what is asked for with every call.
    """
    family = _FAMILIES.get(model.rpartition("/")[2].partition(":")[0].removesuffix("-cloud"))
    known = family or {}
    return ProviderCaps(
        supports_tools=known.get("supports_tools", True),
        supports_forced_tool_choice=False,
        supports_json=True,
        supports_json_schema=not _is_cloud(model),  # https://github.com/ollama/ollama/issues/12362
        supports_vision=known.get("supports_vision", False),
        schemas=_DIALECTS,
        max_context_tokens=settings.num_ctx_of("ollama", model),
        preferred_for_profiles=(LLMProfile.FAST, LLMProfile.BALANCED),
        assumed=family is None,
    )


def identity_options(settings: LLMSettings, model: str) -> dict[str, JsonValue]:
    """Return the options of ours that can change an answer; they are part of `candidate_sha256`."""
    return {"num_ctx": settings.num_ctx_of("ollama", model)}


def call_options(settings: LLMSettings, model: str, request: LLMRequest) -> dict[str, Any]:
    """Return this call in the words of `litellm.acompletion`, which every lane reads; deadline and HTTP are not in it."""
    request = in_dialects(request, _DIALECTS)
    tools = () if request.tool_choice == "none" else request.tools  # Ollama knows no tool choice
    options: dict[str, Any] = {
        "model": f"ollama_chat/{model}",
        "api_base": api_base(settings),
        "api_key": settings.ollama_api_key.get_secret_value() if settings.ollama_api_key else None,
        "headers": header_pairs(settings.ollama_headers),
        "messages": rendered_messages(request.messages),
        "num_ctx": settings.num_ctx_of("ollama", model),
        "keep_alive": keep_alive(settings.ollama_keep_alive),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_output_tokens,
        "stop": list(request.stop) if request.stop else None,
        "seed": request.seed,
        "think": _think(model, request),
        "tools": rendered_tools(tools) or None,
        # With tools declared, `format` would make the model write JSON instead of calling them.
        "response_format": None if tools else rendered_response_format(request.response_format),
    }
    return {name: value for name, value in options.items() if value is not None}


def listing(settings: LLMSettings) -> Inquiry:
    """Return how it is asked which models it has; nothing of it is paid."""
    return ollama_says.inquiry(settings, api_base(settings), ollama_says.TAGS)


def listed(answer: Any) -> tuple[ListedModel, ...]:
    """Return the models of such an answer.

    Raises:
        ValueError: It lists no models.
    """
    return ollama_says.listed(answer)


def keep_alive(said: str | None) -> str | int | None:
    """Return how long a model stays loaded as Ollama takes it: a duration with its unit, or a number of seconds."""
    return int(said) if said and _SECONDS.fullmatch(said) else said


def _is_cloud(model: str) -> bool:
    return model.endswith(_CLOUD_SUFFIXES)


def _think(model: str, request: LLMRequest) -> bool | str | None:
    if isinstance(request.thinking, str) and not model.startswith("gpt-oss"):
        return True  # only gpt-oss has levels: https://docs.ollama.com/capabilities/thinking
    return request.thinking

"""What is particular to Groq: where it is, what its models can do, and what LiteLLM is told for one call."""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from app.llm.candidates import ProviderCaps
from app.llm.endpoints import is_local_url
from app.llm.providers.listings import Inquiry, ListedModel, openai_listed, openai_listing
from app.llm.providers.openai_messages import openai_options
from app.llm.settings import LLMSettings
from app.llm.types import LLMProfile, LLMRequest, WireFormat

_WINDOW = 131_072
_SEES = {"supports_vision": True}

_FAMILIES: Mapping[str, Mapping[str, bool]] = {
    "openai/gpt-oss-20b": {},
    "openai/gpt-oss-120b": {},
    "qwen/qwen3.8-27b": _SEES,
}
"""Models as in LiteLLM's table of models; what is not said is the default below."""

_NEVER_STOPS_THINKING = "openai/gpt-oss-"  # https://console.groq.com/docs/reasoning

wire = WireFormat.OPENAI


def api_base(settings: LLMSettings) -> str:
    """Return the root of the API, without a trailing slash."""
    return settings.groq_api_base.rstrip("/")


def usable(settings: LLMSettings) -> bool:
    """Return whether there is a key."""
    return settings.groq_api_key is not None and bool(settings.groq_api_key.get_secret_value())


def local(settings: LLMSettings, model: str) -> bool:  # noqa: ARG001  # the same signature in each provider module
    """Return whether a prompt to `model` stays on a host of `LLM_LOCAL_HOSTS`."""
    return is_local_url(api_base(settings), settings.local_hosts)


def caps(settings: LLMSettings, model: str) -> ProviderCaps:  # noqa: ARG001  # as above
    """Return what `model` can do; `assumed` when it is not in the table."""
    family = _FAMILIES.get(model)
    known = family or {}
    return ProviderCaps(
        supports_tools=True,
        supports_forced_tool_choice=True,
        supports_json=True,
        supports_json_schema=family
        is not None,  # https://console.groq.com/docs/structured-outputs: some models only
        supports_vision=known.get("supports_vision", False),
        max_context_tokens=_WINDOW,
        preferred_for_profiles=(LLMProfile.FAST, LLMProfile.BALANCED),
        assumed=family is None,
    )


def identity_options(settings: LLMSettings, model: str) -> dict[str, JsonValue]:  # noqa: ARG001  # as above
    """Return the options of ours that can change an answer; they are part of `candidate_sha256`."""
    return {}


def call_options(settings: LLMSettings, model: str, request: LLMRequest) -> dict[str, Any]:
    """Return this call in the words of `litellm.acompletion`, which every lane reads; deadline and HTTP are not in it."""
    return openai_options(
        request,
        model=f"groq/{model}",
        api_base=api_base(settings),
        api_key=settings.groq_api_key,
        reasoning_effort=_effort(model, request),
    )


def listing(settings: LLMSettings) -> Inquiry:
    """Return how it is asked which models it has; nothing of it is paid."""
    return openai_listing(api_base(settings), settings.groq_api_key)


def listed(answer: Any) -> tuple[ListedModel, ...]:
    """Return the models of such an answer.

    Raises:
        ValueError: It lists no models.
    """
    return openai_listed(answer)


def _effort(model: str, request: LLMRequest) -> str | None:
    if request.thinking is False:
        return "low" if model.startswith(_NEVER_STOPS_THINKING) else "none"
    return None if request.thinking is True else request.thinking

"""What is particular to Gemini: where it is, what its models can do, and what LiteLLM is told for one call."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from app.llm.candidates import ProviderCaps
from app.llm.providers.listings import Inquiry, ListedModel, entries, positive
from app.llm.providers.openai_messages import (
    rendered_messages,
    rendered_response_format,
    rendered_tool_choice,
    rendered_tools,
)
from app.llm.schemas import Dialects, SchemaDialect, in_dialects
from app.llm.settings import LLMSettings
from app.llm.types import LLMProfile, LLMProvider, LLMRequest, WireFormat

DEFAULT_TEMPERATURE = (
    1.0  # https://ai.google.dev/api/generate-content; sent always, since LiteLLM adds it to some ids
)
_MIN_THINKING_TOKENS_OF_PRO = (
    128  # https://ai.google.dev/gemini-api/docs/thinking: 2.5 Pro cannot stop thinking
)

_QUICK = (LLMProfile.FAST, LLMProfile.BALANCED)
_STRONG = (LLMProfile.ADVANCED,)

_FAMILIES: Mapping[str, tuple[LLMProfile, ...]] = {
    "gemini-2.0-flash": _QUICK,
    "gemini-2.5-flash": (*_QUICK, *_STRONG),
    "gemini-2.5-flash-lite": _QUICK,
    "gemini-2.5-pro": _STRONG,
    "gemini-3-flash-preview": (*_QUICK, *_STRONG),
    "gemini-3-pro-preview": _STRONG,
}
"""Models as in https://ai.google.dev/gemini-api/docs/models, with the profiles that they suit."""


# LiteLLM sends `responseJsonSchema` to such names only (`supports_response_json_schema`); an alias has no number.
_TAKES_JSON_SCHEMA = re.compile(r"gemini-(?:[2-9]|[1-9]\d+)[.-]", re.IGNORECASE)

_MAX_LISTED = 1000  # https://ai.google.dev/api/models; it lists 50 unasked

wire = WireFormat.GEMINI


def api_base(settings: LLMSettings) -> str:
    """Return the root of the API, without a trailing slash; it ends in `/v1beta`."""
    return settings.gemini_api_base.rstrip("/")


def usable(settings: LLMSettings) -> bool:
    """Return whether there is a key."""
    return settings.gemini_api_key is not None and bool(settings.gemini_api_key.get_secret_value())


def local(settings: LLMSettings, model: str) -> bool:  # noqa: ARG001  # the same signature in each provider module
    """Return whether a prompt to `model` stays on a host of `LLM_LOCAL_HOSTS`; to Gemini it never does."""
    return False


def caps(settings: LLMSettings, model: str) -> ProviderCaps:  # noqa: ARG001  # as above
    """Return what `model` can do; `assumed` when it is not in the table."""
    return ProviderCaps(
        supports_tools=True,
        supports_forced_tool_choice=True,
        supports_json=True,
        supports_json_schema=True,
        supports_vision=True,
        supports_documents=True,
        supports_audio=True,
        supports_video=True,
        schemas=dialects(model),
        max_context_tokens=1_048_576,
        preferred_for_profiles=_FAMILIES.get(model, _STRONG),
        assumed=model not in _FAMILIES,
    )


def dialects(model: str) -> Dialects:
    """Return how `model` is told of schemas."""
    whole = _TAKES_JSON_SCHEMA.search(model)
    return Dialects(
        answer=SchemaDialect.GEMINI_JSON_SCHEMA if whole else SchemaDialect.GEMINI_OPENAPI,
        tools=SchemaDialect.GEMINI_TOOLS,
    )


def identity_options(settings: LLMSettings, model: str) -> dict[str, JsonValue]:  # noqa: ARG001  # as above
    """Return the options of ours that can change an answer; they are part of `candidate_sha256`."""
    return {"temperature": DEFAULT_TEMPERATURE}


def call_options(settings: LLMSettings, model: str, request: LLMRequest) -> dict[str, Any]:
    """Return this call in the words of `litellm.acompletion`, which every lane reads; deadline and HTTP are not in it."""
    request = in_dialects(request, dialects(model))
    options: dict[str, Any] = {
        "model": f"gemini/{model}",
        "api_base": api_base(settings),
        "api_key": settings.gemini_api_key.get_secret_value() if settings.gemini_api_key else None,
        "messages": rendered_messages(request.messages, sealed_by=LLMProvider.GEMINI),
        "temperature": DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_output_tokens,
        "stop": list(request.stop) if request.stop else None,
        "seed": request.seed,
        **_thinking(model, request),
        "tools": rendered_tools(request.tools) or None,
        "tool_choice": rendered_tool_choice(request.tool_choice)
        if request.tools and request.tool_choice
        else None,
        "response_format": rendered_response_format(request.response_format),
    }
    return {name: value for name, value in options.items() if value is not None}


def listing(settings: LLMSettings) -> Inquiry:
    """Return how it is asked which models it has; nothing of it is paid."""
    key = settings.gemini_api_key.get_secret_value() if settings.gemini_api_key else ""
    return Inquiry(url=f"{api_base(settings)}/models?pageSize={_MAX_LISTED}", headers={"x-goog-api-key": key})


def listed(answer: Any) -> tuple[ListedModel, ...]:
    """Return the models of such an answer that can chat.

    Raises:
        ValueError: It lists no models.
    """
    return tuple(
        ListedModel(
            names=(str(each.get("name")).removeprefix("models/"),),
            context_tokens=positive(each.get("inputTokenLimit")),
        )
        for each in entries(answer, "models")
        if "generateContent" in (each.get("supportedGenerationMethods") or ())
    )


def _thinking(model: str, request: LLMRequest) -> dict[str, Any]:
    """Levels and `False` have a word of their own in LiteLLM; `True` leaves the amount to the model."""
    if request.thinking is None:
        return {}
    if request.thinking is True:
        return {"thinking": {"type": "enabled"}}
    if request.thinking is False and model.startswith("gemini-2.5-pro"):
        return {"thinking": {"type": "disabled", "budget_tokens": _MIN_THINKING_TOKENS_OF_PRO}}
    return {"reasoning_effort": request.thinking or "none"}

"""What is particular to Anthropic: where it is, what its models can do, and what LiteLLM is told for one call."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from app.llm.candidates import ProviderCaps
from app.llm.endpoints import is_local_url
from app.llm.providers.listings import Inquiry, ListedModel, entries, positive
from app.llm.providers.openai_messages import (
    Wire,
    rendered_messages,
    rendered_response_format,
    rendered_tool_choice,
    rendered_tools,
)
from app.llm.schemas import Dialects, SchemaDialect, in_dialects
from app.llm.settings import LLMSettings
from app.llm.types import LLMProfile, LLMProvider, LLMRequest, WireFormat

_QUICK = (LLMProfile.FAST, LLMProfile.BALANCED)
_STRONG = (LLMProfile.BALANCED, LLMProfile.ADVANCED)
_SMALL_WINDOW, _LARGE_WINDOW = 200_000, 1_000_000

_FAMILIES: Mapping[str, tuple[int, tuple[LLMProfile, ...]]] = {
    "claude-haiku-4-5": (_SMALL_WINDOW, _QUICK),
    "claude-sonnet-4-5": (_SMALL_WINDOW, _STRONG),
    "claude-sonnet-4-6": (_LARGE_WINDOW, _STRONG),
    "claude-opus-4-5": (_SMALL_WINDOW, _STRONG),
    "claude-opus-4-6": (_LARGE_WINDOW, _STRONG),
}
"""Models as in LiteLLM's table of models, by the name before the date; all of them hold to a JSON schema."""

_DIALECTS = Dialects(answer=SchemaDialect.ANTHROPIC_FORMAT)
_DATE = re.compile(r"-\d{8}$")
_TURN = {"tool": "user"}
"""Whose turn a message is in; the results of tools are the user's."""
_MAX_LISTED = 1000  # https://platform.claude.com/docs/en/api/models-list; it lists 20 unasked

wire = WireFormat.ANTHROPIC


def api_base(settings: LLMSettings) -> str:
    """Return the root of the API, without a trailing slash."""
    return settings.anthropic_api_base.rstrip("/")


def usable(settings: LLMSettings) -> bool:
    """Return whether there is a key."""
    return settings.anthropic_api_key is not None and bool(settings.anthropic_api_key.get_secret_value())


def local(settings: LLMSettings, model: str) -> bool:  # noqa: ARG001  # the same signature in each provider module
    """Return whether a prompt to `model` stays on a host of `LLM_LOCAL_HOSTS`."""
    return is_local_url(api_base(settings), settings.local_hosts)


def caps(settings: LLMSettings, model: str) -> ProviderCaps:  # noqa: ARG001  # as above
    """Return what `model` can do; `assumed` when it is not in the table."""
    family = _FAMILIES.get(_DATE.sub("", model))
    window, profiles = family or (_SMALL_WINDOW, _STRONG)
    return ProviderCaps(
        supports_tools=True,
        supports_forced_tool_choice=True,
        supports_json=False,  # there is no such mode without a schema
        supports_json_schema=family is not None,
        supports_vision=True,
        supports_documents=True,
        schemas=_DIALECTS,
        max_context_tokens=window,
        preferred_for_profiles=profiles,
        assumed=family is None,
    )


def identity_options(settings: LLMSettings, model: str) -> dict[str, JsonValue]:  # noqa: ARG001  # as above
    """Return the options of ours that can change an answer; they are part of `candidate_sha256`."""
    return {"max_tokens": settings.anthropic_max_tokens}


def call_options(settings: LLMSettings, model: str, request: LLMRequest) -> dict[str, Any]:
    """Return this call in the words of `litellm.acompletion`, which every lane reads; deadline and HTTP are not in it.

    A seed is left out: Anthropic knows none.
    """
    request = in_dialects(request, _DIALECTS)
    messages = rendered_messages(request.messages, sealed_by=LLMProvider.ANTHROPIC)
    options: dict[str, Any] = {
        "model": f"anthropic/{model}",
        "api_base": api_base(settings),
        "api_key": settings.anthropic_api_key.get_secret_value() if settings.anthropic_api_key else None,
        "messages": _kept(messages, settings.anthropic_prompt_cache),
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_output_tokens or settings.anthropic_max_tokens,
        "stop": list(request.stop) if request.stop else None,
        "reasoning_effort": _effort(request),
        "tools": rendered_tools(request.tools) or None,
        "tool_choice": rendered_tool_choice(request.tool_choice)
        if request.tools and request.tool_choice
        else None,
        "response_format": rendered_response_format(request.response_format),
    }
    return {name: value for name, value in options.items() if value is not None}


def listing(settings: LLMSettings) -> Inquiry:
    """Return how it is asked which models it has; nothing of it is paid."""
    key = settings.anthropic_api_key.get_secret_value() if settings.anthropic_api_key else ""
    return Inquiry(
        url=f"{api_base(settings)}/v1/models?limit={_MAX_LISTED}",
        headers={"x-api-key": key, "anthropic-version": "2023-06-01"},
    )


def listed(answer: Any) -> tuple[ListedModel, ...]:
    """Return the models of such an answer; one that is listed with its date may be called without.

    Raises:
        ValueError: It lists no models.
    """
    return tuple(
        ListedModel(
            names=tuple(dict.fromkeys((name, _DATE.sub("", name)))),
            context_tokens=positive(each.get("max_input_tokens")),
        )
        for each in entries(answer, "data")
        if (name := str(each.get("id")))
    )


def _effort(request: LLMRequest) -> str | None:
    """Return how much to think: nothing unless it is asked for."""
    if request.thinking is True:
        return "medium"
    return request.thinking or None


def _kept(messages: list[Wire], how_long: str | None) -> list[Wire]:
    """Mark what is to be kept: up to the end of the system prompt, and up to the last word of a user or a tool.

    Tools come before the system prompt: https://platform.claude.com/docs/en/build-with-claude/prompt-caching.
    """
    if how_long is None:
        return messages
    mark = {"type": "ephemeral", "ttl": how_long}
    last = {_TURN.get(message["role"], message["role"]): place for place, message in enumerate(messages)}
    for turn in ("system", "user"):
        if turn in last:
            messages[last[turn]] = _marked(messages[last[turn]], mark)
    return messages


def _marked(message: Wire, mark: Mapping[str, str]) -> Wire:
    content = message["content"]
    if message["role"] == "tool":
        return {**message, "cache_control": dict(mark)}
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**message, "content": [*parts[:-1], {**parts[-1], "cache_control": dict(mark)}]}

"""What is particular to OpenAI: where it is, what its models can do, and what LiteLLM is told for one call."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import JsonValue

from app.llm.candidates import ProviderCaps
from app.llm.endpoints import is_local_url
from app.llm.providers.listings import Inquiry, ListedModel, openai_listed, openai_listing
from app.llm.providers.openai_messages import openai_options
from app.llm.settings import LLMSettings
from app.llm.types import LLMProfile, LLMRequest, WireFormat

_QUICK = (LLMProfile.FAST, LLMProfile.BALANCED)
_STRONG = (LLMProfile.BALANCED, LLMProfile.ADVANCED)


class _Family(NamedTuple):
    """What is known of a model."""

    window: int
    profiles: tuple[LLMProfile, ...]
    least_effort: str | None = None
    """The least that it can think, if it can think."""
    thinks_unasked: bool = True


_FAMILIES: Mapping[str, _Family] = {
    "gpt-4o": _Family(128_000, _STRONG),
    "gpt-4o-mini": _Family(128_000, _QUICK),
    "gpt-4.1": _Family(1_047_576, _STRONG),
    "gpt-4.1-mini": _Family(1_047_576, _QUICK),
    "gpt-4.1-nano": _Family(1_047_576, _QUICK),
    "gpt-5": _Family(272_000, _STRONG, "minimal"),
    "gpt-5-mini": _Family(272_000, _QUICK, "minimal"),
    "gpt-5-nano": _Family(272_000, _QUICK, "minimal"),
    "gpt-5.1": _Family(272_000, _STRONG, "none", thinks_unasked=False),
    "gpt-5.2": _Family(272_000, _STRONG, "none", thinks_unasked=False),
    "o3": _Family(200_000, _STRONG, "low"),
    "o4-mini": _Family(200_000, _STRONG, "low"),
}
"""Models as in LiteLLM's table of models, by the name before the date; the window is `max_input_tokens` there."""

_SMALLEST_WINDOW = 128_000
_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")
# LiteLLM sends tools for these by OpenAI's other API, `/responses`, whose answers are not read here.
_TOOLS_ELSEWHERE = re.compile(r"gpt-(?:5\.[4-9]|[6-9]|\d{2})")

wire = WireFormat.OPENAI


def api_base(settings: LLMSettings) -> str:
    """Return the root of the API, without a trailing slash."""
    return settings.openai_api_base.rstrip("/")


def usable(settings: LLMSettings) -> bool:
    """Return whether there is a key."""
    return settings.openai_api_key is not None and bool(settings.openai_api_key.get_secret_value())


def local(settings: LLMSettings, model: str) -> bool:  # noqa: ARG001  # the same signature in each provider module
    """Return whether a prompt to `model` stays on a host of `LLM_LOCAL_HOSTS`."""
    return is_local_url(api_base(settings), settings.local_hosts)


def caps(settings: LLMSettings, model: str) -> ProviderCaps:  # noqa: ARG001  # as above
    """Return what `model` can do; `assumed` when it is not in the table."""
    family = _family(model)
    tools = _TOOLS_ELSEWHERE.match(model) is None
    return ProviderCaps(
        supports_tools=tools,
        supports_forced_tool_choice=tools,
        supports_json=True,
        supports_json_schema=True,
        supports_vision=True,
        supports_documents=True,
        max_context_tokens=family.window if family else _SMALLEST_WINDOW,
        preferred_for_profiles=family.profiles if family else _STRONG,
        assumed=family is None,
    )


def identity_options(settings: LLMSettings, model: str) -> dict[str, JsonValue]:  # noqa: ARG001  # as above
    """Return the options of ours that can change an answer; they are part of `candidate_sha256`."""
    return {}


def call_options(settings: LLMSettings, model: str, request: LLMRequest) -> dict[str, Any]:
    """Return this call in the words of `litellm.acompletion`, which every lane reads; deadline and HTTP are not in it."""
    return openai_options(
        request,
        model=f"openai/{model}",
        api_base=api_base(settings),
        api_key=settings.openai_api_key,
        reasoning_effort=_effort(_family(model), request),
    )


def listing(settings: LLMSettings) -> Inquiry:
    """Return how it is asked which models it has; nothing of it is paid."""
    return openai_listing(api_base(settings), settings.openai_api_key)


def listed(answer: Any) -> tuple[ListedModel, ...]:
    """Return the models of such an answer.

    Raises:
        ValueError: It lists no models.
    """
    return openai_listed(answer)


def _family(model: str) -> _Family | None:
    return _FAMILIES.get(_DATE.sub("", model))


def _effort(family: _Family | None, request: LLMRequest) -> str | None:
    """Return how much to think; None leaves it to the model. One that cannot think is asked for no less."""
    if request.thinking is False:
        return family.least_effort if family else "none"
    if request.thinking is True:
        return "medium" if family and not family.thinks_unasked else None
    return request.thinking

"""PydanticAI's model settings as fields of our request, so that no setting is dropped in silence."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import httpx
from pydantic import JsonValue
from pydantic_ai.exceptions import UnsupportedSettingWarning, UserError
from pydantic_ai.settings import ModelSettings

from app.llm.types import CacheMode, LLMProfile

OWN_PREFIX = "llm_"


class LLMModelSettings(ModelSettings, total=False):
    """PydanticAI's settings and ours; ours reach the routing layer only."""

    llm_profile: LLMProfile | Literal["fast", "balanced", "advanced"]
    llm_model: str
    """Pins one candidate as `provider:model`."""
    llm_cache: CacheMode | Literal["use", "refresh", "bypass"]
    llm_workspace_id: str
    llm_pipeline_run_id: str
    llm_stage: str
    llm_idempotency_key: str
    """Key of the whole agent run; each request gets one of its own, derived from it."""
    llm_force_new_execution: bool
    llm_metadata: dict[str, JsonValue]
    """Stored on the row of each request."""


class SettingNotHonoured(UnsupportedSettingWarning):
    """A setting was given that the routing layer does not pass on; it changes nothing."""


_FIELDS: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_output_tokens",
    "seed": "seed",
    "stop_sequences": "stop",
    "timeout": "timeout_s",
    "thinking": "thinking",
    "llm_profile": "profile",
    "llm_model": "model",
    "llm_cache": "cache",
    "llm_force_new_execution": "force_new_execution",
    "llm_metadata": "metadata",
}
"""What a setting is called in `LLMRequest`; its validation says what is wrong with a value."""

_NEAREST_EFFORT: Mapping[str, str] = {"minimal": "low", "xhigh": "high", "max": "high"}

_APPLIED_ELSEWHERE = frozenset(
    {"tool_choice", "request_timeout", "first_event_timeout", "framing_announcement", "cache"}
)
"""Applied by the lanes and by PydanticAI itself; `cache` only asks for a discount of the provider's own."""

_OWN = frozenset(name for name in LLMModelSettings.__annotations__ if name.startswith(OWN_PREFIX))


def request_fields(settings: ModelSettings) -> dict[str, Any]:
    """Return the fields of `LLMRequest` that the settings name, not validated yet.

    Raises:
        UserError: An `llm_` setting is not one of ours.
    """
    unknown = sorted(name for name in settings if name.startswith(OWN_PREFIX) and name not in _OWN)
    if unknown:
        raise UserError(f"unknown model settings {', '.join(unknown)}; known are {', '.join(sorted(_OWN))}")
    given = {name: value for name, value in settings.items() if value is not None}
    fields = {_FIELDS[name]: value for name, value in given.items() if name in _FIELDS}
    if isinstance(effort := fields.get("thinking"), str):
        fields["thinking"] = _NEAREST_EFFORT.get(effort, effort)
    if "timeout_s" in fields:
        fields["timeout_s"] = _seconds(fields["timeout_s"])
    return fields


def warn_about_unhonoured(settings: ModelSettings, *, model: str, warned: set[str]) -> None:
    """Warn once about each setting that has no effect; `warned` remembers them."""
    for name, value in settings.items():
        if value is None or name in warned or _has_effect(name, value):
            continue
        warned.add(name)
        warnings.warn(
            f"the model setting {name!r} has no effect on {model}", SettingNotHonoured, stacklevel=2
        )


def _has_effect(name: str, value: object) -> bool:
    if name == "timeout":
        return _seconds(value) is not None
    if name == "parallel_tool_calls":
        return value is True  # what providers do anyway
    return name in _FIELDS or name in _OWN or name in _APPLIED_ELSEWHERE


def _seconds(timeout: object) -> object:
    """Return a timeout in seconds; None if its phases differ or have no end: a call has one deadline."""
    if not isinstance(timeout, httpx.Timeout):
        return timeout
    phases = set(timeout.as_dict().values())
    return phases.pop() if len(phases) == 1 else None

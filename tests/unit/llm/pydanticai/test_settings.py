"""Every model setting of PydanticAI is a field of the request, applied elsewhere, or named in a warning."""

import warnings
from typing import Any

import httpx
import pytest
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from app.llm.pydanticai import PydanticAiLiteLLMModel, SettingNotHonoured
from app.llm.types import LLMRequest
from tests.unit.llm.pydanticai.scripted import ScriptedService, answer

MAPPED: dict[str, tuple[Any, str, Any]] = {
    "max_tokens": (50, "max_output_tokens", 50),
    "temperature": (0.2, "temperature", 0.2),
    "top_p": (0.9, "top_p", 0.9),
    "timeout": (12.5, "timeout_s", 12.5),
    "tool_choice": ("required", "tool_choice", "required"),
    "seed": (7, "seed", 7),
    "stop_sequences": (["END"], "stop", ("END",)),
    "thinking": ("minimal", "thinking", "low"),
}
"""A value of the setting, the field that it becomes, and its value there."""

ELSEWHERE: dict[str, Any] = {
    "request_timeout": 60.0,
    "first_event_timeout": 60.0,
    "framing_announcement": "never",
    "cache": True,
}
"""Settings that PydanticAI applies; `cache` only asks for a discount."""

NAMED: dict[str, Any] = {
    "top_k": 40,
    "max_retries": 0,
    "parallel_tool_calls": False,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {"7": 1},
    "extra_headers": {"x-team": "blue"},
    "citations": True,
    "service_tier": "priority",
    "extra_body": {"a": 1},
}
"""Settings that change nothing, and are told of."""


async def asked(model: PydanticAiLiteLLMModel, **settings: Any) -> tuple[LLMRequest, list[str]]:
    """Return the request with these settings, and what was warned about."""
    service = model._llm
    assert isinstance(service, ScriptedService)
    service.script.append(answer("ok"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await model_request(
            model,
            [ModelRequest.user_text_prompt("x")],
            model_settings=settings or None,  # type: ignore[arg-type]
            model_request_parameters=ModelRequestParameters(function_tools=[ToolDefinition(name="a")]),
        )
    assert {one.category for one in caught} <= {SettingNotHonoured}
    return service.requests[-1], [str(one.message) for one in caught]


def test_every_setting_is_decided_about() -> None:
    assert {*MAPPED, *ELSEWHERE, *NAMED} == set(ModelSettings.__annotations__)


@pytest.mark.parametrize("name", MAPPED)
async def test_a_setting_becomes_a_field(name: str) -> None:
    value, field, there = MAPPED[name]
    model = PydanticAiLiteLLMModel(ScriptedService())
    request, warned = await asked(model, **{name: value})
    plain, _ = await asked(model)
    assert (getattr(request, field), warned) == (there, [])
    assert request.model_copy(update={field: getattr(plain, field)}) == plain


@pytest.mark.parametrize("name", ELSEWHERE)
async def test_a_setting_of_pydantic_ai_itself_is_left_to_it(name: str) -> None:
    model = PydanticAiLiteLLMModel(ScriptedService())
    assert await asked(model, **{name: ELSEWHERE[name]}) == await asked(model)


@pytest.mark.parametrize("name", NAMED)
async def test_a_setting_without_effect_is_named_once_per_model(name: str) -> None:
    model = PydanticAiLiteLLMModel(ScriptedService())
    plain, _ = await asked(model)
    request, warned = await asked(model, **{name: NAMED[name]})
    assert request == plain
    assert warned == [f"the model setting {name!r} has no effect on balanced"]
    assert (await asked(model, **{name: NAMED[name]}))[1] == []
    assert (await asked(PydanticAiLiteLLMModel(ScriptedService()), **{name: NAMED[name]}))[1] == warned


async def test_a_setting_of_another_provider_is_named() -> None:
    _, warned = await asked(PydanticAiLiteLLMModel(ScriptedService()), google_safety_settings=[])
    assert warned == ["the model setting 'google_safety_settings' has no effect on balanced"]


async def test_parallel_calls_are_what_providers_do_anyway() -> None:
    assert (await asked(PydanticAiLiteLLMModel(ScriptedService()), parallel_tool_calls=True))[1] == []


@pytest.mark.parametrize(
    ("phases", "seconds"),
    [
        (httpx.Timeout(30), 30),
        (httpx.Timeout(30, connect=5), None),
        (httpx.Timeout(None), None),
        (3, 3),
    ],
)
async def test_a_timeout_of_several_phases_is_one_deadline_or_told_of(phases: Any, seconds: Any) -> None:
    request, warned = await asked(PydanticAiLiteLLMModel(ScriptedService()), timeout=phases)
    assert request.timeout_s == seconds
    assert warned == ([] if seconds else ["the model setting 'timeout' has no effect on balanced"])


@pytest.mark.parametrize(
    ("effort", "thinking"),
    [(True, True), (False, False), ("low", "low"), ("medium", "medium"), ("xhigh", "high"), ("max", "high")],
)
async def test_an_effort_becomes_the_nearest_level(effort: Any, thinking: Any) -> None:
    request, _ = await asked(PydanticAiLiteLLMModel(ScriptedService()), thinking=effort)
    assert request.thinking == thinking

"""What a trace tells of a request: which provider answered, and which row of the ledger says more."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai import Agent
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.instrumented import InstrumentationSettings, InstrumentedModel
from pydantic_ai.models.test import TestModel

from app.llm.errors import LLMUnavailable
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.types import LLMResponse, ServedFrom
from tests.unit.llm.pydanticai.scripted import GEMINI, ScriptedService, answer, call, failed_attempt


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def settings(exporter: InMemorySpanExporter) -> Iterator[InstrumentationSettings]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield InstrumentationSettings(tracer_provider=provider)
    provider.shutdown()


def ours(*script: LLMResponse | Exception) -> PydanticAiLiteLLMModel:
    return PydanticAiLiteLLMModel(ScriptedService(*script))


def of_requests(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name.startswith("chat ")]


def told(exporter: InMemorySpanExporter) -> dict[str, Any]:
    (span,) = of_requests(exporter)
    return dict(span.attributes or {})


async def run(agent: Agent[None, str]) -> None:
    await agent.run("Where?")


async def stream(agent: Agent[None, str]) -> None:
    async with agent.run_stream("Where?") as result:
        await result.get_output()


def by_capability(model: Model[Any], settings: InstrumentationSettings) -> Agent[None, str]:
    return Agent(model, capabilities=[Instrumentation(settings=settings)])


def by_attribute(model: Model[Any], settings: InstrumentationSettings) -> Agent[None, str]:
    agent: Agent[None, str] = Agent(model)
    agent.instrument = settings
    return agent


def by_wrapping(model: Model[Any], settings: InstrumentationSettings) -> Agent[None, str]:
    return Agent(InstrumentedModel(model, settings))


@pytest.mark.parametrize("served_from", ServedFrom)
@pytest.mark.parametrize("asked", [run, stream])
@pytest.mark.parametrize("instrumented", [by_capability, by_attribute, by_wrapping])
async def test_the_span_of_a_request_names_who_answered_and_the_row(
    exporter: InMemorySpanExporter,
    settings: InstrumentationSettings,
    instrumented: Callable[..., Agent[None, str]],
    asked: Callable[..., Any],
    served_from: ServedFrom,
) -> None:
    response = answer(
        "Paris.", provider=GEMINI, served_from=served_from, cost_usd=0.25, attempts=(failed_attempt(),)
    )
    await asked(instrumented(ours(response), settings))
    attributes = told(exporter)
    live = served_from in {ServedFrom.LIVE, ServedFrom.CASSETTE}
    expected = {
        "gen_ai.request.model": "balanced",
        "gen_ai.response.model": "gemini-2.5-flash",
        "gen_ai.provider.name": "gcp.gemini",
        "gen_ai.system": "gemini",
        "signalbox.run_id": "run-1",
        "signalbox.served_from": served_from.value,
        "signalbox.failed_attempts": 1,
        "operation.cost": 0.25 if live else 0.0,
    }
    assert {name: attributes.get(name) for name in expected} == expected
    assert attributes.get("gen_ai.usage.input_tokens", 0) == (10 if live else 0)


async def test_each_step_has_a_span_of_its_own(
    exporter: InMemorySpanExporter, settings: InstrumentationSettings
) -> None:
    model = ours(
        answer(call("len", {"obj": "a"}), run_id="run-1"), answer("One.", provider=GEMINI, run_id="run-2")
    )
    await Agent(model, tools=[len], capabilities=[Instrumentation(settings=settings)]).run("Count.")
    said = [dict(span.attributes or {}) for span in of_requests(exporter)]
    assert [(each["gen_ai.system"], each["signalbox.run_id"]) for each in said] == [
        ("ollama", "run-1"),
        ("gemini", "run-2"),
    ]


async def test_within_a_fallback_model_the_row_is_named(
    exporter: InMemorySpanExporter, settings: InstrumentationSettings
) -> None:
    """FallbackModel then writes the provider that it knows, ours; the row and the model tell who answered."""
    await by_capability(FallbackModel(ours(answer("Paris.")), TestModel()), settings).run("Where?")
    attributes = told(exporter)
    assert (attributes["gen_ai.provider.name"], attributes["gen_ai.response.model"]) == (
        "signalbox",
        "llama3.2",
    )
    assert attributes["signalbox.run_id"] == "run-1"


async def test_a_model_that_failed_leaves_nothing_on_the_span_of_the_next(
    exporter: InMemorySpanExporter, settings: InstrumentationSettings
) -> None:
    model = FallbackModel(ours(LLMUnavailable("refused", run_id="run-1")), TestModel())
    await by_capability(model, settings).run("Where?")
    attributes = told(exporter)
    assert attributes["gen_ai.provider.name"] == "test"
    assert [name for name in attributes if name.startswith("signalbox.")] == []


async def test_a_span_of_the_callers_own_is_left_alone(
    exporter: InMemorySpanExporter, settings: InstrumentationSettings
) -> None:
    with settings.tracer.start_as_current_span("mine", attributes={"order": 17}):
        await model_request(ours(answer("Paris.")), [ModelRequest.user_text_prompt("Where?")])
        await stream(Agent(ours(answer("Paris."))))
    (span,) = exporter.get_finished_spans()
    assert dict(span.attributes or {}) == {"order": 17}

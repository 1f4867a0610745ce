"""Agents that stream: events while the provider answers, and the same message in the end as without."""

import asyncio
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.exceptions import ModelConnectionError
from pydantic_ai.messages import FinalResultEvent, ModelRequest, ModelResponse, PartDeltaEvent, PartStartEvent

from app.llm.deltas import Tell, TextDelta
from app.llm.errors import LLMKeyConflict, LLMUnavailable
from app.llm.messages import ThinkingPart
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.streams import LLMStream
from app.llm.types import LLMResponse, ServedFrom
from tests.unit.llm.pydanticai.scripted import (
    GEMINI,
    PARIS,
    City,
    ScriptedService,
    answer,
    call,
    failed_attempt,
)

ASKED = [ModelRequest.user_text_prompt("Where is the Louvre?")]
ANSWERS = {
    "text": answer("Paris."),
    "thoughts": answer(ThinkingPart(text="hm", signature="U2ln"), "Paris.", provider=GEMINI),
    "calls": answer(call("a", {"x": 1}), call("a", {"x": 2}, signature="U2ln"), provider=GEMINI),
    "after a fallback": answer("Paris.", attempts=(failed_attempt(),)),
    "replay": answer("Paris.", served_from=ServedFrom.REPLAY),
    "hit": answer(call("a", {"x": 1}), served_from=ServedFrom.CACHE),
    "parts in another order": answer("Paris.", ThinkingPart(text="hm")),
}


@pytest.mark.parametrize("response", ANSWERS.values(), ids=ANSWERS.keys())
async def test_a_stream_ends_with_the_message_of_a_request(response: Any) -> None:
    """Parts, usage, finish reason, metadata, failed attempts: all but the time."""
    whole = await model_request(PydanticAiLiteLLMModel(ScriptedService(response)), ASKED)
    async with model_request_stream(PydanticAiLiteLLMModel(ScriptedService(response)), ASKED) as stream:
        events = [event async for event in stream]
    assert plain(stream.get()) == plain(whole)
    assert any(isinstance(event, PartStartEvent) for event in events)


def plain(message: ModelResponse) -> dict[str, Any]:
    facts = dict(vars(message))
    facts.pop("timestamp")
    return facts


async def test_events_come_while_the_provider_answers() -> None:
    model = PydanticAiLiteLLMModel(ScriptedService(answer("Paris.")))
    async with model_request_stream(model, ASKED) as stream:
        events = [event async for event in stream]
        assert (stream.model_name, stream.provider_name, stream.usage.input_tokens) == (
            "llama3.2",
            "ollama",
            10,
        )
    kinds = [type(event) for event in events]
    assert kinds[:3] == [PartStartEvent, FinalResultEvent, PartDeltaEvent]


@pytest.mark.parametrize("served_from", ServedFrom)
async def test_an_agent_streams_its_text(served_from: ServedFrom) -> None:
    llm = ScriptedService(answer("Paris.", served_from=served_from))
    async with Agent(PydanticAiLiteLLMModel(llm)).run_stream("Where?") as result:
        said = [text async for text in result.stream_text(delta=True, debounce_by=None)]
        assert "".join(said) == "Paris."
        assert result.usage.input_tokens == (
            10 if served_from in {ServedFrom.LIVE, ServedFrom.CASSETTE} else 0
        )
        assert result.response.metadata is not None
        assert result.response.metadata["served_from"] == served_from.value


async def test_an_agent_streams_its_output_and_calls_tools_on_the_way() -> None:
    llm = ScriptedService(answer(call("look_up", {"name": "Paris"})), answer(call("final_result", PARIS)))
    agent = Agent(PydanticAiLiteLLMModel(llm), output_type=City)
    seen: list[str] = []

    @agent.tool_plain
    def look_up(name: str) -> str:
        seen.append(name)
        return "France"

    async with agent.run_stream("Where?") as result:
        outputs = [output async for output in result.stream_output(debounce_by=None)]
    assert (outputs[-1], seen) == (City(**PARIS), ["Paris"])


async def test_the_nodes_of_a_run_can_be_streamed() -> None:
    llm = ScriptedService(answer("Paris."))
    said = ""
    async with Agent(PydanticAiLiteLLMModel(llm)).iter("Where?") as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as stream:
                    async for text in stream.stream_text(delta=True, debounce_by=None):
                        said += text
    assert run.result is not None
    assert (said, run.result.output) == ("Paris.", "Paris.")


@pytest.mark.parametrize(
    ("error", "told"),
    [(LLMUnavailable("gone"), ModelConnectionError), (LLMKeyConflict("taken"), LLMKeyConflict)],
)
async def test_an_error_before_the_first_event_has_its_category(
    error: Exception, told: type[Exception]
) -> None:
    model = PydanticAiLiteLLMModel(ScriptedService(error))  # type: ignore[arg-type]
    with pytest.raises(told):
        async with model_request_stream(model, ASKED):
            pass


async def test_a_stream_that_is_cancelled_ends_its_call() -> None:
    llm = ScriptedService(answer("Paris."))
    async with model_request_stream(PydanticAiLiteLLMModel(llm), ASKED) as stream:
        await anext(aiter(stream))
        await stream.cancel()
        assert [event async for event in stream] == [] or stream.get().state != "complete"


class Unending(ScriptedService):
    """Begins to answer."""

    def stream(self, *_: Any, **__: Any) -> LLMStream:
        async def answering(tell: Tell) -> LLMResponse:
            await tell(TextDelta("Par"))
            await asyncio.Event().wait()
            raise AssertionError

        return LLMStream(answering, remember=lambda _: None)


async def test_a_stream_that_is_cancelled_while_it_is_read_just_ends() -> None:
    async with model_request_stream(PydanticAiLiteLLMModel(Unending()), ASKED) as stream:
        heard: list[Any] = []

        async def read() -> None:
            async for event in stream:
                heard.append(event)
                begun.set()

        begun = asyncio.Event()
        reader = asyncio.create_task(read())
        await begun.wait()
        await stream.cancel()
        await reader
    assert isinstance(heard[0], PartStartEvent)
    assert stream.get().state == "interrupted"

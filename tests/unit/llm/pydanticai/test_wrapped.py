"""The model inside others, before others and after others: what a wrapper knows of, and what a fallback may hide."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.capabilities import ModelFallback
from pydantic_ai.direct import model_request_stream
from pydantic_ai.exceptions import (
    FallbackExceptionGroup,
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    ModelRateLimitError,
    ModelTimeoutError,
    UsageLimitExceeded,
)
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.models.concurrency import ConcurrencyLimitedModel
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.instrumented import InstrumentedModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.usage import UsageLimits

from app.llm.deltas import Answering, Tell, TextDelta
from app.llm.errors import (
    LLMError,
    LLMFenced,
    LLMKeyConflict,
    LLMKeyInProgress,
    LLMLedgerUnavailable,
    LLMNoCandidate,
    LLMRateLimited,
    LLMTimeout,
    LLMUnavailable,
    LLMWorkspaceMissing,
)
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.streams import LLMStream
from app.llm.types import LLMResponse, ServedFrom
from tests.unit.llm.pydanticai.scripted import (
    GEMINI,
    OLLAMA,
    PARIS,
    City,
    ScriptedService,
    answer,
    call,
    failed_attempt,
)

RUN = {"workspace_id": "acme", "stage": "extract", "idempotency_key": "k"}
WRAPPERS: dict[str, Callable[[Model[Any]], Model[Any]]] = {
    "WrapperModel": WrapperModel,
    "InstrumentedModel": InstrumentedModel,
    "ConcurrencyLimitedModel": lambda model: ConcurrencyLimitedModel(model, limiter=1),
    "two of them": lambda model: WrapperModel(ConcurrencyLimitedModel(model, limiter=1)),
    "FallbackModel": lambda model: FallbackModel(model, TestModel(custom_output_text="another")),
}
wrapped = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


def failing(status: int) -> FunctionModel:
    def fail(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        raise ModelHTTPError(status_code=status, model_name="other")

    return FunctionModel(fail)


class Breaking(ScriptedService):
    """Says the beginning of an answer, then fails."""

    def stream(self, request: Any, *, context: Any = None) -> Any:
        async def work(tell: Tell) -> LLMResponse:
            await tell(Answering(OLLAMA, "llama3.2"))
            await tell(TextDelta("Par"))
            return await self.chat(request, context=context)

        return LLMStream(work, remember=lambda _: None)


@wrapped
async def test_a_wrapped_model_answers_with_tools_and_typed_output(
    wrap: Callable[[Model[Any]], Model[Any]],
) -> None:
    llm = ScriptedService(answer(call("len", {"obj": "a"})), answer(call("final_result", PARIS)))
    agent = Agent(wrap(PydanticAiLiteLLMModel(llm)), output_type=City, tools=[len], name="reader")
    result = await agent.run("Where?", metadata=RUN)
    assert result.output == City(**PARIS)
    assert [request.idempotency_key for request in llm.requests] == ["k/reader/1", "k/reader/2"]
    assert [context and context.workspace_id for context in llm.contexts] == ["acme", "acme"]
    assert [request.model for request in llm.requests] == [None, "ollama:llama3.2"], "sticky"
    assert (result.response.metadata or {})["llm_run_id"] == "run-1"


@wrapped
@pytest.mark.parametrize("served_from", ServedFrom)
async def test_a_wrapped_model_streams(
    wrap: Callable[[Model[Any]], Model[Any]], served_from: ServedFrom
) -> None:
    llm = ScriptedService(answer("Paris.", provider=GEMINI, served_from=served_from))
    async with Agent(wrap(PydanticAiLiteLLMModel(llm)), name="reader").run_stream(
        "Where?", metadata=RUN
    ) as result:
        said = [text async for text in result.stream_text(delta=True, debounce_by=None)]
    assert "".join(said) == "Paris."
    assert llm.requests[0].idempotency_key == "k/reader/1"
    assert (result.response.metadata or {})["served_from"] == served_from.value
    assert result.response.provider_name == "gemini"


@pytest.mark.parametrize("name", [name for name in WRAPPERS if name != "FallbackModel"])
async def test_a_wrapped_model_counts_before_it_asks(name: str) -> None:
    """A FallbackModel counts nothing: it does not know yet who will answer."""
    llm = ScriptedService(answer("Paris."))
    agent = Agent(WRAPPERS[name](PydanticAiLiteLLMModel(llm)))
    with pytest.raises(UsageLimitExceeded):
        await agent.run(
            "Where?", usage_limits=UsageLimits(input_tokens_limit=1, count_tokens_before_request=True)
        )
    assert llm.requests == []
    enough = UsageLimits(input_tokens_limit=100, count_tokens_before_request=True)
    await agent.run("Where?", usage_limits=enough)
    assert len(llm.requests) == 1


async def test_override_puts_the_model_in_and_takes_it_out_again() -> None:
    llm = ScriptedService(answer("ours"))
    agent = Agent(TestModel(custom_output_text="theirs"), name="reader")
    with agent.override(model=PydanticAiLiteLLMModel(llm)):
        assert (await agent.run("x", metadata=RUN)).output == "ours"
    assert (await agent.run("x")).output == "theirs"
    assert [request.idempotency_key for request in llm.requests] == ["k/reader/1"]


async def test_override_keeps_ours_from_being_asked() -> None:
    llm = ScriptedService()
    agent = Agent(PydanticAiLiteLLMModel(llm))
    with agent.override(model=TestModel(custom_output_text="theirs")):
        assert (await agent.run("x")).output == "theirs"
    assert llm.requests == []


Order = Callable[[Model[Any], Model[Any]], tuple[Model[Any], list[Any]]]


def by_model(first: Model[Any], second: Model[Any]) -> tuple[Model[Any], list[Any]]:
    return FallbackModel(first, second), []


def by_capability(first: Model[Any], second: Model[Any]) -> tuple[Model[Any], list[Any]]:
    return first, [ModelFallback(second)]


either_way = pytest.mark.parametrize("fallback", [by_model, by_capability])


async def ask(fallback: Order, first: Model[Any], second: Model[Any], *, way: str = "whole") -> ModelResponse:
    model, capabilities = fallback(first, second)
    agent = Agent(model, capabilities=capabilities, name="reader")
    if way == "whole":
        return (await agent.run("Where?", metadata=RUN)).response
    async with agent.run_stream("Where?", metadata=RUN) as result:
        await result.get_output()
        return result.response


@either_way
@pytest.mark.parametrize("way", ["whole", "streamed"])
async def test_another_model_takes_over_from_an_error_of_a_provider(fallback: Order, way: str) -> None:
    ours = ScriptedService(LLMUnavailable("refused", provider="ollama", model="llama3.2", run_id="run-1"))
    response = await ask(
        fallback, PydanticAiLiteLLMModel(ours), TestModel(custom_output_text="theirs"), way=way
    )
    assert response.text == "theirs"
    (failed,) = response.failed_attempts or []
    assert failed.error is not None
    assert "refused" in failed.error
    assert len(ours.requests) == 1


@either_way
@pytest.mark.parametrize("way", ["whole", "streamed"])
async def test_ours_takes_over_from_another_model(fallback: Order, way: str) -> None:
    ours = ScriptedService(answer("ours"))

    async def broken(_: list[ModelMessage], __: AgentInfo) -> Any:
        raise ModelHTTPError(status_code=503, model_name="other")
        yield  # what makes it a stream

    other = FunctionModel(stream_function=broken) if way == "streamed" else failing(503)
    response = await ask(fallback, other, PydanticAiLiteLLMModel(ours), way=way)
    assert (response.text, response.provider_name) == ("ours", "ollama")
    assert ours.requests[0].idempotency_key == "k/reader/1"
    assert len(response.failed_attempts or []) == 1


async def test_failed_sends_of_ours_stay_beside_those_of_the_fallback() -> None:
    """The model before ours failed, and within ours a candidate did."""
    ours = ScriptedService(answer("ours", provider=GEMINI, attempts=(failed_attempt(),)))
    response = await ask(by_model, failing(503), PydanticAiLiteLLMModel(ours))
    assert [attempt.model_name for attempt in response.failed_attempts or []] == [
        "function:fail:",
        "llama3.2",
    ]


@either_way
@pytest.mark.parametrize("way", ["whole", "streamed"])
@pytest.mark.parametrize(
    "error",
    [
        LLMWorkspaceMissing,
        LLMNoCandidate,
        LLMKeyConflict,
        LLMKeyInProgress,
        LLMFenced,
        LLMLedgerUnavailable,
    ],
)
async def test_another_model_does_not_hide_an_error_of_contract_or_ledger(
    fallback: Order, error: type[LLMError], way: str
) -> None:
    ours = error("not allowed")
    first = PydanticAiLiteLLMModel(ScriptedService(ours))
    with pytest.raises(error) as caught:
        await ask(fallback, first, TestModel(custom_output_text="never"), way=way)
    assert caught.value is ours


async def test_when_both_fail_both_errors_are_told() -> None:
    ours = PydanticAiLiteLLMModel(ScriptedService(LLMUnavailable("refused", run_id="run-1")))
    with pytest.raises(FallbackExceptionGroup) as caught:
        await ask(by_model, failing(503), ours)
    assert [type(error) for error in caught.value.exceptions] == [ModelHTTPError, ModelConnectionError]
    assert "run-1" in str(caught.value.exceptions[1].body)  # type: ignore[attr-defined]


async def test_an_answer_of_another_model_in_between_lets_ours_choose_anew() -> None:
    """Step 1 is answered by ours, step 2 by the other, step 3 by ours, which the other's answer does not pin."""
    ours = ScriptedService(
        answer(call("len", {"obj": "a"}), provider=OLLAMA),
        LLMRateLimited("slow down", http_status=429),
        answer("Two."),
    )

    def calls_again(_: list[ModelMessage], __: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[ToolCallPart("len", {"obj": "ab"})])

    agent = Agent(FallbackModel(PydanticAiLiteLLMModel(ours), FunctionModel(calls_again)), tools=[len])
    assert (await agent.run("Count.")).output == "Two."
    assert [request.model for request in ours.requests] == [None, "ollama:llama3.2", None]


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (LLMUnavailable, None, ModelConnectionError),
        (LLMTimeout, None, ModelTimeoutError),
        (LLMRateLimited, 429, ModelRateLimitError),
    ],
)
async def test_an_error_within_a_stream_says_so(
    error: type[LLMError], status: int | None, told: type[ModelAPIError]
) -> None:
    """Nobody takes over then: the agent has seen a part of the answer."""
    model = FallbackModel(
        PydanticAiLiteLLMModel(Breaking(error("broke off", http_status=status))), TestModel()
    )
    heard: list[str] = []

    async def listen() -> None:
        async with model_request_stream(model, [ModelRequest.user_text_prompt("x")]) as stream:
            async for _ in stream:
                heard.extend(part.content for part in stream.get().parts if isinstance(part, TextPart))

    with pytest.raises(told) as caught:
        await listen()
    assert heard[-1] == "Par"
    assert caught.value.in_stream

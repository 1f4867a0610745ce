"""Whole runs of agents, through both lanes: who is asked at each step, what is counted, how a run is ended."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelRequestTimeout, UsageLimitExceeded
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.usage import RunUsage, UsageLimits

from app.bootstrap import build_llm_service
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.service import LLMService
from app.llm.settings import LiteLLMLane, load_settings
from app.llm.testing import Reply, StubGemini, StubOllama
from app.llm.types import CacheMode
from tests.support.ledger import Outside

RUN = {"workspace_id": "acme", "idempotency_key": "count-17"}
CALL = Reply.tool_call("len", {"obj": "a"}, usage=(1000, 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A service and its two providers, of which Ollama is asked first."""

    llm: LLMService
    ollama: StubOllama
    gemini: StubGemini
    ledger: Outside

    @property
    def sends(self) -> tuple[int, int]:
        return self.ollama.sends, self.gemini.sends


@pytest.fixture
def providers() -> Iterator[tuple[StubOllama, StubGemini]]:
    with StubOllama() as ollama, StubGemini() as gemini:
        yield ollama, gemini


@pytest.fixture(params=list(LiteLLMLane))
async def world(
    request: pytest.FixtureRequest, providers: tuple[StubOllama, StubGemini], sqlite_url: str
) -> AsyncIterator[World]:
    ollama, gemini = providers
    settings = load_settings(
        litellm_lane=request.param,
        ollama_api_base=ollama.base_url,
        gemini_api_base=gemini.base_url,
        gemini_api_key="stub-key",
        database_url=sqlite_url,
        attempts_per_candidate=1,
    )
    ledger = Outside(sqlite_url)
    async with build_llm_service(settings) as llm:
        yield World(llm=llm, ollama=ollama, gemini=gemini, ledger=ledger)
    await ledger.close()


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run said and took."""

    said: str
    usage: RunUsage
    answers: list[ModelResponse]

    @property
    def served_from(self) -> list[Any]:
        return [(answer.metadata or {})["served_from"] for answer in self.answers]


async def run(agent: Agent[None, str], way: str, **asked: Any) -> Ran:
    options: dict[str, Any] = {"metadata": {"workspace_id": "acme"}, **asked}
    if way == "streamed":
        async with agent.run_stream("Count.", **options) as result:
            said = "".join([text async for text in result.stream_text(delta=True, debounce_by=None)])
        usage, messages = result.usage, result.all_messages()
    else:
        done = await agent.run("Count.", **options)
        said, usage, messages = done.output, done.usage, done.all_messages()
    return Ran(said, usage, [message for message in messages if isinstance(message, ModelResponse)])


either = pytest.mark.parametrize("way", ["whole", "streamed"])


@either
async def test_a_run_stays_with_the_candidate_that_it_fell_back_to(world: World, way: str) -> None:
    world.ollama.script(Reply.status(503))
    world.gemini.script(CALL, CALL, Reply.text("Two."))
    agent = Agent(PydanticAiLiteLLMModel(world.llm, cache=CacheMode.BYPASS), tools=[len])
    ran = await run(agent, way)
    assert ran.said == "Two."
    assert world.sends == (1, 3), "Ollama is well again and is not asked"
    assert [answer.provider_name for answer in ran.answers] == ["gemini"] * 3
    world.ollama.script(Reply.text("A new run."))
    assert (await run(agent, way)).said == "A new run."


@either
async def test_a_run_goes_on_elsewhere_when_its_candidate_fails_and_stays_there(
    world: World, way: str
) -> None:
    world.ollama.script(CALL, Reply.status(503))
    world.gemini.script(CALL, Reply.text("Two."))
    agent = Agent(PydanticAiLiteLLMModel(world.llm, cache=CacheMode.BYPASS), tools=[len])
    ran = await run(agent, way)
    assert ran.said == "Two."
    assert world.sends == (2, 2)
    assert [answer.provider_name for answer in ran.answers] == ["ollama", "gemini", "gemini"]
    (failed,) = ran.answers[1].failed_attempts or []
    assert (failed.provider_name, failed.error) == ("ollama", "unavailable (HTTP 503)")


@either
async def test_a_run_that_is_repeated_counts_and_costs_nothing(world: World, way: str) -> None:
    """The limits are far below what the first run took; the number of its turns is the same."""
    world.gemini.script(CALL, Reply.text("One.", usage=(2000, 200)))
    model = PydanticAiLiteLLMModel(world.llm, model="gemini:gemini-2.5-flash")
    agent = Agent(WrapperModel(model), name="counter", tools=[len])
    first = await run(agent, way, metadata=RUN)
    assert (first.usage.requests, first.usage.input_tokens, first.usage.output_tokens) == (2, 3000, 300)
    assert first.usage.cost is not None
    assert first.usage.cost > Decimal("0.001")
    limits = UsageLimits(
        request_limit=2, total_tokens_limit=1, per_request_input_tokens_limit=1, cost_limit=Decimal("0.00001")
    )
    again = await run(agent, way, metadata=RUN, usage_limits=limits)
    assert (again.said, again.served_from) == ("One.", ["replay", "replay"])
    assert (again.usage.requests, again.usage.total_tokens, again.usage.cost) == (2, 0, Decimal(0))
    assert [(answer.metadata or {})["original_usage"] for answer in again.answers] == [
        {"input_tokens": 1000, "output_tokens": 100},
        {"input_tokens": 2000, "output_tokens": 200},
    ]
    total = RunUsage()
    total.incr(first.usage)
    total.incr(again.usage)
    assert (total.input_tokens, total.cost) == (3000, first.usage.cost)
    with pytest.raises(UsageLimitExceeded, match="request_limit of 1"):
        await run(agent, way, metadata=RUN, usage_limits=UsageLimits(request_limit=1))
    assert world.sends == (0, 2)


async def test_a_request_that_is_too_long_for_its_limit_is_neither_sent_nor_recorded(world: World) -> None:
    agent = Agent(PydanticAiLiteLLMModel(world.llm), instructions="Be brief. " * 100)
    limits = UsageLimits(input_tokens_limit=100, count_tokens_before_request=True)
    with pytest.raises(UsageLimitExceeded, match="input_tokens_limit of 100"):
        await run(agent, "whole", usage_limits=limits)
    assert world.sends == (0, 0)
    assert await world.ledger.runs() == []


@either
async def test_a_timeout_of_pydantic_ai_ends_the_call_and_its_row(world: World, way: str) -> None:
    """It cancels again and again; a stream's task therefore outlives the scope, and closing waits for it."""
    agent = Agent(PydanticAiLiteLLMModel(world.llm, model="ollama:llama3.2"))
    await world.llm.warm_up()
    with world.ollama.hold():
        with pytest.raises(ModelRequestTimeout):
            await run(agent, way, model_settings={"request_timeout": 1.0})
        await world.llm.close()
    (row,) = await world.ledger.runs()
    assert (row["status"], row["error_code"]) == ("CANCELLED", "cancelled")

"""Limits on usage: an estimate before a request is sent, and nothing counted twice for answers that are stored."""

from decimal import Decimal
from typing import Any

import pytest
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import UsageLimitExceeded, UserError
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.usage import RequestUsage, UsageLimits

from app.llm.needs import needs_of
from app.llm.pydanticai import LLMModelSettings, PydanticAiLiteLLMModel
from app.llm.types import LLMConstraints, ServedFrom
from tests.unit.llm.pydanticai.scripted import (
    BOTH,
    GEMINI,
    OLLAMA,
    PARIS,
    City,
    ScriptedService,
    answer,
    call,
    candidate,
)

ASKED = [ModelRequest.user_text_prompt("Where is the Louvre?")]


async def estimates(agent: Agent[Any, Any], llm: ScriptedService, settings: Any = None) -> list[int]:
    """Return what was counted for each request of a run: the smallest limit that would have let it pass."""
    counted: list[int] = []

    class Counting(PydanticAiLiteLLMModel):
        async def count_tokens(self, *asked: Any) -> RequestUsage:
            usage = await super().count_tokens(*asked)
            counted.append(usage.input_tokens)
            return usage

    limits = UsageLimits(count_tokens_before_request=True)
    await agent.run("Where is the Louvre?", model=Counting(llm), usage_limits=limits, model_settings=settings)
    return counted


async def test_a_request_over_the_limit_is_not_sent() -> None:
    llm = ScriptedService(answer("Paris."))
    limits = UsageLimits(input_tokens_limit=100, count_tokens_before_request=True)
    agent = Agent(PydanticAiLiteLLMModel(llm))
    with pytest.raises(UsageLimitExceeded, match="input_tokens_limit of 100"):
        await agent.run("Where is the Louvre? " * 50, usage_limits=limits)
    assert llm.requests == []
    result = await agent.run("Where is the Louvre?", usage_limits=limits)
    assert result.usage.input_tokens == 10, "what the provider counted; the estimate is no usage"


async def test_the_limit_of_one_request_holds_before_it_is_sent() -> None:
    llm = ScriptedService(answer("Paris."))
    limits = UsageLimits(per_request_input_tokens_limit=5, count_tokens_before_request=True)
    with pytest.raises(UsageLimitExceeded, match="per_request_input_tokens_limit of 5"):
        await Agent(PydanticAiLiteLLMModel(llm)).run("Where is the Louvre?", usage_limits=limits)
    assert llm.requests == []


async def test_the_estimate_is_the_routers_and_of_the_lane_where_it_is_highest() -> None:
    """Native output puts the schema into Ollama's instructions as well."""
    llm = ScriptedService(answer('{"name": "Paris", "country": "France"}'))
    (counted,) = await estimates(Agent(output_type=NativeOutput(City)), llm)
    on_ollama, on_gemini = (
        needs_of(llm.requests[0].as_sent_to(provider)).input_tokens_estimate for provider in (OLLAMA, GEMINI)
    )
    assert counted == on_ollama > on_gemini > 0


async def test_tools_schemas_and_their_results_are_counted() -> None:
    plain = ScriptedService(answer("Paris."))
    tools = ScriptedService(answer(call("look_up", {"name": "Paris"})), answer("Paris."))

    async def look_up(name: str) -> str:
        """Find out where a place is, in which country, and since when."""
        return f"{name} is in France. " * 20

    (bare,) = await estimates(Agent(), plain)
    first, second = await estimates(Agent(tools=[look_up]), tools)
    typed = ScriptedService(answer(call("final_result", PARIS), provider=GEMINI), candidates=BOTH[1:])
    (schema,) = await estimates(Agent(output_type=City), typed)
    assert bare < schema
    assert bare + 20 < first < second - 100


async def test_the_estimate_follows_the_settings_of_the_model_and_of_the_run() -> None:
    llm = ScriptedService(answer("Paris."))
    agent = Agent(tools=[len])
    (without,) = await estimates(agent, llm, {"tool_choice": "none"})
    llm.script = [answer("Paris.")]
    (with_tools,) = await estimates(agent, llm)
    assert without < with_tools
    own = PydanticAiLiteLLMModel(llm, settings=LLMModelSettings(llm_model="gemini:gemini-2.5-flash"))
    assert (await own.count_tokens(ASKED, None, ModelRequestParameters())).input_tokens > 0
    with pytest.raises(UserError, match="llm_cach"):
        await own.count_tokens(ASKED, {"llm_cach": "use"}, ModelRequestParameters())  # type: ignore[typeddict-unknown-key]


async def test_counting_sends_nothing_and_needs_no_workspace_or_key() -> None:
    llm = ScriptedService()
    model = PydanticAiLiteLLMModel(llm, constraints=LLMConstraints(local_only=True))
    usage = await model.count_tokens(ASKED, None, ModelRequestParameters())
    assert (usage.input_tokens, usage.output_tokens, usage.cost) == (11, 0, None)
    assert llm.requests == []


async def repeat(
    served_from: ServedFrom, limits: UsageLimits, *, way: str = "whole"
) -> tuple[int, int, Decimal | None]:
    """Return requests, tokens and cost of a run of two steps under `limits`, both served from there."""
    served: Any = {"served_from": served_from, "cost_usd": 0.25, "provider": GEMINI}
    llm = ScriptedService(
        answer(call("len", {"obj": "a"}), **served),
        answer("One.", **served),
        candidates=(candidate(GEMINI),),
    )
    agent = Agent(PydanticAiLiteLLMModel(llm), tools=[len])
    if way == "streamed":
        async with agent.run_stream("Count.", usage_limits=limits) as result:
            await result.get_output()
            usage = result.usage
    else:
        usage = (await agent.run("Count.", usage_limits=limits)).usage
    assert usage.tool_calls == 1, "a tool runs again"
    return usage.requests, usage.total_tokens, usage.cost


@pytest.mark.parametrize("way", ["whole", "streamed"])
@pytest.mark.parametrize("stored", [ServedFrom.REPLAY, ServedFrom.CACHE])
@pytest.mark.parametrize(
    "limit",
    [
        {"cost_limit": Decimal("0.1")},
        {"total_tokens_limit": 12},
        {"input_tokens_limit": 5},
        {"output_tokens_limit": 4},
        {"per_request_input_tokens_limit": 9},
    ],
    ids=lambda limit: str(*limit),
)
async def test_limits_that_a_run_exceeds_hold_its_replay_up_no_more(
    limit: dict[str, Any], stored: ServedFrom, way: str
) -> None:
    with pytest.raises(UsageLimitExceeded):
        await repeat(ServedFrom.LIVE, UsageLimits(**limit), way=way)
    assert await repeat(stored, UsageLimits(**limit), way=way) == (2, 0, Decimal(0))


async def test_steps_count_as_requests_wherever_they_are_served_from() -> None:
    """PydanticAI counts the turns of the agent's loop, not sends; a replayed run has as many turns."""
    for served_from in ServedFrom:
        requests, _, _ = await repeat(served_from, UsageLimits(request_limit=2))
        assert requests == 2
        with pytest.raises(UsageLimitExceeded, match="request_limit of 1"):
            await repeat(served_from, UsageLimits(request_limit=1))

"""Agents on the whole stack: the service with its ledger, LiteLLM, and providers that speak the real wire format."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import ModelAPIError, ModelRateLimitError
from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.tools import ToolDefinition

from app.llm.errors import LLMKeyConflict, LLMNoCandidate, LLMWorkspaceMissing
from app.llm.pydanticai import LLMModelSettings, PydanticAiLiteLLMModel
from app.llm.testing import Reply
from app.llm.testing.content import Call
from app.llm.types import CacheMode, LLMConstraints
from tests.wire.agents import PARIS, City, World, world_on

RUN = {"workspace_id": "acme", "idempotency_key": "invoice-17"}


@pytest.fixture
async def world(sqlite_url: str) -> AsyncIterator[World]:
    async with world_on(sqlite_url) as world:
        yield world


def answers(result: Any) -> list[ModelResponse]:
    return [message for message in result.all_messages() if isinstance(message, ModelResponse)]


async def test_native_json_of_ollama_leaves_as_a_format_and_comes_back_typed(world: World) -> None:
    world.ollama.script(Reply.json(PARIS, usage=(30, 7)))
    agent = Agent(PydanticAiLiteLLMModel(world.llm), output_type=City)
    result = await agent.run("Where is the Louvre?", metadata={"workspace_id": "acme"})
    assert result.output == City(**PARIS)
    assert (result.usage.input_tokens, result.usage.output_tokens) == (30, 7)
    (body,) = world.asked(world.ollama)
    assert set(body["format"]["properties"]) == {"name", "country"}
    assert not body.get("tools")
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


async def test_the_same_agent_works_when_gemini_answers_with_a_tool_call(world: World) -> None:
    world.ollama.script(Reply.status(503))
    world.gemini.script(Reply.tool_call("final_result", PARIS))
    agent = Agent(PydanticAiLiteLLMModel(world.llm), output_type=City)
    result = await agent.run("Where is the Louvre?", metadata={"workspace_id": "acme"})
    assert result.output == City(**PARIS)
    assert world.sends == (1, 1)
    (body,) = world.asked(world.gemini)
    assert body["tools"][0]["function_declarations"][0]["name"] == "final_result"
    assert "responseSchema" not in str(body)
    (failed,) = answers(result)[0].failed_attempts or []
    assert (failed.provider_name, failed.error) == ("ollama", "unavailable (HTTP 503)")


async def test_tools_go_to_ollama_without_a_format_and_their_results_come_back(world: World) -> None:
    world.ollama.script(
        Reply.tool_call("population", {"of": "Paris"}), Reply.tool_call("final_result", PARIS)
    )
    agent = Agent(PydanticAiLiteLLMModel(world.llm), output_type=City)

    @agent.tool_plain
    def population(of: str) -> dict[str, int]:
        """How many live there."""
        return {of: 2_100_000}

    result = await agent.run("Where is the Louvre?", metadata={"workspace_id": "acme"})
    assert result.output == City(**PARIS)
    first, second = world.asked(world.ollama)
    assert [tool["function"]["name"] for tool in first["tools"]] == ["population", "final_result"]
    assert not first.get("format")
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]
    assert second["messages"][-1]["content"] == '{"Paris":2100000}'


async def test_a_run_stays_with_the_candidate_that_answered_first(world: World) -> None:
    world.ollama.script(Reply.status(503))
    world.gemini.script(Reply.tool_call("len", {"obj": "a"}), Reply.text("One."))
    agent = Agent(PydanticAiLiteLLMModel(world.llm), tools=[len])
    assert (await agent.run("Count.", metadata={"workspace_id": "acme"})).output == "One."
    assert world.sends == (1, 2), "Ollama is well again at the second step and is not asked"


async def test_gemini_gets_its_thought_signature_back(world: World) -> None:
    call = Call(name="len", arguments={"obj": "a"}, signature="c2lnbmF0dXJl")
    world.gemini.script(Reply.tool_calls([call]), Reply.text("One."))
    model = PydanticAiLiteLLMModel(world.llm, model="gemini:gemini-2.5-flash")
    await Agent(model, tools=[len]).run("Count.", metadata={"workspace_id": "acme"})
    _, second = world.asked(world.gemini)
    assert "c2lnbmF0dXJl" in str(second["contents"][1])


async def test_a_killed_agent_replays_its_finished_steps_and_goes_on(world: World) -> None:
    """Durable without an engine: the same key again, and only what was not finished is sent."""
    world.ollama.script(Reply.tool_call("population", {"of": "Paris"}), Reply.text("2.1 million."))
    agent = Agent(PydanticAiLiteLLMModel(world.llm), name="reader")
    crashes = [ConnectionError("the process died here")]

    @agent.tool_plain
    def population(of: str) -> int:
        """How many live there."""
        if crashes:
            raise crashes.pop()
        return len(of) * 420_000

    with pytest.raises(ConnectionError):
        await agent.run("How many live in Paris?", metadata=RUN)
    result = await agent.run("How many live in Paris?", metadata=RUN)
    assert result.output == "2.1 million."
    assert world.sends == (2, 0)
    replayed, live = answers(result)
    assert [(response.metadata or {})["served_from"] for response in (replayed, live)] == ["replay", "live"]
    assert replayed.usage.total_tokens == 0
    again = await agent.run("How many live in Paris?", metadata=RUN)
    assert world.sends == (2, 0)
    assert again.usage.total_tokens == 0
    assert answers(again)[0].parts == replayed.parts, "also the ids of its tool calls"


async def test_a_key_is_not_served_to_another_prompt(world: World) -> None:
    agent = Agent(PydanticAiLiteLLMModel(world.llm), name="reader")
    await agent.run("Where is the Louvre?", metadata=RUN)
    with pytest.raises(LLMKeyConflict):
        await agent.run("Where is the Prado?", metadata=RUN)
    assert world.sends == (1, 0)


async def test_equal_runs_without_a_key_are_paid_once_where_the_cache_is_on(world: World) -> None:
    agent = Agent(PydanticAiLiteLLMModel(world.llm), output_type=City)
    world.ollama.script(Reply.json(PARIS))
    first = await agent.run("Where is the Louvre?", metadata={"workspace_id": "acme"})
    second = await agent.run("Where is the Louvre?", metadata={"workspace_id": "acme"})
    assert (first.output, second.output) == (City(**PARIS), City(**PARIS))
    assert world.sends == (1, 0)
    assert second.usage.total_tokens == 0
    assert (answers(second)[0].metadata or {})["served_from"] == "cache"


async def test_an_agent_without_a_workspace_is_refused_before_anything_is_sent(world: World) -> None:
    agent = Agent(FallbackModel(PydanticAiLiteLLMModel(world.llm), PydanticAiLiteLLMModel(world.llm)))
    with pytest.raises(LLMWorkspaceMissing):
        await agent.run("x")
    assert world.sends == (0, 0)


async def test_a_tool_call_that_is_forced_never_goes_to_ollama(world: World) -> None:
    params = ModelRequestParameters(function_tools=[ToolDefinition(name="look_up")])
    forced = LLMModelSettings(tool_choice="required", llm_workspace_id="acme")
    prompt = [ModelRequest.user_text_prompt("x")]

    async def ask(limits: LLMConstraints | None = None) -> ModelResponse:
        model = PydanticAiLiteLLMModel(world.llm, constraints=limits)
        return await model_request(model, prompt, model_settings=forced, model_request_parameters=params)

    world.gemini.script(Reply.tool_call("look_up", {}))
    assert (await ask()).provider_name == "gemini"
    with pytest.raises(LLMNoCandidate, match="cannot be forced"):
        await ask(LLMConstraints(local_only=True))
    assert world.sends == (0, 1)


async def test_when_every_provider_fails_the_agent_sees_the_category_and_the_run(world: World) -> None:
    world.ollama.script(Reply.status(503))
    world.gemini.script(Reply.status(429))
    agent = Agent(PydanticAiLiteLLMModel(world.llm, cache=CacheMode.BYPASS))
    with pytest.raises(ModelAPIError) as caught:
        await agent.run("x", metadata={"workspace_id": "acme"})
    assert isinstance(caught.value, ModelRateLimitError)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["run_id"]
    assert "stub-key" not in repr(caught.value) + repr(caught.value.__cause__)

"""Agents on OpenAI, Groq and Anthropic, through the service and its ledger: tools, typed outputs, streams, replays."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic_ai import Agent

from app.bootstrap import build_llm_service
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.service import LLMService
from app.llm.settings import load_settings
from app.llm.testing import Reply
from tests.wire.agents import PARIS, City
from tests.wire.further import FURTHER, KEY

ACME: dict[str, Any] = {"metadata": {"workspace_id": "acme", "idempotency_key": "k1"}}


@pytest.fixture(params=FURTHER)
async def served(
    request: pytest.FixtureRequest, sqlite_url: str
) -> AsyncIterator[tuple[LLMService, Any, str]]:
    provider = request.param
    further = FURTHER[provider]
    with further.stub(models=(further.model,), api_key=KEY) as stub:
        settings = load_settings(
            database_url=sqlite_url,
            profile_balanced=f"{provider}:{further.model}",
            **{f"{provider}_api_base": stub.base_url, f"{provider}_api_key": KEY},
        )
        async with build_llm_service(settings) as llm:
            yield llm, stub, provider


def lookup(city: str) -> str:
    """Return where a city is."""
    return f"{city} is in France."


async def test_an_agent_calls_a_tool_answers_typed_and_is_replayed(served: Any):
    llm, stub, provider = served
    agent = Agent(PydanticAiLiteLLMModel(llm), name="mapper", output_type=City, tools=[lookup])

    async def run() -> Any:
        stub.script(Reply.tool_call("lookup", {"city": "Paris"}), Reply.tool_call("final_result", PARIS))
        return await agent.run("Where is Paris?", **ACME)

    first = await run()
    assert (first.output, stub.sends) == (City(**PARIS), 2)
    assert "Paris is in France." in stub.requests[-1].raw.decode()
    again = await run()
    assert (again.output, stub.sends) == (City(**PARIS), 2)
    assert again.all_messages()[1].provider_name == first.all_messages()[1].provider_name == provider


async def test_an_agent_streams(served: Any):
    llm, stub, _ = served
    stub.script(Reply.stream("Hel", "lo"))
    async with Agent(PydanticAiLiteLLMModel(llm), name="greeter").run_stream("Hi", **ACME) as result:
        assert [text async for text in result.stream_text(delta=True, debounce_by=None)] == ["Hel", "lo"]

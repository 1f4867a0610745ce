"""How to test an agent of your own: `.venv/bin/pytest examples/test_own_agent.py`. Real sockets, a real ledger, no model, no bill."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError

from app.bootstrap import build_llm_service
from app.llm.pydanticai import PydanticAiLiteLLMModel
from app.llm.settings import isolated_settings
from app.llm.testing import Reply, StubOllama


class Ticket(BaseModel):
    """What the agent under test returns."""

    team: str
    urgent: bool


TICKET = {"team": "signals", "urgent": True}


@asynccontextmanager
async def triage(stub: StubOllama, ledger: Path) -> AsyncIterator[Agent[None, Ticket]]:
    """Yield the agent under test, as the program builds it, with the stub as its provider."""
    settings = isolated_settings(
        ollama_api_base=stub.base_url,
        profile_fast="ollama",
        database_url=f"sqlite+aiosqlite:///{ledger}",
        default_workspace="tests",
    )
    async with build_llm_service(settings) as llm:
        yield Agent(PydanticAiLiteLLMModel(llm, profile="fast"), output_type=Ticket, name="triage")


@pytest.fixture
def stub() -> Iterator[StubOllama]:
    """A provider on loopback; without a script it derives its answers from the request."""
    with StubOllama() as server:
        yield server


def ask(stub: StubOllama, ledger: Path, **options: object) -> Ticket:
    """Run the agent once, in a service of its own."""

    async def run() -> Ticket:
        async with triage(stub, ledger) as agent:
            return (await agent.run("Points 12 do not lock.", **options)).output  # type: ignore[call-overload]

    return asyncio.run(run())


def test_the_answer_is_typed_and_the_prompt_arrived(stub: StubOllama, tmp_path: Path) -> None:
    stub.script(Reply.json(TICKET))
    assert ask(stub, tmp_path / "ledger.db") == Ticket(team="signals", urgent=True)
    assert stub.requests[-1].body["messages"][-1]["content"] == "Points 12 do not lock."


def test_an_invalid_answer_is_asked_for_again(stub: StubOllama, tmp_path: Path) -> None:
    stub.script(Reply.json({"team": "signals", "urgent": "perhaps"}), Reply.json(TICKET))
    assert ask(stub, tmp_path / "ledger.db").urgent is True
    assert stub.sends == 2


def test_a_busy_provider_is_tried_again(stub: StubOllama, tmp_path: Path) -> None:
    stub.script(Reply.busy(), Reply.json(TICKET))
    assert ask(stub, tmp_path / "ledger.db").team == "signals"
    assert stub.sends == 2


def test_a_request_that_the_provider_refuses_is_an_error(stub: StubOllama, tmp_path: Path) -> None:
    stub.script(Reply.status(400))
    with pytest.raises(ModelHTTPError):
        ask(stub, tmp_path / "ledger.db")
    assert stub.sends == 1


def test_the_same_key_is_paid_once(stub: StubOllama, tmp_path: Path) -> None:
    stub.script(Reply.json(TICKET))
    key = {"idempotency_key": "ticket-1"}
    assert ask(stub, tmp_path / "ledger.db", metadata=key) == ask(stub, tmp_path / "ledger.db", metadata=key)
    assert stub.sends == 1

"""Calls under a budget and a rate at once, and under a budget that somebody else of the same key holds."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from app.llm.budgets import estimate
from app.llm.candidates import Candidate
from app.llm.errors import LLMBudgetExceeded, LLMKeyInProgress, LLMOverRate, LLMTimeout
from app.llm.messages import Message
from app.llm.pacing import LocalMeter, Told
from app.llm.persistence.models import LLMBudget
from app.llm.testing.client import ScriptedClient
from app.llm.types import LLMProvider, RequestVariant, ServedFrom
from tests.support.budgets import PRICED, counted
from tests.support.ledger import FIRST, Outside, request
from tests.support.service import Rig, rig, service, timed_out

BUDGET: dict[str, Any] = {"budgets": [{"workspace": "*", "per": "day", "usd": 1}]}
BOTH = {"profile_balanced": f"{FIRST},{PRICED}", **BUDGET}
HASTY_S = 20.0
"""A call that does not wait for the next minute."""


@pytest.fixture
async def outside(db_url: str) -> AsyncIterator[Outside]:
    view = Outside(db_url)
    yield view
    await view.close()


async def refused_meanwhile(rigged: Rig, outside: Outside, **fields: Any) -> Any:
    """Return the error of a call whose second candidate no longer fits once it is to be asked."""
    gate = rigged.ledger.gates["note_send"] = asyncio.Event()
    noting = asyncio.Event()
    rigged.ledger.before = lambda name: noting.set() if name == "note_send" else None
    call = asyncio.create_task(rigged.llm.chat(request(**fields)))
    async with asyncio.timeout(30):
        await noting.wait()
    async with outside.engine.begin() as connection:
        await connection.execute(sa.update(LLMBudget.__table__).values(spent_usd=1))
    gate.set()
    (error,) = await asyncio.gather(call, return_exceptions=True)
    return error


async def test_of_two_that_may_not_be_asked_the_error_is_that_of_who_may_be_asked_first(
    db_url: str, outside: Outside
):
    async with rig(db_url, **BOTH, ollama_requests_per_minute=1) as rigged:
        await rigged.llm.chat(request())
        error = await refused_meanwhile(rigged, outside, timeout_s=HASTY_S)
    assert isinstance(error, LLMOverRate)
    assert HASTY_S < (error.retry_after_s or 0) <= 60
    assert rigged.client.sends == 1


async def test_a_send_that_failed_is_not_put_off_until_the_budget_begins_anew(db_url: str, outside: Outside):
    async with rig(db_url, ScriptedClient([timed_out()]), **BOTH) as rigged:
        error = await refused_meanwhile(rigged, outside)
    assert isinstance(error, LLMTimeout)
    assert error.retry_after_s == timed_out().retry_after_s


async def test_the_wait_for_a_turn_is_recorded_though_the_budget_refuses_the_send(
    db_url: str, outside: Outside
):
    slow = {"gemini_requests_per_minute": 1}
    async with rig(db_url, ScriptedClient(), **BOTH, **slow) as rigged:
        await rigged.llm.chat(request(model=PRICED))
        rigged.client.script.append(timed_out())
        error = await refused_meanwhile(rigged, outside, timeout_s=300)
    assert isinstance(error, LLMTimeout)
    _, row = await outside.runs()
    assert row["queue_wait_ms"] > 30_000


async def test_a_turn_that_the_budget_did_not_let_go_is_given_back(db_url: str, outside: Outside):
    slow = {"gemini_requests_per_minute": 1}
    async with rig(db_url, ScriptedClient([timed_out()]), **BOTH, **slow) as rigged:
        await refused_meanwhile(rigged, outside)
        async with outside.engine.begin() as connection:
            await connection.execute(sa.update(LLMBudget.__table__).values(spent_usd=0))
        await rigged.llm.chat(request(model=PRICED, timeout_s=1.5))
    assert rigged.client.sends == 2
    assert (await counted(outside))[2:4] == (0, 0)


async def test_who_is_cancelled_while_it_waits_for_its_turn_holds_nothing_of_the_budget(
    db_url: str, outside: Outside
):
    over = {**BUDGET, "profile_balanced": PRICED, "gemini_requests_per_minute": 1}
    async with service(db_url, **over) as llm:
        await llm.chat(request())
        spent = await counted(outside)
        call = asyncio.create_task(llm.chat(request("Another?", timeout_s=300)))
        async with asyncio.timeout(30):
            while (await counted(outside))[3] == 0:  # noqa: ASYNC110
                await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await llm.drain()
    assert await counted(outside) == spent


async def test_a_turn_takes_what_is_sent_to_its_provider(
    db_url: str, outside: Outside, monkeypatch: pytest.MonkeyPatch
):
    taken: list[int] = []
    ask = LocalMeter.ask

    async def noted(meter: LocalMeter, candidate: Candidate, tokens: int) -> Told:
        taken.append(tokens)
        return await ask(meter, candidate, tokens)

    monkeypatch.setattr(LocalMeter, "ask", noted)
    short = RequestVariant(messages=(Message.user("Short?"),))
    asked = request("Long? " * 500, variants={LLMProvider.GEMINI: short})
    client, rates = ScriptedClient([timed_out()]), {"gemini_tokens_per_minute": 10**6}
    async with service(db_url, client, profile_balanced=f"{FIRST},{PRICED}", **rates) as llm:
        route = llm.explain(asked)
        await llm.chat(asked)
    assert taken == [estimate(route, route.kept[1]).tokens]
    assert taken[0] < route.needs.tokens


# -- the same key


@pytest.mark.parametrize("policy", ["wait", "error"])
async def test_a_repeated_call_waits_for_its_own_answer_though_the_budget_is_used_up(
    db_url: str, outside: Outside, policy: str
):
    asked, client = request(model=PRICED, idempotency_key="k1"), ScriptedClient()
    client.gate = asyncio.Event()
    async with service(db_url) as probe:
        route = probe.explain(asked)
        usd = estimate(route, route.kept[0]).usd
    assert usd is not None
    over = [{"workspace": "*", "per": "day", "usd": str(usd * 3 / 2)}]
    async with rig(db_url, client, budgets=over, on_in_progress=policy) as rigged:
        first = asyncio.create_task(rigged.llm.chat(asked))
        async with asyncio.timeout(30):
            while not client.sends:  # noqa: ASYNC110
                await asyncio.sleep(0)
        second = asyncio.create_task(rigged.llm.chat(asked))
        async with asyncio.timeout(30):
            while not second.done() and rigged.ledger.seen.count("claim") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
        if policy == "error":
            with pytest.raises(LLMKeyInProgress):
                await second
        with pytest.raises(LLMBudgetExceeded, match="Nothing was sent"):
            await rigged.llm.chat(request(model=PRICED, idempotency_key="k2"))
        client.gate.set()
        assert (await first).served_from is ServedFrom.LIVE
        if policy == "wait":
            assert (await second).served_from is ServedFrom.REPLAY
    assert client.sends == 1
    assert [row["status"] for row in await outside.runs()].count("SUCCEEDED") == 1
    assert (await counted(outside))[2:4] == (0, 0)

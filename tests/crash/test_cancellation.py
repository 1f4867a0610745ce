"""A caller may go away at any await: nothing stays STARTED, nothing stays checked out, the key is free or answered."""

import asyncio
import random
from typing import Any

import pytest

from app.llm.testing.client import ScriptedClient
from app.llm.types import LLMResponse
from tests.support.ledger import Outside, request
from tests.support.service import Watched, limited, rig

pytestmark = pytest.mark.crash
POINTS = 40
AT = [
    f"{when} {name}" for name in ("claim", "note_send", "finish") for when in ("before", "between", "after")
] + ["before read"]


@pytest.fixture
async def outside(db_url: str) -> Any:
    view = Outside(db_url)
    yield view
    await view.close()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _busy(*_: Any) -> None:
    await _turns(10)


async def test_cancelling_at_random_moments_leaves_nothing_behind(db_url: str, outside: Outside):
    """I11, with a seeded generator; a failing point can be repeated by its number."""
    chance = random.Random(20_240_611)  # noqa: S311  # repeatable, not secret
    async with rig(db_url, Watched(_busy), cache_enabled=True) as rigged:
        for point in range(POINTS):
            key = f"k{point}"
            rigged.client.script = [limited()]
            call = asyncio.create_task(rigged.llm.chat(request(f"Question {point % 7}", idempotency_key=key)))
            await _turns(int(2 ** chance.uniform(0, 10)))
            call.cancel()
            outcome = (await asyncio.gather(call, return_exceptions=True))[0]
            await rigged.llm.drain()
            assert isinstance(outcome, LLMResponse | asyncio.CancelledError), f"point {point}"
            assert rigged.checked_out() == 0, f"point {point}"
            rows = await outside.runs(idempotency_key=key)
            assert [row["status"] for row in rows if row["status"] not in {"SUCCEEDED", "CANCELLED"}] == []
            rigged.client.script = []
            answer = await rigged.llm.chat(request(f"Question {point % 7}", idempotency_key=key))
            assert answer.text, f"point {point}"
    assert await outside.runs(status="STARTED") == []


@pytest.mark.parametrize("at", AT)
async def test_cancelling_at_each_transition_leaves_nothing_behind(db_url: str, outside: Outside, at: str):
    """I11: before a transition reaches the database, inside its transaction, and right after its commit."""
    when, _, name = at.partition(" ")
    client = ScriptedClient([limited()])
    async with rig(db_url, client) as rigged:
        done: list[str] = []

        def cancel_here(which: str) -> None:
            if which == name and not done:
                done.append(which)
                call.cancel()

        setattr(rigged.ledger, when, cancel_here)
        call = asyncio.create_task(rigged.llm.chat(request(idempotency_key="k1")))
        with pytest.raises(asyncio.CancelledError):
            await call
        await rigged.llm.drain()
        assert done == [name]
        assert rigged.checked_out() == 0
        rows = await outside.runs()
        expected = {"read": [], "claim": ["CANCELLED"], "note_send": ["CANCELLED"], "finish": ["SUCCEEDED"]}
        assert [row["status"] for row in rows] == expected[name]
        if name == "claim":
            assert client.sends == 0
        if rows:
            attempts = await outside.attempts(rows[0]["id"])
            assert len(attempts) == client.sends <= rows[0]["sends_noted"]
        rigged.ledger.before = rigged.ledger.between = rigged.ledger.after = lambda _: None
        assert (await rigged.llm.chat(request(idempotency_key="k1"))).text


async def test_cancelling_a_send_is_told_as_possibly_paid(db_url: str, outside: Outside):
    client = ScriptedClient(gate=asyncio.Event())
    async with rig(db_url, client) as rigged:
        call = asyncio.create_task(rigged.llm.chat(request(idempotency_key="k1")))
        while not client.sends:  # noqa: ASYNC110
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await rigged.llm.drain()
    (row,) = await outside.runs()
    assert (row["status"], row["error_code"], row["possibly_paid"], row["idem_slot"]) == (
        "CANCELLED", "cancelled", True, None,
    )  # fmt: skip
    (attempt,) = await outside.attempts(row["id"])
    assert (attempt["status"], attempt["possibly_paid"]) == ("CANCELLED", True)


async def test_a_crowd_that_is_cancelled_together_leaves_nothing_behind(db_url: str, outside: Outside):
    """I11: more callers than connections, some of them still in the queue for one."""
    client = ScriptedClient(gate=asyncio.Event())
    async with rig(db_url, client) as rigged:
        calls = [asyncio.create_task(rigged.llm.chat(request(idempotency_key=f"k{n}"))) for n in range(30)]
        while client.sends < 5:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        await rigged.llm.drain()
        assert rigged.checked_out() == 0
        assert {row["status"] for row in await outside.runs()} == {"CANCELLED"}
        client.gate.set()  # type: ignore[union-attr]
        assert (await rigged.llm.chat(request(idempotency_key="k0"))).text


async def test_a_call_that_is_cut_off_by_a_timeout_of_its_caller_is_cancelled(db_url: str, outside: Outside):
    client = ScriptedClient(gate=asyncio.Event())
    async with rig(db_url, client) as rigged:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await rigged.llm.chat(request())
        await rigged.llm.drain()
        assert {row["status"] for row in await outside.runs()} <= {"CANCELLED"}
        assert rigged.checked_out() == 0

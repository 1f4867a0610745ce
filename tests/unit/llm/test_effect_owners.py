"""Effects whose owner waits, is cancelled, is slow or dies: who may run them then, and what everybody is told."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import JsonValue

from app.core.clock import SystemClock
from app.llm.errors import (
    LLMFenced,
    LLMKeyInProgress,
    LLMOutcomeUnknown,
)
from tests.support.effects import ORDER, Work, pay
from tests.support.ledger import Outside
from tests.support.service import rig, service


@pytest.fixture
async def outside(db_url: str) -> AsyncIterator[Outside]:
    view = Outside(db_url)
    yield view
    await view.close()


async def test_work_that_is_cancelled_half_way_is_left_to_a_person_or_run_again(
    db_url: str, outside: Outside
):
    """A thread of it may go on and finish: nobody knows what it did, and nobody waits for its lease."""
    finished, go_on = threading.Event(), threading.Event()
    began = asyncio.Event()

    def sync_tool(loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(began.set)
        go_on.wait(10)
        finished.set()

    async def work() -> JsonValue:
        await asyncio.to_thread(sync_tool, asyncio.get_running_loop())
        return "never told"

    again = Work()
    async with service(db_url, on_abandoned="refuse") as careful, service(db_url) as other:
        call = asyncio.create_task(careful.once("k1", "pay", ORDER, work))
        await began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()
        await careful.drain()
        for _ in range(2):
            with pytest.raises(LLMOutcomeUnknown):
                await pay(careful, again)
        assert again.runs == 0
        assert await asyncio.to_thread(finished.wait, 10), "done, though nobody was told"
        assert await pay(other, again) == "receipt 1"
    old, new = await outside.runs()
    assert (old["status"], old["possibly_paid"], new["supersedes"]) == ("ABANDONED", True, old["id"])
    assert new["status"] == "SUCCEEDED"


@pytest.mark.parametrize("on_abandoned", ["retry", "refuse"])
async def test_who_waits_in_this_process_for_work_that_is_cancelled_takes_it_over_or_is_told(
    db_url: str, on_abandoned: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app.llm.idempotency.CLAIM_AGAIN_S", 0.1)
    work, heir = Work(), Work("the heir's")
    work.gate = asyncio.Event()
    settings = {"on_in_progress": "wait", "lease_grace_s": 600, "on_abandoned": on_abandoned}
    async with rig(db_url, clock=SystemClock(), **settings) as rigged:
        call = asyncio.create_task(pay(rigged.llm, work))
        await work.began.wait()
        refused = asyncio.Event()
        rigged.ledger.after = lambda _: refused.set()
        waiter = asyncio.create_task(pay(rigged.llm, heir))
        await refused.wait()
        call.cancel()
        if on_abandoned == "retry":
            assert await waiter == "the heir's"
        else:
            with pytest.raises(LLMOutcomeUnknown) as caught:
                await waiter
            _says_what_to_do(caught.value)
        assert heir.runs == (on_abandoned == "retry")
        assert rigged.repo._live == {}


async def test_a_caller_that_goes_away_before_the_work_began_frees_the_key(db_url: str, outside: Outside):
    work = Work()
    async with rig(db_url, on_abandoned="refuse") as rigged:
        gate = rigged.ledger.gates["claim"] = asyncio.Event()
        asked = asyncio.Event()
        rigged.ledger.before = lambda name: asked.set() if name == "claim" else None
        call = asyncio.create_task(pay(rigged.llm, work))
        await asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        gate.set()
        await rigged.llm.drain()
        assert await pay(rigged.llm, work) == "receipt 1"
    assert [row["status"] for row in await outside.runs()] == ["CANCELLED", "SUCCEEDED"]


async def test_work_that_is_cancelled_while_the_database_is_away_is_left_to_its_lease(
    db_url: str, outside: Outside
):
    work, again = Work(), Work()
    work.gate = asyncio.Event()
    async with rig(db_url, clock=Beats(), on_abandoned="refuse") as rigged:
        call = asyncio.create_task(pay(rigged.llm, work))
        await work.began.wait()
        rigged.ledger.away_for = {"renew"}
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await rigged.llm.drain()
        with pytest.raises(LLMKeyInProgress):
            await pay(rigged.llm, again)
        await outside.end_leases()
        with pytest.raises(LLMOutcomeUnknown):
            await pay(rigged.llm, again)
    assert (work.runs, again.runs) == (1, 0)


async def test_work_that_is_cancelled_in_a_unit_of_work_is_unknown_to_it_too(db_url: str):
    from sqlalchemy.ext.asyncio import AsyncSession

    view, work = Outside(db_url), Work()
    work.gate = asyncio.Event()
    async with service(db_url, on_abandoned="refuse") as llm:
        async with AsyncSession(view.engine) as session:
            call = asyncio.create_task(pay(llm.joined(session), work))
            await work.began.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await session.commit()
        with pytest.raises(LLMOutcomeUnknown):
            await pay(llm, Work())
    await view.close()


async def test_while_it_runs_others_are_told_or_wait_for_its_result(db_url: str):
    work = Work()
    work.gate = asyncio.Event()
    waiting = rig(db_url, clock=SystemClock(), on_in_progress="wait")
    async with service(db_url, lease_grace_s=15) as llm, waiting as patient:
        call = asyncio.create_task(pay(llm, work))
        await work.began.wait()
        with pytest.raises(LLMKeyInProgress) as caught:
            await pay(llm, work)
        assert 0 < (caught.value.retry_after_s or 0) <= 15
        refused = asyncio.Event()
        patient.ledger.after = lambda _: refused.set()
        waiter = asyncio.create_task(pay(patient.llm, work))
        await refused.wait()
        work.gate.set()
        assert await waiter == await call == "receipt 1"
    assert work.runs == 1


class Beats(SystemClock):
    """The real clock, whose waits of a third of a lease end when they are told to."""

    __slots__ = ("due", "waits")

    def __init__(self) -> None:
        self.due = asyncio.Event()
        self.waits: list[float] = []

    async def sleep_s(self, seconds: float) -> None:
        self.waits.append(seconds)
        await self.due.wait()
        self.due.clear()


async def test_the_lease_is_renewed_while_the_work_goes_on(db_url: str, outside: Outside):
    """A run that would be taken over is not, once its lease has been renewed; a fault of the database is outlived."""
    work, clock = Work(), Beats()
    work.gate = asyncio.Event()
    async with rig(db_url, clock=clock, lease_grace_s=15) as rigged, service(db_url) as other:
        call = asyncio.create_task(pay(rigged.llm, work))
        await work.began.wait()
        (row,) = await outside.runs()
        await outside.end_lease(row["id"])
        rigged.ledger.away_for = {"renew"}
        await _beat(clock, 2)
        rigged.ledger.away_for = set()
        await _beat(clock, 3)
        with pytest.raises(LLMKeyInProgress):
            await pay(other, Work())
        work.gate.set()
        assert await call == "receipt 1"
        assert rigged.ledger.seen.count("renew") == 2
    assert set(clock.waits) == {5.0}


async def _beat(clock: Beats, waits: int) -> None:
    clock.due.set()
    while len(clock.waits) < waits:  # noqa: ASYNC110  # the renewal is a transaction of another thread
        await asyncio.sleep(0.001)


async def test_a_dead_owners_effect_is_run_again_or_left_to_a_person(db_url: str, outside: Outside):
    """`LLM_ON_ABANDONED`, as for calls."""
    work = Work()
    async with service(db_url) as llm:
        await _abandoned(db_url, outside)
        async with service(db_url, on_abandoned="refuse") as careful:
            with pytest.raises(LLMOutcomeUnknown, match="its outcome is unknown") as caught:
                await pay(careful, work)
            assert work.runs == 0
            (row,) = await outside.runs()
            assert caught.value.run_id == row["id"]
            _says_what_to_do(caught.value)
        assert await pay(llm, work) == "receipt 1"
    old, new = await outside.runs()
    assert (old["status"], new["status"], new["supersedes"]) == ("ABANDONED", "SUCCEEDED", old["id"])


def _says_what_to_do(error: LLMOutcomeUnknown) -> None:
    """An agent has no argument that forces one tool, and a tool is not paid."""
    assert "it may have been done" in error.message
    assert error.message.endswith(f"To do it again: `signalbox runs release {error.run_id}`")
    assert "force" not in error.message
    assert "paid" not in error.message


async def _abandoned(db_url: str, outside: Outside) -> None:
    """Leave a STARTED row whose lease is over and whose process does not answer."""
    work = Work()
    work.gate = asyncio.Event()
    async with rig(db_url, clock=Beats(), finish_budget_s=1, lease_grace_s=2) as rigged:
        rigged.ledger.away_for = {"finish"}
        call = asyncio.create_task(pay(rigged.llm, work))
        await work.began.wait()
        rigged.repo.abandon = _nothing  # type: ignore[method-assign]
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await outside.end_leases()


async def _nothing(*_: Any) -> Any:
    """Settle nothing, as a dead process does."""


async def test_a_late_owner_returns_what_its_successor_returned(db_url: str, outside: Outside):
    late = Work()
    late.gate = asyncio.Event()
    async with service(db_url) as llm, service(db_url) as heir:
        call = asyncio.create_task(pay(llm, late))
        await late.began.wait()
        await outside.end_leases()
        assert await pay(heir, Work("the heir's")) == "the heir's"
        late.gate.set()
        assert await call == "the heir's"
    assert [row["late"] for row in await outside.runs()] == [True, False]


async def test_a_late_failure_gives_way_to_the_successors_result(sqlite_url: str):
    late = Work(RuntimeError("too late"))
    late.gate = asyncio.Event()
    view = Outside(sqlite_url)
    async with service(sqlite_url) as llm, service(sqlite_url) as heir:
        call = asyncio.create_task(pay(llm, late))
        await late.began.wait()
        await view.end_leases()
        await pay(heir, Work("the heir's"))
        late.gate.set()
        assert await call == "the heir's"
    await view.close()


async def test_a_late_owner_without_a_successor_says_so_and_hands_its_result_over(sqlite_url: str):
    late = Work({"paid": True})
    late.gate = asyncio.Event()
    view = Outside(sqlite_url)
    async with service(sqlite_url) as llm:
        call = asyncio.create_task(pay(llm, late))
        await late.began.wait()
        (row,) = await view.runs()
        assert await llm.release(row["id"])
        late.gate.set()
        with pytest.raises(LLMFenced) as caught:
            await call
    assert caught.value.facts["answer"] == {"paid": True}
    await view.close()

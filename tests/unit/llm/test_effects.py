"""Effects: run once under a key, whoever asks again, and told apart from others under the same key."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import JsonValue

from app.core.clock import SystemClock
from app.llm.errors import (
    LLMAnswerNotStored,
    LLMError,
    LLMFenced,
    LLMInvalidRequest,
    LLMKeyConflict,
    LLMKeyInProgress,
    LLMKeyUnavailable,
    LLMLedgerUnavailable,
    LLMOutcomeUnknown,
    LLMWorkspaceMissing,
)
from app.llm.messages import Message
from app.llm.service import LLMService
from app.llm.testing.client import ScriptedClient
from app.llm.types import LLMCallContext, LLMRequest, ServedFrom
from tests.support.ledger import Outside, request
from tests.support.service import rig, service

ORDER = {"to": "Nordlys Rail", "amount": 1480.5}


@pytest.fixture
async def outside(db_url: str) -> AsyncIterator[Outside]:
    view = Outside(db_url)
    yield view
    await view.close()


class Work:
    """What leaves a trace each time."""

    def __init__(self, *returns: JsonValue | BaseException) -> None:
        self.returns = list(returns)
        self.runs = 0
        self.gate: asyncio.Event | None = None
        self.began = asyncio.Event()

    async def __call__(self) -> JsonValue:
        self.runs += 1
        self.began.set()
        if self.gate is not None:
            await self.gate.wait()
        outcome = self.returns.pop(0) if self.returns else f"receipt {self.runs}"
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


async def pay(llm: LLMService, work: Work, arguments: Any = ORDER, **how: Any) -> JsonValue:
    return await llm.once("k1", "pay", arguments, work, **how)


async def test_an_effect_is_run_once_by_whatever_process_and_returns_what_it_returned_then(
    db_url: str, outside: Outside
):
    work = Work({"receipt": [1, None, "é\x00\ud800", 2**70]})
    async with service(db_url) as llm:
        first = await pay(llm, work)
        assert await pay(llm, work, {"amount": 1480.5, "to": "Nordlys Rail"}) == first
    async with service(db_url) as llm:
        assert await pay(llm, work) == first == {"receipt": [1, None, "é\x00\ud800", 2**70]}
    assert work.runs == 1
    (row,) = await outside.runs()
    assert (row["provider"], row["model"], row["profile"], row["status"]) == (
        "tool",
        "pay",
        "tool",
        "SUCCEEDED",
    )
    assert (row["sends_noted"], row["total_tokens"], row["cost_usd"]) == (0, None, 0)
    assert (row["replayed_count"], row["cache_mode"], row["finish_reason"]) == (2, "bypass", None), "no hit"
    assert await outside.attempts(row["id"]) == []


async def test_what_comes_back_live_has_been_through_json_too(sqlite_url: str):
    work = Work((1, 2), {3: "three"})  # type: ignore[arg-type, dict-item]
    async with service(sqlite_url) as llm:
        assert await llm.once("k1", "pay", {}, work) == [1, 2]
        assert await llm.once("k2", "pay", {}, work) == {"3": "three"}


async def test_other_arguments_are_a_conflict_that_shows_both_and_where_they_differ(db_url: str):
    work = Work()
    async with service(db_url) as llm:
        await pay(llm, work)
        with pytest.raises(LLMKeyConflict) as caught:
            await pay(llm, work, {**ORDER, "amount": 99})
    assert work.runs == 1
    assert caught.value.facts["path"] == "$.arguments.amount"
    assert 'pay({"to": "Nordlys Rail", "amount": 1480.5})' in caught.value.message
    assert 'pay({"to": "Nordlys Rail", "amount": 99})' in caught.value.message


async def test_a_conflict_shows_no_secret_and_no_more_than_a_reader_takes_in(sqlite_url: str):
    async with service(sqlite_url) as llm:
        await pay(llm, Work(), {"token": "token=abcdefgh1234", "text": "x" * 1000})
        with pytest.raises(LLMKeyConflict) as caught:
            await pay(llm, Work(), {"token": "mail to anna@example.org", "text": "x" * 1000})
    assert "abcdefgh1234" not in str(caught.value)
    assert "anna@example.org" not in str(caught.value)
    assert len(caught.value.message) < 1000


async def test_another_effect_or_a_call_never_gets_the_result_of_a_key(sqlite_url: str):
    client = ScriptedClient()
    async with service(sqlite_url, client) as llm:
        await pay(llm, Work())
        with pytest.raises(LLMKeyConflict, match=r"differ first at \$\.name"):
            await llm.once("k1", "refund", ORDER, Work())
        with pytest.raises(LLMKeyConflict):
            await llm.chat(request(idempotency_key="k1"))
        await llm.chat(request(idempotency_key="k2"))
        with pytest.raises(LLMKeyConflict):
            await llm.once("k2", "pay", ORDER, Work())
        assert await llm.once("k1", "pay", ORDER, work := Work(), context=LLMCallContext(workspace_id="w2"))
    assert (client.sends, work.runs) == (1, 1)


async def test_what_raises_frees_the_key_and_is_recorded_without_secrets(db_url: str, outside: Outside):
    work = Work(RuntimeError("no luck, password: hunter2hunter2"))
    async with service(db_url) as llm:
        with pytest.raises(RuntimeError, match="no luck"):
            await pay(llm, work)
        assert await pay(llm, work) == "receipt 2"
    failed, done = await outside.runs()
    assert (failed["status"], failed["error_code"], failed["idem_slot"]) == ("FAILED", "effect_failed", None)
    assert failed["error_message"].startswith("RuntimeError: no luck")
    assert "hunter2hunter2" not in failed["error_message"]
    assert done["status"] == "SUCCEEDED"


async def test_what_did_nothing_is_recorded_as_cancelled(db_url: str, outside: Outside):
    work = Work(PermissionError())
    async with service(db_url) as llm:
        with pytest.raises(PermissionError):
            await pay(llm, work, undone=(PermissionError,))
        assert await pay(llm, work) == "receipt 2"
    assert [row["error_code"] for row in await outside.runs()] == ["cancelled", None]


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


async def test_force_runs_it_again(sqlite_url: str):
    work = Work()
    async with service(sqlite_url) as llm:
        assert await pay(llm, work) == "receipt 1"
        assert await pay(llm, work, force_new_execution=True) == "receipt 2"
        with pytest.raises(LLMKeyConflict):
            await pay(llm, work, {}, force_new_execution=True)
        assert await pay(llm, work) == "receipt 2"


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


async def test_a_result_that_the_database_did_not_take_is_replayed_from_the_spool(db_url: str):
    work = Work()
    async with rig(db_url, clock=SystemClock(), finish_budget_s=0.2) as rigged:
        rigged.ledger.away_for = {"finish"}
        assert await pay(rigged.llm, work) == "receipt 1"
        assert await pay(rigged.llm, work) == "receipt 1"
        rigged.ledger.away_for = set()
    async with service(db_url) as llm:
        assert await pay(llm, work) == "receipt 1"
    assert work.runs == 1


async def test_nothing_is_run_while_the_database_is_away(db_url: str):
    work = Work()
    async with rig(db_url) as rigged:
        rigged.ledger.away = True
        with pytest.raises(LLMLedgerUnavailable):
            await pay(rigged.llm, work)
        rigged.ledger.away = False
    assert work.runs == 0


async def test_where_only_hashes_are_kept_a_result_cannot_be_had_again(sqlite_url: str):
    work = Work()
    async with service(sqlite_url, store_payloads="hash") as llm:
        await pay(llm, work)
        with pytest.raises(LLMAnswerNotStored):
            await pay(llm, work)
        with pytest.raises(LLMKeyConflict):
            await pay(llm, work, {})
    assert work.runs == 1


async def test_results_are_encrypted_with_the_rest(sqlite_url: str):
    key, view = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", Outside(sqlite_url)
    async with service(sqlite_url, payload_key=key) as llm:
        await pay(llm, Work("receipt 1"))
        assert await pay(llm, Work("receipt 2")) == "receipt 1"
        with pytest.raises(LLMKeyConflict, match="Nordlys"):
            await pay(llm, Work(), {})
    assert {row["codec"] for row in await view.payloads()} == {2}
    async with service(sqlite_url) as llm:
        with pytest.raises(LLMKeyConflict) as caught:
            await pay(llm, Work(), {})
    assert "path" not in caught.value.facts, "nobody can read it without the key"
    await view.close()


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"arguments": {"when": object()}}, LLMInvalidRequest, "the arguments of pay cannot be recorded"),
        ({"arguments": {"n": float("nan")}}, LLMInvalidRequest, "the arguments of pay cannot be recorded"),
        ({"name": "p\nay"}, LLMInvalidRequest, "name of an effect"),
        ({"name": "p" * 256}, LLMInvalidRequest, "256 characters"),
        ({"key": "k" * 256}, LLMInvalidRequest, "key: "),
        ({"key": " "}, LLMInvalidRequest, "key: "),
        ({"key": ""}, LLMInvalidRequest, "key: an effect needs a key of its own, not ''"),
        ({"key": None}, LLMInvalidRequest, "key: an effect needs a key of its own, not None"),
        ({"arguments": [1, 2]}, LLMInvalidRequest, "the arguments of pay must be a JSON object, .* not list"),
        (
            {"arguments": None},
            LLMInvalidRequest,
            "the arguments of pay must be a JSON object, .* not NoneType",
        ),
    ],
    ids=[
        *("no JSON", "NaN", "unprintable", "long name", "long key", "blank key", "empty key", "no key"),
        *("list", "no arguments"),
    ],
)
async def test_what_cannot_be_recorded_is_refused_before_the_work(
    db_url: str, asked: dict[str, Any], error: type[LLMError], says: str
):
    work = Work()
    async with service(db_url) as llm:
        with pytest.raises(error, match=says):
            await llm.once(**{"key": "k1", "name": "pay", "arguments": ORDER, "work": work, **asked})
    assert work.runs == 0


async def test_work_whose_result_is_no_json_is_not_done_again_unasked(db_url: str, outside: Outside):
    work = Work(float("inf"))
    async with service(db_url, on_abandoned="refuse") as careful, service(db_url) as llm:
        with pytest.raises(LLMInvalidRequest, match="what pay returned cannot be recorded as JSON") as caught:
            await pay(careful, work)
        (row,) = await outside.runs()
        assert (caught.value.run_id, caught.value.possibly_paid) == (row["id"], True)
        assert f"`signalbox runs release {row['id']}`" in caught.value.message
        await careful.drain()
        for _ in range(2):
            with pytest.raises(LLMOutcomeUnknown):
                await pay(careful, work)
        assert work.runs == 1
        assert await pay(llm, work) == "receipt 2"


async def test_an_effect_needs_a_ledger_and_a_workspace(sqlite_url: str):
    async with service(sqlite_url, persist_runs=False) as llm:
        with pytest.raises(LLMKeyUnavailable):
            await pay(llm, Work())
    async with service(sqlite_url, default_workspace=None) as llm:
        with pytest.raises(LLMWorkspaceMissing):
            await pay(llm, Work())
        with llm.scope(workspace_id="w7", pipeline_run_id="p1", stage="pay"):
            await pay(llm, Work())
    view = Outside(sqlite_url)
    (row,) = await view.runs()
    assert (row["workspace_id"], row["pipeline_run_id"], row["stage"]) == ("w7", "p1", "pay")
    await view.close()


async def test_in_a_unit_of_work_it_is_the_callers_to_commit(db_url: str):
    from sqlalchemy.ext.asyncio import AsyncSession

    view, work = Outside(db_url), Work()
    async with service(db_url) as llm:
        async with AsyncSession(view.engine) as session:
            assert await pay(llm.joined(session), work) == "receipt 1"
            assert await pay(llm.joined(session), work) == "receipt 1"
            await session.rollback()
        async with AsyncSession(view.engine) as session:
            assert await pay(llm.joined(session), work) == "receipt 2"
            await session.commit()
        assert await pay(llm, work) == "receipt 2"
    await view.close()


# -- two requests under one key


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        ({}, {"text": "Today is Monday."}, "$.messages[0].content[0].text"),
        ({}, {"temperature": 0.5}, "$.temperature"),
        ({}, {"profile": "fast"}, "$.profile"),
        ({}, {"constraints": {"local_only": True}}, "$.constraints.local_only"),
    ],
    ids=["text", "sampling", "profile", "constraints"],
)
async def test_a_conflict_of_two_requests_names_the_place_and_not_the_text(
    db_url: str, first: dict[str, Any], second: dict[str, Any], path: str
):
    def asked(text: str = "Today is Sunday.", **fields: Any) -> LLMRequest:
        return LLMRequest(messages=(Message.system(text), Message.user("x")), idempotency_key="k1", **fields)

    client = ScriptedClient()
    async with service(db_url, client) as llm:
        await llm.chat(asked(**first))
        with pytest.raises(LLMKeyConflict) as caught:
            await llm.chat(asked(**second))
        with pytest.raises(LLMKeyConflict):
            async with llm.stream(asked(**second)) as stream:
                await anext(stream)
        assert (await llm.chat(asked(**first))).served_from is ServedFrom.REPLAY
    assert client.sends == 1
    assert caught.value.facts["path"] == path
    assert path in caught.value.message
    assert "Sunday" not in str(caught.value)
    assert caught.value.run_id

"""Who may execute a key: claim, replay, conflict, in progress, takeover, refusal, force, expiry, release."""

import asyncio
from dataclasses import replace

import pytest

from app.llm.errors import LLMFenced, LLMLedgerError, LLMNoCandidate
from app.llm.ports import Abandoned, Conflict, InProgress, Replay, Won
from app.llm.types import LLMConstraints
from tests.conformance.conftest import Ledger
from tests.support.ledger import again, cancellation, changed, failure, new_run, request, success

KEYED = request(idempotency_key="k1")


async def test_the_first_claim_of_a_key_wins_and_is_a_started_row(ledger: Ledger):
    """I3 (autonomous: at once; joined: from the caller's commit on)."""
    run = new_run(KEYED)
    assert await ledger.repo().create_started(run) == Won(run_id=run.run_id)

    row = await (await ledger.seen()).run(run.run_id)
    assert (row["status"], row["idem_slot"], row["idempotency_key"]) == ("STARTED", "k1", "k1")
    assert (row["execution"], row["supersedes"], row["sends_noted"]) == (1, None, 1)
    assert row["lease_until"] > row["created_at"]
    assert row["finished_at"] is None


async def test_a_second_claim_of_a_live_key_is_told_who_holds_it_and_for_how_long(ledger: Ledger):
    """I1."""
    run = new_run(KEYED, lease_s=60)
    await ledger.repo().create_started(run)
    await ledger.seen()

    held = await ledger.repo("two").create_started(again(run))
    assert isinstance(held, InProgress)
    assert held.run_id == run.run_id
    assert 0 < held.lease_left_s <= 60
    assert len(await (await ledger.seen()).runs()) == 1


async def test_a_finished_key_is_replayed_to_another_process(ledger: Ledger):
    """I5."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await one.mark_succeeded(run, success(run, "the answer"))
    await ledger.seen()

    two = ledger.repo("two")
    for state in (
        await two.create_started(again(run)),
        await two.get_by_idempotency_key("w1", "k1", run.request_sha256),
    ):
        assert isinstance(state, Replay)
        assert state.answer.run_id == run.run_id
        assert state.answer.response is not None
        assert state.answer.response.text == "the answer"
        assert state.answer.response.usage.total_tokens == 0
        assert state.answer.response.original_usage.total_tokens == 8
        assert state.answer.response.cost_usd == 0
    assert len(await (await ledger.seen()).runs()) == 1


async def test_a_free_key_holds_nothing(ledger: Ledger):
    assert await ledger.repo().get_by_idempotency_key("w1", "nobody's", "0" * 64) is None


@pytest.mark.parametrize("finished", [True, False])
async def test_another_request_under_the_same_key_is_a_conflict_and_gets_no_answer(
    ledger: Ledger, *, finished: bool
):
    """I15."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    if finished:
        await one.mark_succeeded(run, success(run))
    await ledger.seen()

    other = new_run(request("Something else", idempotency_key="k1"))
    two = ledger.repo("two")
    assert await two.create_started(other) == Conflict(run_id=run.run_id)
    assert await two.get_by_idempotency_key("w1", "k1", other.request_sha256) == Conflict(run_id=run.run_id)


async def test_constraints_are_part_of_the_request_so_they_conflict(ledger: Ledger):
    """I15: equal prompts, other intent."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    local = new_run(request(idempotency_key="k1", constraints=LLMConstraints(local_only=True)))
    assert local.prompt_sha256 == run.prompt_sha256
    assert await one.create_started(local) == Conflict(run_id=run.run_id)


async def test_a_row_of_another_fingerprint_version_is_no_conflict(ledger: Ledger):
    """An upgrade that changes the fingerprints must not turn every stored key into a conflict."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await one.mark_succeeded(run, success(run, "old"))
    await (await ledger.seen()).update(run.run_id, fingerprint_version=0, request_sha256="0" * 64)

    state = await ledger.repo("two").create_started(again(run))
    assert isinstance(state, Replay)
    assert state.answer.response is not None
    assert state.answer.response.text == "old"


async def test_a_key_of_one_workspace_is_unknown_in_another(ledger: Ledger):
    """I13."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await one.mark_succeeded(run, success(run, "secret of w1"))

    assert await one.get_by_idempotency_key("w2", "k1", run.request_sha256) is None
    mine = again(run, workspace_id="w2")
    assert await one.create_started(mine) == Won(run_id=mine.run_id)
    assert {(row["workspace_id"], row["status"]) for row in await (await ledger.seen()).runs()} == {
        ("w1", "SUCCEEDED"),
        ("w2", "STARTED"),
    }


async def test_a_key_whose_lease_is_over_is_taken_over_by_a_new_row(ledger: Ledger):
    """I7, I10: the new row names the old one; the old one tells how it ended."""
    run = new_run(KEYED)
    await ledger.repo().create_started(run)
    await (await ledger.seen()).end_lease(run.run_id)

    successor = again(run)
    assert await ledger.repo("two").create_started(successor) == Won(
        run_id=successor.run_id, execution=2, supersedes=run.run_id, from_dead=True
    )
    old, new = await (await ledger.seen()).runs()
    assert (old["status"], old["idem_slot"], old["flight_slot"]) == ("ABANDONED", None, None)
    assert old["possibly_paid"]
    assert old["finished_at"] is not None
    assert (new["status"], new["idem_slot"], new["supersedes"], new["execution"]) == (
        "STARTED",
        "k1",
        run.run_id,
        2,
    )


async def test_a_lease_that_runs_keeps_its_key(ledger: Ledger):
    """I10: nobody is abandoned before the database's clock says so."""
    run = new_run(KEYED, lease_s=3600)
    await ledger.repo().create_started(run)
    await ledger.seen()
    for owner in ("two", "three"):
        assert isinstance(await ledger.repo(owner).create_started(again(run)), InProgress)
        await ledger.seen()
    assert (await ledger.outside.run(run.run_id))["status"] == "STARTED"


async def test_an_abandoned_key_is_refused_where_the_settings_say_so(ledger: Ledger):
    run = new_run(KEYED)
    await ledger.repo().create_started(run)
    await (await ledger.seen()).end_lease(run.run_id)

    careful = ledger.repo("two", on_abandoned="refuse")
    assert await careful.create_started(again(run)) == Abandoned(run_id=run.run_id)
    assert await careful.get_by_idempotency_key("w1", "k1", run.request_sha256) == Abandoned(
        run_id=run.run_id
    )
    assert (await (await ledger.seen()).run(run.run_id))["status"] == "STARTED"


@pytest.mark.parametrize("finished", [True, False])
async def test_force_takes_the_callers_own_key_whatever_holds_it(ledger: Ledger, *, finished: bool):
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    if finished:
        await one.mark_succeeded(run, success(run))
    await ledger.seen()

    forced = again(run, force=True)
    won = await ledger.repo("two", on_abandoned="refuse").create_started(forced)
    assert won == Won(run_id=forced.run_id, execution=2, supersedes=run.run_id)
    old = await (await ledger.seen()).run(run.run_id)
    assert old["status"] == ("SUCCEEDED" if finished else "ABANDONED")
    assert old["idem_slot"] is None


async def test_force_does_not_take_a_key_of_another_request(ledger: Ledger):
    """I15: force repeats a call, it does not steal a key."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    other = replace(new_run(request("Other", idempotency_key="k1")), force=True)
    assert await one.create_started(other) == Conflict(run_id=run.run_id)


async def test_an_expired_answer_frees_its_key_and_keeps_its_row(ledger: Ledger):
    """I16: only the slot of the old row changes."""
    run = new_run(KEYED)
    one = ledger.repo(idempotency_ttl_s=3600)
    await one.create_started(run)
    await one.mark_succeeded(run, success(run))
    seen = await ledger.seen()
    assert (await seen.run(run.run_id))["expires_at"] is not None
    await seen.expire(run.run_id)
    before = await seen.run(run.run_id)

    two = ledger.repo("two")
    assert await two.get_by_idempotency_key("w1", "k1", run.request_sha256) is None
    successor = again(run)
    assert await two.create_started(successor) == Won(
        run_id=successor.run_id, execution=2, supersedes=run.run_id
    )
    assert changed(before, await (await ledger.seen()).run(run.run_id)) == {"idem_slot"}


async def test_an_answer_without_a_time_to_live_never_expires(ledger: Ledger):
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await one.mark_succeeded(run, success(run))
    assert (await (await ledger.seen()).run(run.run_id))["expires_at"] is None


@pytest.mark.parametrize("how", ["mark_failed", "mark_cancelled"])
async def test_a_run_that_failed_or_was_cancelled_frees_its_key_at_once(ledger: Ledger, how: str):
    """I10."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await getattr(one, how)(run, failure() if how == "mark_failed" else cancellation())
    row = await (await ledger.seen()).run(run.run_id)
    assert row["status"] == {"mark_failed": "FAILED", "mark_cancelled": "CANCELLED"}[how]
    assert row["idem_slot"] is None
    assert row["idempotency_key"] == "k1"

    second = again(run)
    assert await ledger.repo("two").create_started(second) == Won(run_id=second.run_id)


async def test_release_declares_an_owner_dead_once(ledger: Ledger):
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await ledger.seen()

    two = ledger.repo("two")
    assert await two.release(run.run_id, "w2") is False
    assert await two.release(run.run_id, "w1") is True
    assert await two.release(run.run_id, "w1") is False
    assert await two.release("no such run", "w1") is False
    row = await (await ledger.seen()).run(run.run_id)
    assert (row["status"], row["idem_slot"]) == ("ABANDONED", None)
    next_run = again(run)
    assert isinstance(await two.create_started(next_run), Won)


async def test_a_run_without_a_key_holds_nothing(ledger: Ledger):
    one = ledger.repo()
    for _ in range(3):
        run = new_run(request())
        assert await one.create_started(run) == Won(run_id=run.run_id)
    assert len(await (await ledger.seen()).runs(status="STARTED", idem_slot=None)) == 3


async def test_a_further_send_is_noted_on_the_row(ledger: Ledger):
    """I6."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await one.note_send(run.run_id, 2)
    assert (await (await ledger.seen()).run(run.run_id))["sends_noted"] == 2


async def test_a_fenced_owner_may_not_note_another_send(ledger: Ledger):
    """I6, I8: whoever lost the key must not send again."""
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    await (await ledger.seen()).end_lease(run.run_id)
    await ledger.repo("two").create_started(again(run))
    before = await (await ledger.seen()).runs()

    with pytest.raises(LLMFenced):
        await one.note_send(run.run_id, 2)
    assert await (await ledger.seen()).runs() == before


async def test_another_owner_cannot_note_a_send(ledger: Ledger):
    """I8: the id alone is not enough."""
    run = new_run(KEYED)
    await ledger.repo().create_started(run)
    await ledger.seen()
    with pytest.raises(LLMFenced):
        await ledger.repo("two").note_send(run.run_id, 2)
    assert (await (await ledger.seen()).run(run.run_id))["sends_noted"] == 1


async def test_a_run_that_no_candidate_could_serve_is_recorded_as_failed(ledger: Ledger):
    run = new_run(request(constraints=LLMConstraints(providers=())))
    assert not run.route.kept
    await ledger.repo().record_failed(run, LLMNoCandidate("nobody can"))
    row = await (await ledger.seen()).run(run.run_id)
    assert (row["status"], row["error_code"], row["sends_noted"]) == ("FAILED", "no_candidate", 0)
    assert row["provider"] is None
    assert "provider_not_allowed" in row["route"]


async def test_waiting_for_a_run_ends_with_its_status(ledger: Ledger):
    run = new_run(KEYED)
    one = ledger.repo()
    await one.create_started(run)
    assert await one.wait_finished(run.run_id, 0.01) is None
    await one.mark_succeeded(run, success(run))
    assert await one.wait_finished(run.run_id, 0.01) == "SUCCEEDED"
    assert await one.wait_finished("no such run", 0.01) is None


async def test_a_waiter_of_the_same_process_is_woken_by_the_finish(autonomous: Ledger):
    """No poll: the wait ends long before its time is over."""
    run = new_run(KEYED)
    one = autonomous.repo()
    await one.create_started(run)
    async with asyncio.timeout(30):
        waiter = asyncio.create_task(one.wait_finished(run.run_id, 3600))
        await one.mark_succeeded(run, success(run))
        assert await waiter == "SUCCEEDED"


@pytest.mark.parametrize("racers", [16])
async def test_of_many_racers_one_wins(autonomous: Ledger, racers: int):
    """I1, I2 at the port: half of them on another owner's connections."""
    run = new_run(KEYED)
    repos = [autonomous.repo("one"), autonomous.repo("two")]
    outcomes = await asyncio.gather(*(repos[n % 2].create_started(again(run)) for n in range(racers)))
    assert sum(isinstance(outcome, Won) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, InProgress) for outcome in outcomes) == racers - 1
    assert len(await (await autonomous.seen()).runs()) == 1


async def test_of_many_who_find_a_dead_owner_one_takes_over(autonomous: Ledger):
    """I1, I7: one crash, one further execution."""
    run = new_run(KEYED)
    await autonomous.repo("dead").create_started(run)
    await autonomous.outside.end_lease(run.run_id)
    repos = [autonomous.repo("one"), autonomous.repo("two")]
    outcomes = await asyncio.gather(*(repos[n % 2].create_started(again(run)) for n in range(12)))
    won = [outcome for outcome in outcomes if isinstance(outcome, Won)]
    assert [(each.execution, each.supersedes) for each in won] == [(2, run.run_id)]
    assert all(isinstance(outcome, Won | InProgress) for outcome in outcomes)


async def test_a_claim_without_a_database_raises_a_ledger_error(tmp_path, binding: str):
    """Fail closed: nothing was claimed, so nothing may be sent."""
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:
        empty = Ledger(f"sqlite+aiosqlite:///{tmp_path / 'empty.db'}", binding, stack)
        stack.push_async_callback(empty.outside.close)
        with pytest.raises(LLMLedgerError, match="signalbox migrate"):
            await empty.repo().create_started(new_run(KEYED))

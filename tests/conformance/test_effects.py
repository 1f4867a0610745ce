"""Effects in the ledger: claimed and finished as calls are, with a lease that their owner can move."""

from dataclasses import replace

from app.core.ids import new_id
from app.llm.fingerprint import effect_sha256
from app.llm.ports import TOOL, Abandoned, Conflict, Done, Effect, InProgress, NewRun, Replay, Won
from app.llm.types import CacheMode
from tests.conformance.conftest import Ledger
from tests.support.ledger import again, changed, new_run, request, success

PAY = Effect(name="pay", arguments={"order": 1, "to": "Ærø \x00 \ud800"})
DONE = Done(result='{"receipt":"R-1"}', latency_ms=3.0)
KEYED = request(idempotency_key="k1")


def effect_run(effect: Effect = PAY, *, workspace: str = "w1", lease_s: float = 60.0) -> NewRun:
    """Return a run of an effect as the service would hand it to the ledger, under the key `k1`."""
    sha256 = effect_sha256(effect.name, effect.arguments)
    route = replace(new_run().route, route=replace(new_run().route.route, entries=()))
    return NewRun(
        run_id=new_id(),
        workspace_id=workspace,
        request=effect,
        profile=TOOL,
        route=route,
        prompt_sha256=sha256,
        request_sha256=sha256,
        lease_s=lease_s,
        idempotency_key="k1",
        cache_mode=CacheMode.BYPASS,
    )


async def test_an_effect_is_claimed_finished_and_replayed_as_a_call_is(ledger: Ledger):
    """I1, I5, I13, I14: one holder, its result for whoever asks the same, nothing for another workspace."""
    one, two, run = ledger.repo("one"), ledger.repo("two"), effect_run()
    assert await one.create_started(run) == Won(run_id=run.run_id)
    before = await (await ledger.seen()).run(run.run_id)
    assert (before["provider"], before["model"], before["sends_noted"]) == (TOOL, "pay", 0)
    assert isinstance(await two.create_started(again(run)), InProgress)
    await ledger.seen()
    assert (await one.mark_done(run, DONE)).persisted
    after = await (await ledger.seen()).run(run.run_id)
    assert (after["status"], after["cost_usd"], after["total_tokens"]) == ("SUCCEEDED", 0, None)
    assert changed(before, after) == {
        *("status", "cost_usd", "finished_at", "latency_ms", "queue_wait_ms"),
        *("request_payload", "response_payload"),
    }
    state = await two.get_by_idempotency_key("w1", "k1", run.request_sha256)
    assert isinstance(state, Replay)
    assert (state.answer.result, state.answer.response) == (DONE.result, None)
    assert await two.get_by_idempotency_key("w2", "k1", run.request_sha256) is None
    assert isinstance(await two.create_started(again(run)), Replay)
    await ledger.seen()
    assert (await one.mark_done(run, DONE)).persisted, "an acknowledgement was lost, not the work"


async def test_calls_and_effects_under_one_key_are_conflicts(ledger: Ledger):
    """I15."""
    one, run, call = ledger.repo(), effect_run(), new_run(KEYED)
    await one.create_started(run)
    await one.mark_done(run, DONE)
    assert await one.create_started(call) == Conflict(run_id=run.run_id)
    other = effect_run(Effect(name="pay", arguments={"order": 2}))
    assert await one.create_started(other) == Conflict(run_id=run.run_id)


async def test_a_lease_is_moved_by_its_owner_while_the_run_is_started(ledger: Ledger):
    """I8, I10: only then, and by nobody else."""
    one, two, run = ledger.repo("one"), ledger.repo("two"), effect_run()
    await one.create_started(run)
    await (await ledger.seen()).end_lease(run.run_id)
    assert not await two.renew(run)
    await ledger.seen()
    assert await one.renew(run)
    await ledger.seen()
    held = await two.create_started(again(run))
    assert isinstance(held, InProgress)
    assert 50 < held.lease_left_s <= 60
    await (await ledger.seen()).end_lease(run.run_id)
    heir = again(run)
    assert await two.create_started(heir) == Won(
        run_id=heir.run_id, execution=2, supersedes=run.run_id, from_dead=True
    )
    await ledger.seen()
    assert not await one.renew(run)
    await ledger.seen()
    await two.mark_done(heir, DONE)
    await ledger.seen()
    assert not await two.renew(heir)
    await ledger.seen()
    late = await one.mark_done(run, Done(result='"late"', latency_ms=1.0))
    assert late.fenced
    assert late.winner is not None
    assert late.winner.result == DONE.result


async def test_a_run_that_its_owner_abandons_is_a_dead_owners_at_once(ledger: Ledger):
    """I7, I8: nobody else can, and a run that has ended stays as it is."""
    one, two, careful, run = (
        ledger.repo("one"),
        ledger.repo("two"),
        ledger.repo("three", on_abandoned="refuse"),
        effect_run(),
    )
    await one.create_started(run)
    await two.abandon(run)
    await ledger.seen()
    assert isinstance(await two.create_started(again(run)), InProgress)
    await ledger.seen()
    await one.abandon(run)
    await ledger.seen()
    assert await careful.create_started(again(run)) == Abandoned(run_id=run.run_id)
    await ledger.seen()
    heir = again(run)
    assert await two.create_started(heir) == Won(
        run_id=heir.run_id, execution=2, supersedes=run.run_id, from_dead=True
    )
    await ledger.seen()
    await two.mark_done(heir, DONE)
    await ledger.seen()
    await two.abandon(heir)
    await ledger.seen()
    assert isinstance(await one.create_started(again(run)), Replay)


async def test_what_a_run_was_about_is_told_within_its_workspace_once_it_is_stored(ledger: Ledger):
    """I13."""
    one, run, call = ledger.repo(), effect_run(), new_run(request(idempotency_key="k2"))
    await one.create_started(run)
    await one.create_started(call)
    assert await one.asked("w1", run.run_id) is None
    await one.mark_done(run, DONE)
    await one.mark_succeeded(call, success(call))
    assert await one.asked("w1", run.run_id) == PAY
    assert await one.asked("w1", call.run_id) == call.request
    assert await one.asked("w2", call.run_id) is None
    assert await one.asked("w1", "no such run") is None


async def test_where_only_hashes_are_kept_nothing_is_told(ledger: Ledger):
    one, run = ledger.repo(store_payloads="hash"), effect_run()
    await one.create_started(run)
    await one.mark_done(run, DONE)
    assert await one.asked("w1", run.run_id) is None
    state = await one.get_by_idempotency_key("w1", "k1", run.request_sha256)
    assert isinstance(state, Replay)
    assert state.answer.result is None

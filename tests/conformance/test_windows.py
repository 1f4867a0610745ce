"""What happens between two statements of a claim, where another process may be: each window is opened by hand."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from app.llm.errors import LLMLedgerBusy
from app.llm.persistence import ledger as protocol
from app.llm.persistence.executor import Result, Step, Steps
from app.llm.ports import FlightHeld, Replay, Won
from tests.conformance.conftest import Ledger
from tests.support.ledger import again, failure, new_run, request, success

KEYED = request(idempotency_key="k1")


async def _claim(repo: Any, run: Any, windows: dict[int, Callable[[], Awaitable[Any]]]) -> Any:
    """Claim with every statement in a transaction of its own; `windows[n]` happens before statement n."""

    def one(step: Step) -> Steps[Result]:
        return (yield step)

    steps, number = protocol.claim(run, repo.rules), 0
    step = next(steps)
    try:
        while True:
            number += 1
            if number in windows:
                await windows[number]()
            step = steps.send(await repo._executor.transaction(lambda step=step: one(step)))
    except StopIteration as end:
        return end.value


async def test_a_holder_that_finishes_under_a_takeover_keeps_its_answer(autonomous: Ledger):
    """I5, I16: its lease was over when we looked, and it was done before we could take the key."""
    one, two = autonomous.repo("one"), autonomous.repo("two")
    run = new_run(KEYED)
    await one.create_started(run)
    await autonomous.outside.end_lease(run.run_id)
    outcome = await _claim(
        two, again(run), {3: lambda: one.mark_succeeded(run, success(run, "just in time"))}
    )
    assert isinstance(outcome, Replay)
    assert outcome.answer.run_id == run.run_id
    assert (await autonomous.outside.run(run.run_id))["status"] == "SUCCEEDED"


async def test_two_takeovers_of_one_dead_owner_leave_one_row_in_charge(autonomous: Ledger):
    """I1, I7."""
    one, two = autonomous.repo("one"), autonomous.repo("two")
    run = new_run(KEYED)
    await autonomous.repo("dead").create_started(run)
    await autonomous.outside.end_lease(run.run_id)
    first, second = again(run), again(run)
    outcome = await _claim(two, second, {3: lambda: one.create_started(first)})
    assert type(outcome).__name__ == "InProgress"
    assert outcome.run_id == first.run_id
    rows = await autonomous.outside.runs()
    assert [(row["status"], row["execution"]) for row in rows] == [("ABANDONED", 1), ("STARTED", 2)]


async def test_a_key_that_is_freed_while_we_look_is_claimed(autonomous: Ledger):
    """I10."""
    one, two = autonomous.repo("one"), autonomous.repo("two")
    run = new_run(KEYED)
    await one.create_started(run)
    mine = again(run)
    assert await _claim(two, mine, {2: lambda: one.mark_failed(run, failure())}) == Won(run_id=mine.run_id)


async def test_a_flight_that_lands_while_we_look_serves_us(autonomous: Ledger):
    one, two = autonomous.repo("one"), autonomous.repo("two")
    leader = new_run(request(), flight=True, cache=True)
    await one.create_started(leader)
    outcome = await _claim(
        two, again(leader), {2: lambda: one.mark_succeeded(leader, success(leader, "landed"))}
    )
    assert type(outcome).__name__ == "Hit"
    assert outcome.answer.run_id == leader.run_id


async def test_a_flight_leader_that_finishes_under_a_takeover_keeps_its_answer(autonomous: Ledger):
    """I16."""
    one, two = autonomous.repo("one"), autonomous.repo("two")
    leader = new_run(request(), flight=True, cache=True)
    await one.create_started(leader)
    await autonomous.outside.end_lease(leader.run_id)
    outcome = await _claim(two, again(leader), {3: lambda: one.mark_succeeded(leader, success(leader))})
    assert not isinstance(outcome, FlightHeld | Won)
    assert (await autonomous.outside.run(leader.run_id))["status"] == "SUCCEEDED"


async def test_a_holder_that_changes_in_every_round_ends_in_a_busy_error(autonomous: Ledger):
    """A claim never spins for ever."""
    one, two = autonomous.repo("one"), autonomous.repo("two")
    holders = [new_run(KEYED)]
    await one.create_started(holders[0])

    async def free() -> None:
        await one.mark_failed(holders[-1], failure())

    async def take() -> None:
        holders.append(again(holders[0]))
        await one.create_started(holders[-1])

    windows = {2: free, 3: take, 4: free, 5: take, 6: free}
    with pytest.raises(LLMLedgerBusy) as caught:
        await _claim(two, again(holders[0]), windows)
    assert caught.value.retry_after_s

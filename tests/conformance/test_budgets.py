"""What runs hold and count of a budget: whatever becomes of them, the counters are the sums of their rows."""

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
import sqlalchemy as sa

from app.bootstrap import connect
from app.llm.errors import LLMBudgetExceeded, LLMFenced
from app.llm.persistence import budgets as steps
from app.llm.persistence import ledger as protocol
from app.llm.persistence.executor import Executor
from app.llm.persistence.models import LLMBudget
from app.llm.persistence.retention import prune
from app.llm.persistence.settlement import of_success
from app.llm.persistence.spool.line import from_line, to_line
from app.llm.ports import FlightHeld, Hit, Replay, StoredAnswer, Won
from tests.conformance.conftest import Ledger
from tests.support.budgets import (
    DAY,
    MONTH,
    cost,
    counted,
    counters,
    failed,
    guessed_tokens,
    held_run,
    opened,
    reservation,
)
from tests.support.ledger import Outside, again, cancellation, new_run, request
from tests.support.retention import DAY_S
from tests.support.usage import TODAY, put, run_row


@pytest.fixture
async def executor(db_url: str) -> AsyncIterator[Executor]:
    made = connect(db_url, timeout_s=5)
    yield made
    await made.close()


async def test_a_run_holds_what_it_may_cost_and_counts_what_it_cost(ledger: Ledger):
    repo, run = await opened(ledger.repo()), held_run()
    assert isinstance(await repo.create_started(run), Won)
    assert await counted(await ledger.seen()) == (0, 0, 40, 0.4, 0)
    await repo.mark_succeeded(run, cost(run))
    seen = await ledger.seen()
    assert await counted(seen) == (10, 0.1, 0, 0, 0)
    row = await seen.run(run.run_id)
    assert (row["reserved_tokens"], row["reserved_cost_usd"]) == (10, Decimal("0.1"))


async def test_a_day_and_a_month_count_the_same_run(ledger: Ledger):
    repo, run = await opened(ledger.repo()), held_run(held=reservation(limits=(DAY, MONTH)))
    await repo.create_started(run)
    seen = await ledger.seen()
    assert await counted(seen, "day") == await counted(seen, "month") == (0, 0, 40, 0.4, 0)
    await repo.mark_succeeded(run, cost(run))
    seen = await ledger.seen()
    assert await counted(seen, "day") == await counted(seen, "month") == (10, 0.1, 0, 0, 0)


async def test_a_counter_that_another_budget_needs_counts_every_run(ledger: Ledger):
    repo, run = await opened(ledger.repo()), held_run(held=reservation(limits=(MONTH,)))
    await repo.create_started(run)
    await repo.mark_succeeded(run, cost(run))
    later = held_run(held=reservation(limits=(DAY,)))
    await repo.create_started(later)
    seen = await ledger.seen()
    assert await counted(seen, "day") == await counted(seen, "month") == (10, 0.1, 40, 0.4, 0)


async def test_a_run_of_a_period_without_a_counter_is_refused(ledger: Ledger):
    """As a period begins, between the look at its counter and the claim: whoever claims looks again."""
    with pytest.raises(LLMBudgetExceeded):
        await ledger.repo().create_started(held_run())
    seen = await ledger.seen()
    assert (await seen.runs(), await counters(seen)) == ([], {})


@pytest.mark.parametrize(
    ("measure", "held"), [("tokens", reservation(61, "0.1")), ("usd", reservation(10, "0.61"))]
)
async def test_a_run_that_does_not_fit_is_refused_and_leaves_nothing(
    ledger: Ledger, measure: str, held: object
):
    repo, first, second = await opened(ledger.repo()), held_run(), held_run("k1", held=held)  # type: ignore[arg-type]
    await repo.create_started(first)
    with pytest.raises(LLMBudgetExceeded, match=r"workspace w1 has .* a day") as caught:
        await repo.create_started(second)
    facts = caught.value.facts
    assert (facts["workspace_id"], facts["per"], facts["measure"]) == ("w1", "day", measure)
    assert (facts["spent"], facts["reserved"]) == (0, 40 if measure == "tokens" else Decimal("0.4"))
    seen = await ledger.seen()
    assert [row["id"] for row in await seen.runs()] == [first.run_id]
    assert await counted(seen) == (0, 0, 40, 0.4, 0)
    assert isinstance(await repo.create_started(held_run("k1", held=reservation(60, "0.6"))), Won)


async def test_what_fits_under_the_day_and_not_under_the_month_holds_nothing_of_either(ledger: Ledger):
    month = MONTH.model_copy(update={"tokens": 30})
    repo = await opened(ledger.repo())
    with pytest.raises(LLMBudgetExceeded, match="a month"):
        await repo.create_started(held_run(held=reservation(limits=(DAY, month))))
    seen = await ledger.seen()
    assert await counted(seen, "day") == await counted(seen, "month") == (0, 0, 0, 0, 0)


async def test_each_workspace_has_its_own_counter(ledger: Ledger):
    repo = ledger.repo()
    for workspace in ("w1", "w2"):
        await opened(repo, workspace)
        await repo.create_started(held_run(held=reservation(100, 1, workspace=workspace)))
    seen = await ledger.seen()
    assert await counted(seen, workspace="w2") == await counted(seen) == (0, 0, 100, 1, 0)


async def test_what_costs_no_dollars_goes_on_when_the_dollars_are_used_up(ledger: Ledger):
    repo, run = await opened(ledger.repo()), held_run(held=reservation(10, 1))
    await repo.create_started(run)
    await repo.mark_succeeded(run, cost(run, usd="1.5"))
    assert isinstance(await repo.create_started(held_run(held=reservation(10, 0))), Won)


@pytest.mark.parametrize("how", ["refused", "cancelled"])
async def test_what_was_not_paid_is_given_back(ledger: Ledger, how: str):
    repo, run = await opened(ledger.repo()), held_run()
    await repo.create_started(run)
    if how == "refused":
        await repo.mark_failed(run, failed(run, paid=False))
    else:
        await repo.mark_cancelled(run, cancellation())
    assert await counted(await ledger.seen()) == (0, 0, 0, 0, 0)


async def test_a_send_that_may_have_been_paid_counts_as_estimated(ledger: Ledger):
    repo, run = await opened(ledger.repo()), held_run()
    await repo.create_started(run)
    await repo.mark_failed(run, failed(run, paid=True))
    assert await counted(await ledger.seen()) == (guessed_tokens(run), 0, 0, 0, 1)


async def test_a_cost_that_is_not_known_is_counted_as_unknown(ledger: Ledger):
    repo, run = await opened(ledger.repo()), held_run()
    await repo.create_started(run)
    await repo.mark_succeeded(run, cost(run, usd=None))
    assert await counted(await ledger.seen()) == (10, 0, 0, 0, 1)


async def test_a_further_send_takes_more_or_does_not_happen(ledger: Ledger):
    repo, run = await opened(ledger.repo()), held_run()
    await repo.create_started(run)
    await repo.note_send(run.run_id, 2, reservation(30, "0.3"))
    assert await counted(await ledger.seen()) == (0, 0, 70, 0.7, 0)
    with pytest.raises(LLMBudgetExceeded):
        await repo.note_send(run.run_id, 3, reservation(31, "0.1"))
    seen = await ledger.seen()
    assert (await seen.run(run.run_id))["sends_noted"] == 2
    await repo.mark_succeeded(run, cost(run))
    assert await counted(await ledger.seen()) == (10, 0.1, 0, 0, 0)


async def test_a_replay_and_a_hit_hold_nothing(ledger: Ledger):
    repo, run = await opened(ledger.repo(cache_enabled=True)), held_run("k1", cache=True)
    await repo.create_started(run)
    await repo.mark_succeeded(run, cost(run))
    full = reservation(100, 1)
    assert isinstance(await repo.create_started(again(run, reservation=full)), Replay)
    outcome = await repo.create_started(held_run(held=full, cache=True))
    assert isinstance(outcome, Hit)
    seen = await ledger.seen()
    assert await counted(seen) == (10, 0.1, 0, 0, 0)
    assert (await seen.run(outcome.run_id))["reserved_tokens"] is None


async def test_settling_twice_counts_once(ledger: Ledger):
    """I12."""
    repo, run = await opened(ledger.repo()), held_run()
    await repo.create_started(run)
    for _ in range(2):
        await repo.mark_succeeded(run, cost(run))
    assert await counted(await ledger.seen()) == (10, 0.1, 0, 0, 0)


# -- dead owners


async def test_what_a_dead_owner_held_counts_and_its_late_word_corrects_it(autonomous: Ledger):
    dead, heir = await opened(autonomous.repo("dead")), autonomous.repo("heir")
    first = held_run("k1")
    second = again(first)
    await dead.create_started(first)
    await (await autonomous.seen()).end_lease(first.run_id)
    assert isinstance(await heir.create_started(second), Won)
    assert await counted(await autonomous.seen()) == (40, 0.4, 40, 0.4, 1)
    await heir.mark_succeeded(second, cost(second))
    for _ in range(2):
        await dead.mark_succeeded(first, cost(first, 20, "0.2"))
    assert await counted(await autonomous.seen()) == (30, 0.3, 0, 0, 0)


async def test_a_takeover_that_does_not_fit_is_undone(autonomous: Ledger):
    dead, heir = await opened(autonomous.repo("dead")), autonomous.repo("heir")
    first = held_run("k1", held=reservation(60, "0.6"))
    await dead.create_started(first)
    await (await autonomous.seen()).end_lease(first.run_id)
    with pytest.raises(LLMBudgetExceeded):
        await heir.create_started(again(first))
    seen = await autonomous.seen()
    assert [row["status"] for row in await seen.runs()] == ["STARTED"]
    assert await counted(seen) == (0, 0, 60, 0.6, 0)


async def test_a_released_run_counts_what_it_held(autonomous: Ledger):
    repo, run = await opened(autonomous.repo()), held_run("k1")
    await repo.create_started(run)
    assert not await repo.release(run.run_id, "w2")
    assert await repo.release(run.run_id, "w1")
    assert not await repo.release(run.run_id, "w1")
    assert await counted(await autonomous.seen()) == (40, 0.4, 0, 0, 1)
    with pytest.raises(LLMFenced):
        await repo.note_send(run.run_id, 2, reservation(1, 0))
    assert await counted(await autonomous.seen()) == (40, 0.4, 0, 0, 1)


async def test_a_dead_leader_of_a_flight_counts_what_it_held(autonomous: Ledger):
    dead, heir = await opened(autonomous.repo("dead")), autonomous.repo("heir")
    first = held_run(flight=True)
    await dead.create_started(first)
    assert isinstance(await heir.create_started(again(first)), FlightHeld)
    await (await autonomous.seen()).end_lease(first.run_id)
    assert isinstance(await heir.create_started(again(first)), Won)
    assert await counted(await autonomous.seen()) == (40, 0.4, 40, 0.4, 1)


async def test_an_answer_that_waited_in_the_spool_counts_when_it_is_written(
    autonomous: Ledger, executor: Executor
):
    repo, run = await opened(autonomous.repo()), held_run()
    await repo.create_started(run)
    settled = of_success(run, cost(run), owner="one", key_ttl_s=None, keep=True)
    line = from_line(to_line(settled))
    assert line == settled
    for _ in range(2):
        await executor.transaction(lambda: protocol.finish(line))
    assert await counted(await autonomous.seen()) == (10, 0.1, 0, 0, 0)


async def test_what_is_pruned_stays_counted(autonomous: Ledger, executor: Executor):
    repo, run = await opened(autonomous.repo()), held_run()
    await repo.create_started(run)
    await repo.mark_succeeded(run, cost(run))
    seen = await autonomous.seen()
    await seen.age(run.run_id, 2 * DAY_S)
    assert (await prune(executor, older_than_s=DAY_S)).runs == 1
    assert await counted(seen) == (10, 0.1, 0, 0, 0)
    now = (await repo.budget_state("w1", ["day"])).now
    await executor.transaction(lambda: steps.recount("w1", "day", now))
    assert await counted(seen) == (10, 0.1, 0, 0, 0)


async def test_counters_of_months_that_are_long_over_go(autonomous: Ledger, executor: Executor):
    seen, repo = autonomous.outside, await opened(autonomous.repo())
    await opened(repo, "w2")
    now = (await counters(seen))["day"]
    async with seen.engine.begin() as connection:
        table, old = sa.insert(LLMBudget.__table__), {**now, "period": "2020-02-29"}
        await connection.execute(table, [old, {**old, "period": "2020-02"}, {**old, "workspace_id": "w2"}])
    await prune(executor, older_than_s=0, payloads_only=True)
    await prune(executor, older_than_s=0, workspace_id="w2")
    assert len(await counters(seen)) == 2
    rows = await seen.rows(sa.select(LLMBudget.__table__))
    assert sorted(row["period"] for row in rows if row["workspace_id"] == "w1")[:2] == [
        "2020-02",
        "2020-02-29",
    ]
    assert len([row for row in rows if row["workspace_id"] == "w2"]) == 2
    await prune(executor, older_than_s=0)
    assert len(await seen.rows(sa.select(LLMBudget.__table__))) == 4


# -- making counters


async def test_a_new_budget_counts_what_was_spent_before_it_was_set(autonomous: Ledger):
    seen = autonomous.outside
    await put(
        seen,
        run_row(TODAY, cost_usd=Decimal("0.3")),
        run_row(TODAY, cost_usd=None, input_tokens=20),
        run_row(TODAY, workspace_id="w2"),
        run_row(TODAY, provider="tool", cost_usd=None, input_tokens=None, output_tokens=None),
        run_row(TODAY, status="STARTED", cost_usd=None, input_tokens=None, output_tokens=None),
        run_row(),
    )
    repo = autonomous.repo()
    state = await repo.budget_state("w1", ["day", "month"])
    for per in ("day", "month"):
        assert await counted(seen, per) == (40, 0.3, 0, 0, 1)
        assert state.spent[per].spent == {"tokens": 40, "usd": Decimal("0.3")}  # type: ignore[index]
    with pytest.raises(LLMBudgetExceeded, match="40 tokens are spent"):
        await repo.create_started(held_run(held=reservation(61, 0)))


async def test_a_recount_says_what_the_rows_say(autonomous: Ledger, executor: Executor):
    repo, live, ended = await opened(autonomous.repo()), held_run(), held_run()
    for run in (live, ended):
        await repo.create_started(run)
    await repo.mark_succeeded(ended, cost(ended))
    seen = await autonomous.seen()
    before = await counted(seen)
    await put(seen, run_row(TODAY))  # of a process without the budget
    now = (await repo.budget_state("w1", ["day"])).now
    await executor.transaction(lambda: steps.recount("w1", "day", now))
    assert await counted(seen) == (before[0] + 15, before[1] + 0.5, *before[2:])


async def test_a_soft_limit_is_told_once_in_a_period(autonomous: Ledger):
    repo = autonomous.repo()
    period = (await repo.budget_state("w1", ["day"])).spent["day"].period
    told = [await repo.warn_budget("w1", period, "usd") for _ in range(2)]
    assert (told, await repo.warn_budget("w1", period, "tokens")) == ([True, False], True)
    assert (await repo.budget_state("w1", ["day"])).spent["day"].warned == {"tokens": True, "usd": True}


async def test_a_hit_that_is_known_before_the_claim_holds_nothing(ledger: Ledger):
    repo, run = await opened(ledger.repo()), held_run("k1")
    await repo.create_started(run)
    done = cost(run)
    await repo.mark_succeeded(run, done)
    stored = StoredAnswer(
        run_id=run.run_id,
        candidate_sha256=run.route.kept[0].identity,
        request_sha256=run.request_sha256,
        response=done.response,
    )
    hit = new_run(request(idempotency_key="k2"))
    assert isinstance(await repo.save_result_for_idempotency_key(hit, stored), Hit)
    assert await counted(await ledger.seen()) == (10, 0.1, 0, 0, 0)


async def test_rolled_back_with_its_caller_a_run_holds_nothing(pg_url: str, sqlite_url: str):
    from contextlib import AsyncExitStack

    for url in (pg_url, sqlite_url):
        async with AsyncExitStack() as stack:
            ledger = Ledger(url, "joined", stack)
            outside = Outside(url)
            stack.push_async_callback(outside.close)
            stack.push_async_callback(ledger.outside.close)
            repo, kept, lost = await opened(ledger.repo()), held_run(), held_run()
            await repo.create_started(kept)
            await ledger.seen()
            await repo.create_started(lost)
            await repo.mark_succeeded(lost, cost(lost))
            await ledger._sessions[0].rollback()
            assert await counted(outside) == (0, 0, 40, 0.4, 0)

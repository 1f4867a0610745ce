"""The roll-up says what the runs say: whatever ends late, is replayed, pruned or priced, whoever else rolls up."""

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal

import pytest

from app.bootstrap import connect
from app.llm.persistence import rollup, statements_usage
from app.llm.persistence.backfill import Backfilled, backfill
from app.llm.persistence.compiled import compiled
from app.llm.persistence.ledger import NOTED_AT_ONCE, add_replays
from app.llm.persistence.retention import prune
from app.llm.persistence.rollup import roll_up
from app.llm.ports import Hit, Won
from tests.conformance.conftest import Ledger
from tests.support.ledger import Outside, again, failure, new_run, request, success
from tests.support.retention import DAY_S, Paused, answered, one_text
from tests.support.usage import (
    LONG_AGO,
    TODAY,
    day_row,
    hit_row,
    put,
    put_send,
    reported,
    rolled_rows,
    run_row,
    total,
)

FLASH = {"provider": "gemini", "model": "gemini-2.5-flash"}


@pytest.fixture
async def executor(db_url: str) -> AsyncIterator[Paused]:
    made = Paused(connect(db_url, timeout_s=5))
    yield made
    await made.close()


# -- what is counted


async def test_runs_are_counted_once_however_often_they_are_rolled_up(autonomous: Ledger, executor: Paused):
    seen = autonomous.outside
    await put(seen, run_row(), run_row(), run_row(TODAY))
    first = await total(executor)
    rows = await rolled_rows(seen)
    assert (first["runs"], first["cost_usd"], first["input_tokens"]) == (3, Decimal("1.5"), 30)
    assert await total(executor) == first
    assert await rolled_rows(seen) == rows


async def test_a_cost_that_is_unknown_is_counted_as_such_and_added_to_nothing(
    autonomous: Ledger, executor: Paused
):
    await put(
        autonomous.outside,
        run_row(cost_usd=Decimal("0.000000001")),
        run_row(cost_usd=None),
        run_row(status="FAILED", cost_usd=None, possibly_paid=True, input_tokens=None, output_tokens=None),
    )
    sums = await total(executor)
    assert (sums["cost_usd"], sums["unknown_cost"]) == (Decimal("0.000000001"), 2)
    assert (sums["failed"], sums["unknown_tokens"], sums["input_tokens"]) == (1, 1, 20)


async def test_hits_and_replays_save_what_their_answer_cost(autonomous: Ledger, executor: Paused):
    await put(
        autonomous.outside,
        run_row(replayed_count=3),
        hit_row(replayed_count=1),
        hit_row(saved_cost_usd=None),
    )
    sums = await total(executor)
    assert (sums["hits"], sums["replays"], sums["unknown_saved"]) == (2, 4, 1)
    assert sums["saved_cost_usd"] == 3 * Decimal("0.5") + 2 * Decimal("0.25")
    assert (sums["saved_input_tokens"], sums["saved_output_tokens"]) == (60, 30)
    assert sums["cost_usd"] == Decimal("0.5")


async def test_a_day_begins_at_midnight_in_utc(autonomous: Ledger, executor: Paused):
    midnight = LONG_AGO.replace(hour=0)
    await put(
        autonomous.outside,
        run_row(midnight - timedelta(milliseconds=1)),
        run_row(midnight),
        run_row(midnight),
    )
    lines = await reported(executor, "day")
    assert [(line.keys["day"], line.measures.counts["runs"]) for line in lines] == [
        ((midnight - timedelta(days=1)).date().isoformat(), 1),
        (midnight.date().isoformat(), 2),
    ]


async def test_groups_add_up_to_the_whole_and_tools_are_apart(autonomous: Ledger, executor: Paused):
    await put(
        autonomous.outside,
        run_row(stage="a"),
        run_row(stage="b", workspace_id="w2"),
        run_row(provider=None, model=None, status="FAILED", cost_usd=Decimal(0)),
        run_row(provider="tool", model="pay", cost_usd=None, input_tokens=None, output_tokens=None),
    )
    lines = await reported(executor, "workspace", "stage", "model")
    told = [(*line.keys.values(), line.is_tool, line.measures.counts["runs"]) for line in lines]
    assert sorted(told) == [
        ("w1", "", "", "", False, 1),
        ("w1", "", "tool", "pay", True, 1),
        ("w1", "a", "gemini", "m", False, 1),
        ("w2", "b", "gemini", "m", False, 1),
    ]
    (tools,) = [line for line in lines if line.is_tool]
    assert (tools.measures.counts["unknown_cost"], tools.measures.counts["unknown_tokens"]) == (0, 0)
    assert (await total(executor, workspace_id="w2"))["runs"] == 1
    assert [line.measures.counts["runs"] for line in rollup.totals(lines)] == [3, 1]


async def test_latencies_are_of_answers_of_providers(autonomous: Ledger, executor: Paused):
    """SQL finds the bucket that Python finds."""
    await put(
        autonomous.outside,
        *(run_row(latency_ms=ms) for ms in (0.5, 1.0, 1.0905077326652577, 99.0, 100.0, 1e9)),
        run_row(latency_ms=5.0, status="FAILED"),
        hit_row(latency_ms=5.0),
        run_row(latency_ms=None),
    )
    assert (await total(executor))["latencies"] == "0:1 1:1 2:1 54:2 176:1"


# -- what happens later


async def test_a_run_that_ends_after_its_day_was_rolled_up_is_counted(autonomous: Ledger, executor: Paused):
    seen = autonomous.outside
    live = run_row(status="STARTED", cost_usd=None)
    await put(seen, run_row(), live)
    assert (await total(executor))["runs"] == 1
    assert (await day_row(seen, LONG_AGO))["live"] == 1
    await seen.update(live["id"], status="SUCCEEDED", finished_at=TODAY, cost_usd=Decimal(2))
    sums = await total(executor)
    assert (sums["runs"], sums["cost_usd"]) == (2, Decimal("2.5"))


async def test_a_dead_run_is_counted_when_its_key_is_taken_over_and_again_when_its_owner_tells(
    autonomous: Ledger, executor: Paused
):
    seen, repo = autonomous.outside, autonomous.repo()
    dead = new_run(request(idempotency_key="k1"))
    assert isinstance(await repo.create_started(dead), Won)
    await seen.update(dead.run_id, created_at=LONG_AGO)
    await roll_up(executor)
    await seen.end_lease(dead.run_id)
    assert isinstance(await autonomous.repo("two").create_started(again(dead)), Won)
    sums = await total(executor)
    assert (sums["runs"], sums["abandoned"], sums["unknown_cost"]) == (1, 1, 1)
    await repo.mark_succeeded(dead, success(dead, cost_usd=Decimal("0.125")))
    sums = await total(executor)
    assert (sums["abandoned"], sums["unknown_cost"], sums["cost_usd"]) == (1, 0, Decimal("0.125"))


async def test_replays_of_an_old_answer_are_counted(autonomous: Ledger, executor: Paused):
    seen = autonomous.outside
    old, new = run_row(), run_row(TODAY)
    await put(seen, old, new)
    await roll_up(executor)
    await executor.transaction(lambda: add_replays({old["id"]: 2, new["id"]: 1}))
    sums = await total(executor)
    assert (sums["replays"], sums["saved_cost_usd"]) == (3, Decimal("1.5"))


async def test_replays_of_more_runs_than_one_statement_looks_at_are_counted(
    autonomous: Ledger, executor: Paused
):
    runs = [run_row(LONG_AGO + timedelta(days=n % 3)) for n in range(2 * NOTED_AT_ONCE + 3)]
    await put(autonomous.outside, *runs)
    await roll_up(executor)
    await executor.transaction(lambda: add_replays({run["id"]: 1 for run in runs}))
    assert (await total(executor))["replays"] == len(runs)


async def test_a_run_that_appears_within_an_hour_is_counted_on_its_day(
    autonomous: Ledger, executor: Paused, monkeypatch: pytest.MonkeyPatch
):
    """A caller's transaction was open when the day was rolled up."""
    seen = autonomous.outside
    await put(seen, run_row(LONG_AGO), run_row(TODAY))
    await roll_up(executor)
    monkeypatch.setattr(rollup, "SETTLED", timedelta(days=42))
    await put(seen, run_row(LONG_AGO), run_row(LONG_AGO - timedelta(days=1)))
    assert (await total(executor))["runs"] == 4


async def test_only_days_that_changed_are_counted_again(autonomous: Ledger, executor: Paused):
    seen = autonomous.outside
    old = run_row()
    await put(seen, old, run_row(LONG_AGO - timedelta(days=3)), run_row(TODAY))
    days: list[str] = []
    await roll_up(executor, progress=days.append)
    assert len(days) == 3
    days.clear()
    await executor.transaction(lambda: add_replays({old["id"]: 1}))
    await roll_up(executor, progress=days.append)
    assert days == [TODAY.date().isoformat(), LONG_AGO.date().isoformat()]


# -- prune


@pytest.mark.parametrize("rolled", [True, False], ids=["rolled up before", "never rolled up"])
async def test_what_is_pruned_stays_counted(autonomous: Ledger, executor: Paused, *, rolled: bool):
    seen = autonomous.outside
    await put(seen, run_row(replayed_count=2), hit_row(), run_row(cost_usd=None), run_row(TODAY))
    before = await total(executor) if rolled else None
    assert (await prune(executor, older_than_s=DAY_S, batch=1)).runs == 3
    after = await total(executor)
    assert (after["runs"], after["replays"], after["unknown_cost"]) == (4, 2, 1)
    assert before in (None, after)


async def test_a_day_that_was_pruned_in_part_is_counted_right_when_it_changes(
    autonomous: Ledger, executor: Paused
):
    seen = autonomous.outside
    kept = run_row(idem_slot="k", idempotency_key="k")
    await put(seen, run_row(), run_row(), kept)
    await roll_up(executor)
    assert (await prune(executor, older_than_s=DAY_S)).runs == 2
    await executor.transaction(lambda: add_replays({kept["id"]: 4}))
    sums = await total(executor)
    assert (sums["runs"], sums["cost_usd"], sums["replays"]) == (3, Decimal("1.5"), 4)
    assert (await prune(executor, older_than_s=DAY_S, keys=True)).runs == 1
    assert await total(executor) == sums


async def test_a_histogram_of_pruned_runs_does_not_grow_for_ever(
    autonomous: Ledger, executor: Paused, monkeypatch: pytest.MonkeyPatch
):
    await put(autonomous.outside, *(run_row(latency_ms=float(1 + n % 3)) for n in range(9)))
    before = await total(executor)
    limit = 2 * len(before["latencies"])
    monkeypatch.setattr(statements_usage, "LONG_LATENCIES", statements_usage.long_latencies(limit))
    await prune(executor, older_than_s=DAY_S, batch=1)
    table = statements_usage.pruned
    (row,) = await autonomous.outside.rows(table.select())
    assert len(row["latencies"]) <= limit
    assert await total(executor) == before


# -- at the same time


async def test_what_changes_between_counting_and_writing_is_counted_next_time(
    autonomous: Ledger, executor: Paused
):
    seen = autonomous.outside
    old = run_row()
    await put(seen, old)
    await roll_up(executor)
    await executor.transaction(lambda: add_replays({old["id"]: 1}))
    other = Paused(connect(autonomous.url, timeout_s=5))

    async def replay_again() -> None:
        executor.before = None
        await other.transaction(lambda: add_replays({old["id"]: 1}))

    executor.before = replay_again
    await roll_up(executor)
    await other.close()
    assert (await total(executor))["replays"] == 2


async def test_who_counted_earlier_does_not_write_over_who_counted_later(
    autonomous: Ledger, executor: Paused
):
    seen = autonomous.outside
    await put(seen, run_row(TODAY))
    await roll_up(executor)
    await put(seen, run_row(TODAY))
    other = Paused(connect(autonomous.url, timeout_s=5))

    async def overtake() -> None:
        executor.before = None
        await put(seen, run_row(TODAY))
        await roll_up(other)

    executor.before = overtake
    await roll_up(executor)
    await other.close()
    assert [row["runs"] for row in await rolled_rows(seen)] == [3]


async def test_a_roll_up_that_dies_leaves_the_day_as_it_was(autonomous: Ledger, executor: Paused):
    """One statement reads a report, so nobody meets half of a day."""
    seen = autonomous.outside
    await put(seen, *(run_row(TODAY, stage=name) for name in "abc"))
    await roll_up(executor)
    before = await rolled_rows(seen)
    await put(seen, *(run_row(TODAY, stage=name) for name in "abcd"))
    statements = 0

    def die_after_the_third() -> None:
        nonlocal statements
        statements += 1
        if statements == 3:
            raise KeyError("dies here")

    executor.between = die_after_the_third
    with pytest.raises(KeyError, match="dies here"):
        await roll_up(executor)
    assert await rolled_rows(seen) == before
    executor.between = lambda: None
    assert (await total(executor))["runs"] == 7


# -- backfill


async def test_a_backfill_prices_what_was_unknown_and_the_report_shows_it(
    autonomous: Ledger, executor: Paused
):
    seen = autonomous.outside
    unknown, known = run_row(cost_usd=None, **FLASH), run_row(cost_usd=Decimal(9), **FLASH)
    hit = hit_row(saved_cost_usd=None, saved_input_tokens=2_000_000, saved_output_tokens=0, **FLASH)
    nobody = run_row(cost_usd=None, model="no-such-model")
    await put(seen, unknown, known, hit, nobody)
    for run in (unknown, known, nobody):
        await put_send(seen, run)
    before = await total(executor)
    assert before["unknown_cost"] == 2
    foretold = await backfill(executor, dry_run=True)
    assert foretold == Backfilled(runs=1, sends=1, hits=1, unknown=1)
    assert (await seen.run(unknown["id"]))["cost_usd"] is None
    assert await backfill(executor) == foretold
    row = await seen.run(unknown["id"])
    assert row["cost_usd"] == Decimal("0.3")
    assert row["price_version"].startswith("genai-prices ")
    assert (await seen.run(known["id"]))["cost_usd"] == 9
    assert (await seen.attempts(unknown["id"]))[0]["cost_usd"] == Decimal("0.3")
    sums = await total(executor)
    assert (sums["unknown_cost"], sums["cost_usd"]) == (1, before["cost_usd"] + Decimal("0.3"))
    assert (sums["unknown_saved"], sums["saved_cost_usd"]) == (0, Decimal("0.6"))
    assert await backfill(executor) == Backfilled(unknown=1)


async def test_a_hit_whose_prompt_had_sound_stays_unknown(autonomous: Ledger, executor: Paused):
    """Sound has a price of its own, and how many tokens were sound nobody knows."""
    hit = hit_row(saved_cost_usd=None, saved_input_tokens=2_000_000, needs='{"audio": true}', **FLASH)
    await put(autonomous.outside, hit)
    assert await backfill(executor) == Backfilled(unknown=1)


async def test_a_run_gets_its_cost_only_when_every_send_has_one(autonomous: Ledger, executor: Paused):
    seen = autonomous.outside
    run = run_row(cost_usd=None, **FLASH)
    await put(seen, run)
    await put_send(seen, run, 1, status="FAILED", possibly_paid=True, input_tokens=None)
    await put_send(seen, run, 2, cached_input_tokens=1_000_000)
    done = await backfill(executor)
    assert done == Backfilled(sends=1, unknown=1)
    first, second = await seen.attempts(run["id"])
    assert (first["cost_usd"], second["cost_usd"]) == (None, Decimal("0.03"))
    assert (await seen.run(run["id"]))["cost_usd"] is None


async def test_a_run_whose_owner_died_stays_unknown(autonomous: Ledger, executor: Paused):
    """Nobody told how many sends it had, or how they ended."""
    seen = autonomous.outside
    run = run_row(status="ABANDONED", cost_usd=None, late=False, **FLASH)
    await put(seen, run)
    await put_send(seen, run)
    assert (await backfill(executor)).runs == 0
    assert (await seen.run(run["id"]))["cost_usd"] is None


async def test_only_runs_of_the_time_that_is_asked_for_are_priced(autonomous: Ledger, executor: Paused):
    seen = autonomous.outside
    old, new = run_row(cost_usd=None, **FLASH), run_row(TODAY, cost_usd=None, **FLASH)
    await put(seen, old, new)
    for run in (old, new):
        await put_send(seen, run)
    assert (await backfill(executor, since=TODAY - timedelta(days=1))).runs == 1
    assert (await seen.run(old["id"]))["cost_usd"] is None


# -- what the ledger writes


async def test_costs_are_exact_to_the_nano_in_rows_and_sums(autonomous: Ledger, executor: Paused):
    run = one_text()
    repo, seen = autonomous.repo(), autonomous.outside
    await repo.create_started(run)
    cost = Decimal("531701.701925027")
    await repo.mark_succeeded(run, success(run, cost_usd=cost))
    assert (await seen.run(run.run_id))["cost_usd"] == cost
    await put(seen, run_row(TODAY, cost_usd=Decimal("0.000000001")))
    assert (await total(executor))["cost_usd"] == cost + Decimal("0.000000001")


async def test_a_hit_is_written_with_what_it_saved(autonomous: Ledger, executor: Paused):
    source = one_text(cache=True)
    await answered(autonomous, source, cache_enabled=True)
    hit = again(source)
    assert isinstance(await autonomous.repo(cache_enabled=True).create_started(hit), Hit)
    row = await autonomous.outside.run(hit.run_id)
    assert (row["saved_input_tokens"], row["saved_cost_usd"], row["price_version"]) == (3, 0, "local")


async def test_a_failure_is_a_failure_and_a_cancellation_is_none(autonomous: Ledger, executor: Paused):
    repo = autonomous.repo()
    for end in (repo.mark_failed, repo.mark_cancelled):
        run = one_text(str(end))
        await repo.create_started(run)
        await end(run, failure())
    sums = await total(executor)
    assert (sums["runs"], sums["failed"], sums["cancelled"]) == (2, 1, 1)


async def test_runs_are_found_by_index_and_no_statement_reads_them_all(sqlite_url: str):
    seen = Outside(sqlite_url)
    span = {"day": "2026-01-01", "begin": LONG_AGO, "end": TODAY}
    statements = (
        statements_usage.DAY_OF_RUNS,
        statements_usage.NEXT_DAY,
        statements_usage.CHANGED_DAYS,
        statements_usage.end_of_page("", 10).statement,
        statements_usage.unpriced("", "z", None).statement,
    )
    plans = []
    async with seen.engine.connect() as connection:
        for statement in statements:
            text, values = compiled(statement, "sqlite").bind(span)
            plans.append(str((await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)).all()))
    await seen.close()
    assert [plan for plan in plans if "SCAN llm_runs'" in plan] == []
    assert "ix_llm_runs_workspace_created (workspace_id=? AND created_at>? AND created_at<?)" in plans[0]
    assert "ix_llm_runs_lease" in plans[2]

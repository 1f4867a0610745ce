"""The roll-up of runs into daily usage: a year's report adds up some thousand rows, not ten million.

A day is counted as a whole, from a snapshot, and replaced as a whole, so no reader ever meets half of one. Counted
again are the last days, and of older ones those of which something changed since: a run ended late, was accounted for
late, was replayed, or got its price. What a prune deletes it adds to a table beside, in the same transaction; a day is
that and the runs which are there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any

from app.llm.persistence import statements_usage as sql
from app.llm.persistence.executor import Executor, Step, Steps
from app.llm.persistence.usage import GROUP, Key, Measures, grouped, read_latencies, written_latencies

SETTLED = timedelta(hours=1)
"""After that a run shows that was created: no transaction, of a caller's either, may stay open for longer."""
ROUNDS = 5
"""Times that a day is counted when others roll it up at the same time."""
_FIRST_DAY = date(1970, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportLine:
    """Sums over the runs that have these values in common."""

    keys: Mapping[str, str]
    """By name of the column; an empty text where the runs have none."""
    is_tool: bool
    measures: Measures


async def roll_up(executor: Executor, *, progress: Callable[[str], None] | None = None) -> int:
    """Count every day that is not counted as it is now; return how many were.

    Several processes may do so at once, beside callers and a prune. A process that is killed leaves whole days.

    Args:
        executor: The ledger's connections.
        progress: Called with each day, as `2026-01-31`, once it is written.

    Raises:
        LLMLedgerError: The database is away or locked.
    """
    days = 0
    begin = await _begin(executor)
    while (day := await _next_day(executor, begin)) is not None:
        days += await _roll(executor, day, progress)
        begin = day + timedelta(days=1)
    for row in (await executor.read(Step(sql.CHANGED_DAYS, {}))).rows:
        days += await _roll(executor, date.fromisoformat(row["day"]), progress)
    return days


async def report(
    executor: Executor,
    *,
    by: Sequence[str],
    first: date,
    last: date,
    where: Mapping[str, str],
) -> list[ReportLine]:
    """Return the sums of some days, both ends included, as they were rolled up; ordered by their keys.

    Args:
        executor: The ledger's connections.
        by: Of `statements_usage.BY`; none gives one line.
        first: A day in UTC.
        last: As above.
        where: Values that columns of the roll-up must have.
    """
    rows = (await executor.read(sql.summed(by, first, last, where))).rows
    names = [name for name in ("day", *GROUP) if rows and name in rows[0]]
    return [
        ReportLine(
            keys={name: str(row[name]) for name in names},
            is_tool=bool(row["is_tool"]),
            measures=Measures.of_row(row),
        )
        for row in rows
    ]


def totals(lines: Sequence[ReportLine]) -> list[ReportLine]:
    """Return the sums over all lines: of calls, and of tools, where there were any."""
    sums: dict[bool, Measures] = {}
    for line in lines:
        sums.setdefault(line.is_tool, Measures()).add(line.measures)
    return [ReportLine(keys={}, is_tool=is_tool, measures=sums[is_tool]) for is_tool in sorted(sums)]


def keep_usage(gone: Sequence[Mapping[str, Any]]) -> Steps[None]:
    """Keep what runs counted that this transaction deletes; each is a row of `PRUNED_COLUMNS`."""
    groups = sorted(grouped(gone).items())
    days = sorted({key[0] for key, _ in groups})
    if not days:
        return
    yield Step(sql.NOTE_DAY, [{"day": day} for day in days])
    yield Step(sql.ADD_PRUNED, [_columns(key) | measures.row() for key, measures in groups])
    for day in days:
        if long := (yield Step(sql.LONG_LATENCIES, {"day": day})).rows:
            yield Step(sql.SHORTEN_LATENCIES, [_shortened(row) for row in long])


async def _begin(executor: Executor) -> date:
    """Return the first day that has to be looked at: days before it were counted when all their runs could be seen."""
    latest = (await executor.read(Step(sql.LATEST_DAY, {}))).first
    if latest is None:
        return _FIRST_DAY
    rolled_at: datetime = latest["rolled_at"]
    sure = (rolled_at - SETTLED).astimezone(UTC).date()
    return min(sure, date.fromisoformat(latest["day"]) + timedelta(days=1))


async def _next_day(executor: Executor, begin: date) -> date | None:
    """Return the first day from `begin` on in which runs were created."""
    found: datetime | None = (await executor.read(Step(sql.NEXT_DAY, {"begin": _midnight(begin)}))).rows[0][
        "at"
    ]
    return None if found is None else found.astimezone(UTC).date()


async def _roll(executor: Executor, day: date, progress: Callable[[str], None] | None) -> bool:
    """Count a day until the count is written; False if others kept writing it."""
    named = {"day": day.isoformat()}
    for _ in range(ROUNDS):
        # the state first: whatever happens after it has been read is not taken for counted
        state = (await executor.read(Step(sql.DAY_STATE, named))).rows[0]
        span = {"begin": _midnight(day), "end": _midnight(day + timedelta(days=1))}
        found = (await executor.read(Step(sql.DAY_OF_RUNS, named | span))).rows
        if await executor.transaction(partial(_write, named["day"], state, found)):
            if progress is not None:
                progress(named["day"])
            return True
    return False


def _write(day: str, state: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Steps[bool]:
    groups, live = _folded(day, found)
    values = {"day": day, "seen": state["seen"] or 0, "live": live, "now": state["now"]}
    if state["rolls"] is None:
        mine = yield Step(sql.FIRST_ROLL, values)
    else:
        mine = yield Step(sql.NEXT_ROLL, {**values, "rolls": state["rolls"]})
    if mine.rowcount != 1:
        return False
    yield Step(sql.CLEAR_DAY, {"day": day})
    if rows := [_columns(key) | measures.row() for key, measures in sorted(groups.items())]:
        yield Step(sql.ADD_USAGE, rows)
    return True


def _folded(day: str, found: Sequence[Mapping[str, Any]]) -> tuple[dict[Key, Measures], int]:
    """Return the groups of a day, and how many of its runs have not ended."""
    groups: dict[Key, Measures] = {}
    live = 0
    for row in found:
        if row["bucket"] == sql.LIVE:
            live += row["runs"]
            continue
        measures = Measures.of_row(row)
        if row["bucket"] >= 0:
            measures.latencies[row["bucket"]] += row["runs"]
        groups.setdefault((day, *(row[name] for name in GROUP)), Measures()).add(measures)
    return groups, live


def _columns(key: Key) -> dict[str, Any]:
    return dict(zip(("day", *GROUP), key, strict=True))


def _shortened(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "latencies": written_latencies(read_latencies(row["latencies"]))}


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)

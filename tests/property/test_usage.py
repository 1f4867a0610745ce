"""Random histories of a ledger: whatever happened in whatever order, the report is the sum over all runs there ever were.

The model below keeps every run for ever and adds them up in a few plain lines, without the code of the roll-up.
"""

import math
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from app.bootstrap import connect
from app.llm.persistence.executor import Executor
from app.llm.persistence.ledger import add_replays
from app.llm.persistence.retention import prune
from app.llm.persistence.rollup import ReportLine, roll_up
from app.llm.persistence.usage import LATENCY_ERROR
from tests.support.ledger import Outside
from tests.support.rounds import times
from tests.support.usage import LONG_AGO, TODAY, hit_row, put, reported, run_row

HISTORIES, STEPS = times(12, in_short=5), 30
DAYS = (LONG_AGO, LONG_AGO + timedelta(days=1), TODAY - timedelta(days=1), TODAY)


@dataclass
class History:
    """A ledger and what should be true of it."""

    seen: Outside
    executor: Executor
    chance: random.Random
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """All that there ever were."""
    there: set[str] = field(default_factory=set)
    """Those that were not pruned."""
    rolled: bool = False

    async def create(self) -> None:
        chance = self.chance
        row = chance.choice((run_row, run_row, hit_row))(
            TODAY if self.rolled else chance.choice(DAYS),  # as rows appear: those of old days were there
            workspace_id=chance.choice(("w1", "w2")),
            stage=chance.choice((None, "s")),
            **chance.choice(({"provider": "tool", "model": "t"}, {"model": "m"}, {"model": "n"})),
        )
        if row["source_run_id"] is None:
            row |= {
                "status": chance.choice(
                    ("SUCCEEDED", "SUCCEEDED", "FAILED", "CANCELLED", "ABANDONED", "STARTED")
                ),
                "cost_usd": chance.choice((None, Decimal(chance.randrange(10**12)).scaleb(-9))),
                "input_tokens": chance.choice((None, chance.randrange(10**6), 2**40)),
                "latency_ms": chance.choice((None, chance.uniform(1, 10**6))),
                "possibly_paid": chance.random() < 0.5,
            }
        if row["status"] == "STARTED":
            row["finished_at"] = None
        await put(self.seen, row)
        self.runs[row["id"]] = row
        self.there.add(row["id"])

    async def end(self) -> None:
        live = [key for key in self.there if self.runs[key]["status"] == "STARTED"]
        if live:
            await self._change(
                self.chance.choice(sorted(live)),
                status=self.chance.choice(("SUCCEEDED", "FAILED", "ABANDONED")),
                finished_at=TODAY,
                latency_ms=5.0,
            )

    async def replay(self) -> None:
        ended = sorted(key for key in self.there if self.runs[key]["status"] == "SUCCEEDED")
        counts = {key: self.chance.randint(1, 3) for key in self.chance.sample(ended, min(2, len(ended)))}
        if counts:
            await self.executor.transaction(lambda: add_replays(counts))
        for key, count in counts.items():
            self.runs[key]["replayed_count"] += count

    async def prune(self) -> None:
        age_s = self.chance.choice((86_400.0 * 5, 3600.0 * 12))
        workspace = self.chance.choice((None, "w1"))
        await prune(
            self.executor, older_than_s=age_s, workspace_id=workspace, batch=self.chance.choice((1, 3, None))
        )
        self.there = {row["id"] for row in await self.seen.runs()}

    async def roll_up(self) -> None:
        await roll_up(self.executor)
        self.rolled = True

    async def _change(self, key: str, **values: Any) -> None:
        await self.seen.update(key, **values)
        self.runs[key] |= values


@pytest.fixture
async def executor(db_url: str) -> AsyncIterator[Executor]:
    made = connect(db_url, timeout_s=5)
    yield made
    await made.close()


@pytest.mark.parametrize("seed", range(HISTORIES))
async def test_the_report_is_the_sum_over_all_runs_there_ever_were(
    db_url: str, executor: Executor, seed: int
):
    seen = Outside(db_url)
    history = History(seen, executor, random.Random(seed))  # noqa: S311  # a history to be told again
    deeds = (*[history.create] * 4, history.end, history.replay, history.prune, history.roll_up)
    try:
        for _ in range(STEPS):
            await history.chance.choice(deeds)()
        ended = [run for run in history.runs.values() if run["status"] != "STARTED"]
        for names in ((), ("day",), ("workspace", "model"), ("day", "stage", "provider")):
            _compare(await reported(executor, *names), names, ended)
    finally:
        await seen.close()


def _compare(lines: list[ReportLine], names: tuple[str, ...], runs: list[dict[str, Any]]) -> None:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["provider"] == "tool", *_keys(run, names)), []).append(run)
    assert {(line.is_tool, *line.keys.values()) for line in lines} == groups.keys()
    for line in lines:
        group = groups[line.is_tool, *line.keys.values()]
        told = line.measures.row()
        told.pop("latencies")
        assert told == _sums(group, is_tool=line.is_tool)
        answered = sorted(
            run["latency_ms"]
            for run in group
            if run["status"] == "SUCCEEDED" and run["source_run_id"] is None and run["latency_ms"] is not None
        )
        for share in (0.5, 0.95):
            percentile = line.measures.percentile_ms(share)
            exact = answered[math.ceil(share * len(answered)) - 1] if answered else None
            assert (percentile is None) == (exact is None)
            if percentile is not None and exact is not None:
                assert abs(percentile - exact) <= exact * (LATENCY_ERROR + 1e-9)


def _keys(run: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    columns = {
        "day": [run["created_at"].date().isoformat()],
        "workspace": [run["workspace_id"]],
        "stage": [run["stage"] or ""],
        "provider": [run["provider"]],
        "model": [run["provider"], run["model"]],
    }
    return [value for name in names for value in columns[name]]


def _sums(runs: list[dict[str, Any]], *, is_tool: bool) -> dict[str, Any]:
    sums: dict[str, Any] = dict.fromkeys(
        ("runs", "failed", "cancelled", "abandoned", "hits", "replays", "input_tokens", "output_tokens"), 0
    )
    sums |= dict.fromkeys(
        ("unknown_tokens", "unknown_cost", "saved_input_tokens", "saved_output_tokens", "unknown_saved"), 0
    )
    sums |= {"cost_usd": Decimal(0), "saved_cost_usd": Decimal(0)}
    for run in runs:
        sums["runs"] += 1
        for status in ("failed", "cancelled", "abandoned"):
            sums[status] += run["status"] == status.upper()
        read = None if (run["input_tokens"] or 0) > 2**31 else run["input_tokens"]
        sums["input_tokens"] += read or 0
        sums["output_tokens"] += run["output_tokens"] or 0
        sums["cost_usd"] += run["cost_usd"] or 0
        hit, replays = run["source_run_id"] is not None, run["replayed_count"]
        sums["hits"] += hit
        sums["replays"] += replays
        answer = (read, run["output_tokens"], run["cost_usd"])
        if hit:
            answer = (run["saved_input_tokens"], run["saved_output_tokens"], run["saved_cost_usd"])
        for name, value in zip(
            ("saved_input_tokens", "saved_output_tokens", "saved_cost_usd"), answer, strict=True
        ):
            sums[name] += (value or 0) * (replays + hit)
        if is_tool:
            continue
        sums["unknown_cost"] += run["cost_usd"] is None
        paid_for = run["status"] == "SUCCEEDED" or run["possibly_paid"]
        sums["unknown_tokens"] += paid_for and (read is None or run["output_tokens"] is None)
        sums["unknown_saved"] += (replays + hit) * (answer[2] is None)
    return sums

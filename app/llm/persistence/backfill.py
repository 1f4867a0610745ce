"""Prices for what was recorded without one: a package with more prices makes old costs known, and never changes one.

It goes through the runs in small pages, each written in one transaction, and may be stopped and begun again.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

from app.llm.persistence import statements_usage as sql
from app.llm.persistence.executor import Executor, Step, Steps
from app.llm.persistence.ledger import note_changes
from app.llm.persistence.models import ABANDONED
from app.llm.persistence.settlement import storable_cost
from app.llm.pricing import FREE, Price, price_of
from app.llm.types import TokenUsage

PAGE = 500
"""Runs that one read looks at, and that one transaction writes at most."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfilled:
    """What has a cost now, and what has none still."""

    runs: int = 0
    sends: int = 0
    hits: int = 0
    """Runs that were answered from the cache, whose saving is known now."""
    unknown: int = 0
    """Runs and hits for which there is no price, or no token count."""

    def __add__(self, other: "Backfilled") -> "Backfilled":
        runs, sends, hits, unknown = map(sum, zip(astuple(self), astuple(other), strict=True))
        return Backfilled(runs=runs, sends=sends, hits=hits, unknown=unknown)


@dataclass(frozen=True, slots=True)
class _Prices:
    """Rows of the three updates, for one page."""

    sends: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    hits: list[dict[str, Any]]
    unknown: int

    @property
    def counted(self) -> Backfilled:
        """What they are, before anything is written."""
        return Backfilled(
            runs=len(self.runs), sends=len(self.sends), hits=len(self.hits), unknown=self.unknown
        )


async def backfill(
    executor: Executor,
    *,
    since: datetime | None = None,
    dry_run: bool = False,
    progress: Callable[[Backfilled], None] | None = None,
) -> Backfilled:
    """Fill in costs that are NULL, as of the time of each send; one that is known stays as it is.

    Args:
        executor: The ledger's connections.
        since: Only runs that were created from then on; None: all.
        dry_run: Only count.
        progress: Called after every page with what was filled in so far.

    Raises:
        LLMLedgerError: The database is away or locked; whole pages are written, and no half one.
    """
    done, after = Backfilled(), ""
    while (last := (await executor.read(sql.end_of_page(after, PAGE))).rows[0]["last"]) is not None:
        prices = await _page(executor, after, last, since)
        if dry_run or not (prices.sends or prices.runs or prices.hits):
            done += prices.counted
        else:
            done += await executor.transaction(partial(_write, prices))
        after = last
        if progress is not None:
            progress(done)
    return done


async def _page(executor: Executor, after: str, last: str, since: datetime | None) -> _Prices:
    runs = (await executor.read(sql.unpriced(after, last, since))).rows
    sends: dict[str, list[Row]] = defaultdict(list)
    if runs:
        for send in (await executor.read(sql.sends_of([run["id"] for run in runs]))).rows:
            sends[send["run_id"]].append(send)
    return _priced(runs, sends)


def _write(prices: _Prices) -> Steps[Backfilled]:
    written = []
    for statement, rows in (
        (sql.PRICE_SEND, prices.sends),
        (sql.PRICE_RUN, prices.runs),
        (sql.PRICE_HIT, prices.hits),
    ):
        written.append((yield Step(statement, rows)).rowcount if rows else 0)
    yield from note_changes(sorted({row["id"] for row in (*prices.runs, *prices.hits)}))
    sends, runs, hits = written
    return Backfilled(runs=runs, sends=sends, hits=hits, unknown=prices.unknown)


def _priced(runs: Sequence[Row], sends: Mapping[str, Sequence[Row]]) -> _Prices:
    found = _Prices([], [], [], sum(1 for run in runs if run["cost_usd"] is None))
    filled = 0
    for run in runs:
        if run["cost_usd"] is None:
            filled += _price_run(run, sends.get(run["id"], ()), found)
    hits = [run for run in runs if run["source_run_id"] is not None and run["saved_cost_usd"] is None]
    for run in hits:
        _price_hit(run, found)
    unknown = found.unknown - filled + len(hits) - len(found.hits)
    return _Prices(found.sends, found.runs, found.hits, unknown)


def _price_run(run: Row, sends: Sequence[Row], found: _Prices) -> bool:
    """Add what is known of a run's sends; return whether all of it is, and the run has its sum."""
    costs: list[Decimal | None] = []
    version = None
    with_sound = _with_sound(run)
    for send in sends:
        cost_usd, price = send["cost_usd"], price_of(send["provider"], send["model"])
        if cost_usd is None:
            cost_usd = _cost(price, send, send["started_at"], with_sound=with_sound)
            if cost_usd is not None:
                found.sends.append({"id": run["id"], "ordinal": send["ordinal"], "cost_usd": cost_usd})
        costs.append(cost_usd)
        version = price.version
    sent_unseen = run["status"] == ABANDONED and not run["late"]  # nobody told how its sends ended
    if sent_unseen or not costs or None in costs:
        return False
    total = storable_cost(sum((cost for cost in costs if cost is not None), FREE))
    if total is None:
        return False
    found.runs.append({"id": run["id"], "cost_usd": total, "price_version": version})
    return True


def _with_sound(run: Row) -> bool:
    return bool(json.loads(run["needs"]).get("audio"))


def _price_hit(run: Row, found: _Prices) -> None:
    price = price_of(run["provider"], run["model"])
    usage = TokenUsage(input_tokens=run["saved_input_tokens"], output_tokens=run["saved_output_tokens"])
    cost_usd = storable_cost(price.cost_usd(usage, run["finished_at"], with_sound=_with_sound(run)))
    if cost_usd is not None:
        found.hits.append({"id": run["id"], "cost_usd": cost_usd, "price_version": price.version})


def _cost(price: Price, send: Row, at: datetime, *, with_sound: bool) -> Decimal | None:
    usage = TokenUsage(
        input_tokens=send["input_tokens"],
        output_tokens=send["output_tokens"],
        cached_input_tokens=send["cached_input_tokens"],
    )
    return storable_cost(price.cost_usd(usage, at, with_sound=with_sound))

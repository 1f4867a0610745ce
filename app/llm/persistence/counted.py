"""The whole ledger in numbers, as a scrape wants them: ended runs out of the roll-up, live ones as they are now."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import sqlalchemy as sa

from app.db.base import seconds_until
from app.llm.persistence import rollup
from app.llm.persistence.executor import Executor, Step
from app.llm.persistence.rollup import ReportLine
from app.llm.persistence.statements import runs

_LIVE = (
    sa.select(
        sa.func.count().label("runs"),
        sa.func.count(sa.case((seconds_until(runs.c.lease_until) <= 0, 1))).label("over"),
    )
    .select_from(runs)
    .where(runs.c.finished_at.is_(None))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a ledger holds."""

    lines: Sequence[ReportLine]
    """Of ended runs, one for each provider and model, since its first day."""
    held: int
    """Live runs whose lease lasts."""
    over: int
    """Live runs whose owner is dead."""


async def counted(executor: Executor) -> Counted:
    """Count a ledger: the days that changed, as a report does, then the sums of all.

    Raises:
        LLMLedgerError: The database is away or locked.
    """
    await rollup.roll_up(executor)
    lines = await rollup.report(executor, by=("model",), first=date.min, last=date.max, where={})
    live = (await executor.read(Step(_LIVE, {}))).rows[0]
    return Counted(lines=lines, held=live["runs"] - live["over"], over=live["over"])

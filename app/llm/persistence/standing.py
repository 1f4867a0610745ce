"""How the budgets stand: for whoever wants to see them, and a count from the rows for whoever doubts the counters."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from app.llm.budgets import Budgets, Spent, period_of
from app.llm.fields.budgets import Budget, Per
from app.llm.persistence import budgets as steps
from app.llm.persistence import statements_budgets as sql
from app.llm.persistence.executor import Executor, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One budget of one workspace in the present period."""

    workspace_id: str
    budget: Budget
    spent: Spent
    now: datetime
    """By the database's clock."""


async def standings(executor: Executor, budgets: Budgets, workspace_id: str | None = None) -> list[Standing]:
    """Return how each budget stands, ordered by workspace: of those that are named, and of those that have called.

    Raises:
        LLMLedgerError: The database is away.
    """
    rows = (await executor.read(Step(sql.ALL_PRESENT, {}))).rows
    now = rows[0]["now"]
    found = {
        (str(row["workspace_id"]), steps.per_of(row)): steps.spent_of(row)
        for row in rows
        if row["period"] is not None
    }
    names = {*budgets.by_name, *(name for name, _ in found)}
    wanted = [workspace_id] if workspace_id is not None else sorted(names)
    return [
        Standing(
            workspace_id=name,
            budget=budget,
            spent=found.get((name, budget.per)) or await _counted(executor, name, budget.per, now),
            now=now,
        )
        for name in wanted
        for budget in budgets.limits_of(name)
    ]


async def recount(executor: Executor, found: Sequence[Standing]) -> None:
    """Make the counters anew of the runs that are there and of what was pruned; callers may go on meanwhile.

    Raises:
        LLMLedgerError: The database is away or locked; whole counters are made, and no half one.
    """
    for each in found:
        await executor.transaction(partial(steps.recount, each.workspace_id, each.budget.per, each.now))


async def _counted(executor: Executor, workspace_id: str, per: Per, now: datetime) -> Spent:
    """Return what a counter that nobody has made yet would say."""
    rows = (await executor.read(steps.counted(workspace_id, per, now))).rows
    return steps.spent_of(
        {"period": period_of(per, now), "warned_tokens": False, "warned_usd": False, **rows[0]}
    )

"""The protocol of budgets, as steps of the ledger's transactions: what a run holds is taken, raised, and counted.

A counter is the sum of what its runs hold and count, in the same transactions in which their rows say so. Whoever locks
counters locks the run before, and the day before the month.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from app.llm.budgets import (
    MEASURES,
    PERIOD_CHARS,
    BudgetState,
    Charge,
    Estimate,
    Measure,
    Reservation,
    Spent,
    lacking,
    period_begin,
    period_end,
    period_of,
    refused,
)
from app.llm.fields.budgets import Budget, Per
from app.llm.persistence import statements_budgets as sql
from app.llm.persistence.executor import Step, Steps
from app.llm.pricing import FREE

Row = Mapping[str, Any]


def reserve(run_id: str, wanted: Reservation) -> Steps[None]:
    """Take a reservation that the run's row holds already.

    Raises:
        LLMBudgetExceeded: It does not fit, or its period has just begun and has no counter yet; the transaction has to
            be undone.
    """
    limits = {budget.per: budget for budget in wanted.limits}
    for per, chars in PERIOD_CHARS.items():
        budget = limits.get(per)  # a counter that somebody else made counts it as well
        values = {
            "workspace_id": wanted.workspace_id, "id": run_id, "chars": chars, "tokens": wanted.tokens, "usd": wanted.usd,
            "tokens_limit": budget and budget.tokens, "usd_limit": budget and budget.usd,
        }  # fmt: skip
        taken = yield Step(sql.RESERVE, values, shares=wanted.workspace_id)
        if not taken.rowcount and budget is not None:
            raise (yield from _refusal(run_id, wanted, budget))


def raised(run_id: str, more: Reservation) -> Steps[None]:
    """Take more for a run.

    Raises:
        LLMBudgetExceeded: As above.
    """
    yield from reserve(run_id, more)
    yield Step(sql.HOLD, {"id": run_id, "tokens": more.tokens, "usd": more.usd})


def settled(workspace_id: str, run_id: str, charge: Charge) -> Steps[None]:
    """Count what a run cost that has ended in this transaction, and free what it held."""
    yield from _moved(sql.SETTLE, workspace_id, run_id, charge)


def corrected(workspace_id: str, run_id: str, charge: Charge) -> Steps[None]:
    """Count what an abandoned run cost, whose owner was only late."""
    yield from _moved(sql.CORRECT, workspace_id, run_id, charge)


def abandoned(run_id: str) -> Steps[None]:
    """Count what a run held whose owner was declared dead in this transaction: it may have been paid."""
    yield Step(sql.ABANDON, [{"id": run_id, "chars": chars} for chars in PERIOD_CHARS.values()])


def state(workspace_id: str) -> Step:
    """Return the look-up of a workspace's present counters."""
    return Step(sql.STATE, {"workspace_id": workspace_id}, brief=True)


def state_of(rows: Sequence[Row]) -> BudgetState:
    """Return what that look-up found."""
    found = (row for row in rows if row["period"] is not None)
    return BudgetState(now=rows[0]["now"], spent={per_of(row): spent_of(row) for row in found})


def spent_of(row: Row) -> Spent:
    """Return a counter."""
    return Spent(
        period=str(row["period"]),
        spent={name: FREE + row[f"spent_{name}"] for name in MEASURES},
        reserved={name: FREE + row[f"reserved_{name}"] for name in MEASURES},
        unknown_costs=row["unknown_costs"],
        warned={name: bool(row[f"warned_{name}"]) for name in MEASURES},
    )


def per_of(row: Row) -> Per:
    """Return what a counter counts."""
    return next(per for per, chars in PERIOD_CHARS.items() if chars == len(row["period"]))


def open_counters(workspace_id: str, pers: Sequence[Per], now: datetime) -> Steps[None]:
    """Make the counters of these periods where they are missing, of the runs that are there."""
    yield sql.ALONE
    for per in pers:
        yield _opened(workspace_id, per, now)


def warn(workspace_id: str, period: str, measure: Measure) -> Steps[bool]:
    """Note that a soft limit was told of; False where somebody else has done so."""
    told = yield Step(sql.WARN[measure], {"workspace_id": workspace_id, "period": period}, final=True)
    return told.rowcount == 1


def recount(workspace_id: str, per: Per, now: datetime) -> Steps[None]:
    """Make a counter anew of the runs that are there and of what was pruned."""
    yield sql.ALONE
    yield _opened(workspace_id, per, now)
    values = _period_values(workspace_id, per, now)
    yield Step(sql.LOCK, values)
    sums = (yield counted(workspace_id, per, now)).rows[0]
    yield Step(sql.RECOUNT, {**values, **sums})


def counted(workspace_id: str, per: Per, at: datetime) -> Step:
    """Return the look-up of what a counter would say if it were made now."""
    return Step(sql.COUNTED, _period_values(workspace_id, per, at))


def _moved(statement: Any, workspace_id: str, run_id: str, charge: Charge) -> Steps[None]:
    values = {"workspace_id": workspace_id, "id": run_id, "tokens": charge.tokens, "usd": charge.usd}
    yield Step(
        statement,
        [{**values, "unknown": charge.unknown, "chars": chars} for chars in PERIOD_CHARS.values()],
        shares=workspace_id,
    )
    yield Step(sql.CHARGE, values)


def _opened(workspace_id: str, per: Per, at: datetime) -> Step:
    return Step(sql.OPEN, _period_values(workspace_id, per, at))


def _period_values(workspace_id: str, per: Per, at: datetime) -> dict[str, Any]:
    return {
        "workspace_id": workspace_id,
        "period": period_of(per, at),
        "begin": period_begin(per, at),
        "end": period_end(per, at),
    }


def _refusal(run_id: str, wanted: Reservation, budget: Budget) -> Steps[Exception]:
    created_at = (yield Step(sql.CREATED_AT, {"id": run_id})).rows[0]["created_at"]
    period = period_of(budget.per, created_at)
    where = {"workspace_id": wanted.workspace_id, "period": period}
    row = (yield Step(sql.COUNTER, where)).first
    spent = spent_of({**dict.fromkeys(sql.COLUMNS, 0), "period": period} if row is None else row)
    state = BudgetState(now=created_at, spent={budget.per: spent})
    found = lacking((budget,), state, Estimate(wanted.tokens, wanted.usd))
    measure: Measure = found[1] if found else "tokens"
    return refused(
        wanted.workspace_id,
        budget,
        measure,
        spent=spent,
        now=created_at,
        needed=FREE + (wanted.tokens if measure == "tokens" else wanted.usd),
    )

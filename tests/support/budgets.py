"""Runs under a budget, how they end, and the counters as others see them."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from app.llm.budgets import Budgets, Reservation, estimate
from app.llm.errors import LLMTimeout, LLMUnavailable
from app.llm.fields.budgets import Budget
from app.llm.persistence.models import LLMBudget
from app.llm.ports import Failure, NewRun, Success
from app.llm.settings import load_settings
from app.llm.types import TokenUsage
from tests.support.ledger import Outside, attempt, new_run, request, response

PRICED = "gemini:gemini-2.5-flash"
"""A model that has a price."""
DAY = Budget(workspace="*", per="day", tokens=100, usd=Decimal(1))
MONTH = Budget(workspace="*", per="month", tokens=1000, usd=Decimal(2))


def reservation(
    tokens: int = 40, usd: Any = "0.4", limits: Sequence[Budget] = (DAY,), workspace: str = "w1"
) -> Reservation:
    return Reservation(workspace_id=workspace, limits=tuple(limits), tokens=tokens, usd=Decimal(usd))


def held_run(key: str | None = None, held: Reservation | None = None, **fields: Any) -> NewRun:
    """Return a run to claim that holds something."""
    held = held or reservation()
    return new_run(request(idempotency_key=key), workspace=held.workspace_id, reservation=held, **fields)


def cost(run: NewRun, tokens: int = 10, usd: Any = "0.1") -> Success:
    """Return an answer that took so much."""
    dollars = None if usd is None else Decimal(usd)
    usage = TokenUsage(input_tokens=tokens - 1, output_tokens=1)
    return Success(
        response=response(run, usage=usage, original_usage=usage, cost_usd=dollars),
        candidate_sha256=run.route.kept[0].identity,
        attempts=[attempt(candidate=run.route.kept[0], usage=usage, cost_usd=dollars)],
        queue_wait_ms=0.0,
    )


def failed(run: NewRun, *, paid: bool) -> Failure:
    """Return the end of a run whose send was refused, or timed out."""
    error: Any = LLMTimeout("late", possibly_paid=True) if paid else LLMUnavailable("refused")
    send = attempt(
        candidate=run.route.kept[0],
        status="FAILED",
        error_code=error.code,
        possibly_paid=paid,
        usage=TokenUsage(),
        cost_usd=None if paid else Decimal(0),
    )
    return Failure(error=error, attempts=[send], queue_wait_ms=0.0, latency_ms=1.0)


async def opened(repo: Any, workspace: str = "w1") -> Any:
    """Return the repo, with counters for the workspace's day and month."""
    await repo.budget_state(workspace, ["day", "month"])
    return repo


def guessed_tokens(run: NewRun) -> int:
    """Return what a send of it counts whose tokens nobody told."""
    return estimate(run.route, run.route.kept[0]).tokens


async def counters(seen: Outside, workspace: str = "w1") -> dict[str, dict[str, Any]]:
    """Return the counters of a workspace, `day` and `month`."""
    table = LLMBudget.__table__
    rows = await seen.rows(sa.select(table).where(table.c.workspace_id == workspace))
    return {"day" if len(row["period"]) > 7 else "month": row for row in rows}


async def counted(seen: Outside, per: str = "day", workspace: str = "w1") -> tuple[Any, ...]:
    """Return spent tokens and dollars, reserved tokens and dollars, unknown costs."""
    row = (await counters(seen, workspace))[per]
    names = ("spent_tokens", "spent_usd", "reserved_tokens", "reserved_usd", "unknown_costs")
    return tuple(float(row[name]) if name.endswith("usd") else row[name] for name in names)


def limits(**values: Any) -> Budgets:
    return Budgets.from_settings(load_settings(**values))

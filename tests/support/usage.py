"""Finished runs by plain SQL, on whatever day; and reports of them as plain values."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from app.core.ids import new_id
from app.llm.persistence.executor import Executor
from app.llm.persistence.models import LLMAttempt, LLMRun, LLMUsage, LLMUsageDay
from app.llm.persistence.rollup import ReportLine, report, roll_up
from tests.support.ledger import Outside

SHA = "a" * 64
TODAY = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
LONG_AGO = TODAY - timedelta(days=40)


def run_row(created_at: datetime = LONG_AGO, **columns: Any) -> dict[str, Any]:
    """Return a run that a provider answered and was paid for."""
    ended = None if columns.get("status") == "STARTED" else created_at + timedelta(seconds=1)
    return {
        "id": new_id(), "workspace_id": "w1", "stage": None, "prompt_sha256": SHA, "request_sha256": SHA,
        "fingerprint_version": 1, "profile": "fast", "provider": "gemini", "model": "m", "status": "SUCCEEDED",
        "cache_mode": "use", "owner": "o", "route": "[]", "needs": "{}", "metadata": "{}", "created_at": created_at,
        "finished_at": ended, "lease_until": created_at, "input_tokens": 10, "output_tokens": 5, "cost_usd": Decimal("0.5"),
        "latency_ms": 100.0, "possibly_paid": False, "replayed_count": 0, "source_run_id": None,
        "saved_input_tokens": None, "saved_output_tokens": None, "saved_cost_usd": None, **columns,
    }  # fmt: skip


def hit_row(created_at: datetime = LONG_AGO, **columns: Any) -> dict[str, Any]:
    """Return a run that was answered from the cache."""
    values = {
        "source_run_id": "gone", "cost_usd": Decimal(0), "input_tokens": 0, "output_tokens": 0, "latency_ms": None,
        "saved_input_tokens": 10, "saved_output_tokens": 5, "saved_cost_usd": Decimal("0.25"),
    }  # fmt: skip
    return run_row(created_at, **{**values, **columns})


async def put(seen: Outside, *rows: dict[str, Any]) -> None:
    async with seen.engine.begin() as connection:
        for row in rows:
            await connection.execute(sa.insert(LLMRun.__table__).values(**row))


async def put_send(seen: Outside, run: dict[str, Any], ordinal: int = 1, **columns: Any) -> None:
    values = {
        "run_id": run["id"], "ordinal": ordinal, "provider": run["provider"], "model": run["model"],
        "candidate_sha256": SHA, "status": "SUCCEEDED", "started_at": run["created_at"],
        "finished_at": run["created_at"], "input_tokens": 1_000_000, "output_tokens": 0, **columns,
    }  # fmt: skip
    async with seen.engine.begin() as connection:
        await connection.execute(sa.insert(LLMAttempt.__table__).values(**values))


async def reported(executor: Executor, *by: str, **where: str) -> list[ReportLine]:
    """Roll up what is missing, then return the report over all days."""
    await roll_up(executor)
    return await report(executor, by=by, first=date(2000, 1, 1), last=date(2999, 1, 1), where=where)


async def total(executor: Executor, **where: str) -> dict[str, Any]:
    """Return the sums over all calls, as the columns of the roll-up."""
    (line,) = [line for line in await reported(executor, **where) if not line.is_tool]
    return line.measures.row()


async def rolled_rows(seen: Outside) -> list[dict[str, Any]]:
    table = LLMUsage.__table__
    return await seen.rows(sa.select(table).order_by(*table.primary_key.columns))


async def day_row(seen: Outside, day: datetime) -> dict[str, Any]:
    table = LLMUsageDay.__table__
    (row,) = await seen.rows(sa.select(table).where(table.c.day == day.date().isoformat()))
    return row

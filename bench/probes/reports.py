"""A year's report over many runs: how long the first roll-up takes, how long the next one, how long the report."""

import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

from app.bootstrap import open_executor
from app.llm.persistence.executor import Executor
from app.llm.persistence.rollup import report, roll_up
from bench.cases.ours import settings
from bench.world import World

DAYS = 365

_RUN = """
INSERT INTO llm_runs (id, workspace_id, stage, prompt_sha256, request_sha256, fingerprint_version, profile, provider, model,
  status, cache_mode, owner, route, needs, metadata, input_tokens, output_tokens, total_tokens, cost_usd, latency_ms,
  created_at, finished_at)
SELECT {id}, 'tenant-' || (n % 5), 'stage-' || (n / 5 % 3), {sha}, {sha}, 1, 'fast', 'gemini', 'model-' || (n / 15 % 2),
  CASE WHEN n % 50 = 0 THEN 'FAILED' ELSE 'SUCCEEDED' END, 'use', 'filler', '[]', '{{}}', '{{}}', 260, 80, 340, {cost},
  10.0 + n % 997, {then}, {then}
FROM {numbers}
"""
_SQLITE = {
    "id": "printf('00000000-%04x-7%03x-8000-%012x', n >> 16, n & 4095, n)",
    "sha": "lower(hex(randomblob(32)))",
    "cost": "n % 1000",
    "then": "strftime('%Y-%m-%d %H:%M:%f', 'now', printf('-%.3f seconds', ({rows} - n) * {step_s}))",
    "numbers": "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {rows}) SELECT n FROM s)",
}
_POSTGRES = {
    "id": "format('00000000-%s-7%s-8000-%s', lpad(to_hex(n >> 16), 4, '0'), lpad(to_hex(n & 4095), 3, '0'), lpad(to_hex(n), 12, '0'))",
    "sha": "encode(sha256(('a' || n)::bytea), 'hex')",
    "cost": "(n % 1000) / 1e9",
    "then": "now() - ({rows} - n) * {step_s} * interval '1 second'",
    "numbers": "generate_series(1, {rows}) AS n",
}


async def on_sqlite(world: World, rows: int) -> dict[str, Any]:
    """Return seconds on SQLite, for so many runs spread over a year."""
    url = world.file(f"report-{rows}")
    executor = await open_executor(settings(world, database_url=url))
    try:
        with closing(sqlite3.connect(Path(str(make_url(url).database)), isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=OFF")  # of this connection only
            connection.execute(_filling(_SQLITE, rows))
        return await _timed(executor, rows)
    finally:
        await executor.close()


async def on_postgres(world: World, rows: int) -> dict[str, Any]:
    """Return the same on PostgreSQL."""
    async with world.database() as url:
        executor = await open_executor(settings(world, database_url=url))
        try:
            dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
            connection = await asyncpg.connect(dsn)
            await connection.execute(_filling(_POSTGRES, rows))
            await connection.execute("ANALYZE")
            await connection.close()
            return await _timed(executor, rows)
        finally:
            await executor.close()


def _filling(dialect: dict[str, str], rows: int) -> str:
    numbers = {"rows": rows, "step_s": DAYS * 86_400 / rows}
    return _RUN.format(**{name: text.format(**numbers) for name, text in dialect.items()})


async def _timed(executor: Executor, rows: int) -> dict[str, Any]:
    last = datetime.now(UTC).date()
    figures: dict[str, Any] = {"rows": rows}
    for name in ("first_roll_up_s", "next_roll_up_s"):
        began_s = time.perf_counter()
        figures[f"{name.removesuffix('_s')}_days"] = await roll_up(executor)
        figures[name] = time.perf_counter() - began_s
    for by in ("day", "model"):
        began_s = time.perf_counter()
        lines = await report(executor, by=(by,), first=last - timedelta(days=DAYS), last=last, where={})
        figures[f"report_by_{by}_s"] = time.perf_counter() - began_s
        figures[f"lines_by_{by}"] = len(lines)
        if sum(line.measures.counts["runs"] for line in lines) != rows:
            raise RuntimeError(f"the report does not count {rows} runs")
    return figures

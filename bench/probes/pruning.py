"""Pruning beside a caller: rows per second, memory, and the longest that the caller had to wait."""

import asyncio
import os
import time
from itertools import count
from typing import Any

from app.bootstrap import open_executor
from app.llm.persistence.retention import Pruned
from app.llm.persistence.retention import prune as prune_ledger
from app.llm.testing.client import ScriptedClient
from bench.cases.ours import NO_MEMORY, request, service, settings
from bench.measure import rss_mb
from bench.probes.filled import fill
from bench.world import World

OLDER_THAN_S = 86_400.0
PAUSE_S = 0.002


async def on_sqlite(world: World, rows: int) -> dict[str, Any]:
    """Return what pruning `rows` old runs took on SQLite, and what a writer beside it noticed."""
    return await _beside_a_writer(world, world.file(f"prune-{rows}"), rows)


async def on_postgres(world: World, rows: int) -> dict[str, Any]:
    """Return the same on PostgreSQL."""
    async with world.database() as url:
        return await _beside_a_writer(world, url, rows)


async def _beside_a_writer(world: World, url: str, rows: int) -> dict[str, Any]:
    client = ScriptedClient()
    async with service(world, client=client, database_url=url, **NO_MEMORY) as llm:
        await fill(url, 1, rows, keyed=False)
        await asyncio.to_thread(os.sync)  # or the disk would still be busy with what filled the tables
        waits_s: list[float] = []

        async def write() -> None:
            for number in count(1):
                began_s = time.perf_counter()
                await llm.chat(request(number))
                waits_s.append(time.perf_counter() - began_s)
                client.sent.clear()  # it would keep every request, and its memory would be counted
                await asyncio.sleep(PAUSE_S)

        writer = asyncio.create_task(write())
        figures = await _pruned(world, url)
        writer.cancel()
        done = await asyncio.gather(writer, return_exceptions=True)
        if not isinstance(done[0], asyncio.CancelledError):
            raise RuntimeError(f"the writer beside it failed: {done[0]}")  # noqa: TRY004  # no type is checked here
    if figures["runs"] != rows:
        raise RuntimeError(f"{figures['runs']} runs were pruned, not {rows}")
    return {**figures, "writes": len(waits_s), "worst_write_s": max(waits_s)}


async def _pruned(world: World, url: str) -> dict[str, Any]:
    sizes_mb: list[float] = []

    def note(_: Pruned) -> None:
        sizes_mb.append(rss_mb())

    executor = await open_executor(settings(world, database_url=url))
    try:
        began_s = time.perf_counter()
        pruned = await prune_ledger(executor, older_than_s=OLDER_THAN_S, progress=note)
        took_s = time.perf_counter() - began_s
    finally:
        await executor.close()
    settled = sizes_mb[len(sizes_mb) // 10 :]
    return {
        "runs": pruned.runs,
        "payloads": pruned.payloads,
        "rows_per_s": (pruned.runs + pruned.attempts + pruned.payloads) / took_s,
        "took_s": took_s,
        "rss_mb": [min(settled), max(settled)],
        "rss_growth": max(settled) / settled[0],
    }

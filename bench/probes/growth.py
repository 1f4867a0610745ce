"""Claim and finish, alone: what a durable call costs beyond the same call unpersisted, as the tables grow."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from itertools import count
from statistics import fmean, median
from typing import Any

from app.llm import LLMService
from app.llm.testing.client import ScriptedClient
from bench.cases.ours import request, service
from bench.measure import freeze
from bench.probes.filled import fill, stored_bytes
from bench.world import World

SIZES = (1_000, 100_000, 1_000_000)
CALLS = 1_000
ROUNDS = 4
_numbers = count(10_000_000)

Database = Callable[[int], AbstractAsyncContextManager[str]]
"""Opens a database for tables of this size; gives its URL."""


async def on_sqlite(world: World) -> dict[str, Any]:
    """Return medians and means at each size, on SQLite."""

    @asynccontextmanager
    async def database(size: int) -> AsyncIterator[str]:
        yield world.file(f"growth-{size}")

    return await _grown(world, database)


async def on_postgres(world: World) -> dict[str, Any]:
    """Return the same, on PostgreSQL."""
    return await _grown(world, lambda _: world.database())


async def _grown(world: World, database: Database) -> dict[str, Any]:
    """Measure small and large tables in turn, round after round, so that noise meets them alike."""
    async with AsyncExitStack() as stack:
        services = {0: await stack.enter_async_context(_service(world, persist_runs=False))}
        url = ""
        for size in SIZES:
            url = await stack.enter_async_context(database(size))
            async with _service(world, database_url=url):
                await fill(url, 1, size)  # into the tables that its start-up made
            services[size] = await stack.enter_async_context(_service(world, database_url=url))
        for size, llm in services.items():
            await _round(llm, CALLS // 10, key=size > 0)
        freeze()
        rounds: dict[int, list[list[float]]] = {size: [] for size in services}
        for _ in range(ROUNDS):
            for size, llm in services.items():
                rounds[size].append(await _round(llm, CALLS, key=size > 0))
        figures: dict[str, Any] = {"rows": list(SIZES), "bytes_per_run": await stored_bytes(url) / SIZES[-1]}
    for name, of in (("median", median), ("mean", fmean)):
        best_us = {size: min(map(of, found)) for size, found in rounds.items()}
        figures |= {f"{name}_{size}_us": best_us[size] - best_us[0] for size in SIZES}
    return figures


def _service(world: World, **values: Any) -> AbstractAsyncContextManager[LLMService]:
    return service(world, client=ScriptedClient(), **values)


async def _round(llm: LLMService, calls: int, *, key: bool) -> list[float]:
    """Return the CPU microseconds of each call, the writer's thread included."""
    costs_us = []
    for number in (next(_numbers) for _ in range(calls)):
        asked = request(number, key=key)
        began_s = time.process_time()
        await llm.chat(asked)
        costs_us.append((time.process_time() - began_s) * 1e6)
    return costs_us

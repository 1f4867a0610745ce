"""Claim and finish, alone: what a durable call costs beyond the same call unpersisted, as the tables grow."""

import time
from itertools import count
from statistics import fmean, median
from typing import Any

from app.llm import LLMService
from app.llm.testing.client import ScriptedClient
from bench.cases.ours import request, service
from bench.measure import freeze
from bench.probes.filled import fill
from bench.world import World

SIZES = (1_000, 100_000, 1_000_000)
CALLS = 1_500
ROUNDS = 3
_numbers = count(10_000_000)


async def on_sqlite(world: World) -> dict[str, Any]:
    """Return medians and means at each size, on SQLite."""
    return await _grown(world, world.file("growth"))


async def on_postgres(world: World) -> dict[str, Any]:
    """Return the same, on PostgreSQL."""
    async with world.database() as url:
        return await _grown(world, url)


async def _grown(world: World, url: str) -> dict[str, Any]:
    async with service(world, client=ScriptedClient(), persist_runs=False) as unpersisted:
        base = await _best(unpersisted, key=False)
    figures: dict[str, Any] = {"rows": list(SIZES)}
    filled = 0
    for size in SIZES:
        async with service(world, client=ScriptedClient(), database_url=url):
            pass  # the tables are there
        await fill(url, filled + 1, size)
        filled = size
        async with service(world, client=ScriptedClient(), database_url=url) as llm:
            cost = await _best(llm, key=True)
        figures |= {f"{name}_{size}_us": cost[name] - base[name] for name in cost}
    return figures


async def _best(llm: LLMService, *, key: bool) -> dict[str, float]:
    """Return the median and the mean of CPU microseconds, each of its best round."""
    await _round(llm, CALLS // 5, key=key)
    freeze()
    rounds = [await _round(llm, CALLS, key=key) for _ in range(ROUNDS)]
    return {"median": min(map(median, rounds)), "mean": min(map(fmean, rounds))}


async def _round(llm: LLMService, calls: int, *, key: bool) -> list[float]:
    costs_us = []
    for number in (next(_numbers) for _ in range(calls)):
        asked = request(number, key=key)
        began_s = time.process_time()
        await llm.chat(asked)
        costs_us.append((time.process_time() - began_s) * 1e6)
    return costs_us

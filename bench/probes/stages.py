"""A thousand stages in flight at once in one process: what they take, while each has its request on the wire."""

import asyncio
import resource
import time
from typing import Any

from bench.cases.ours import request, service
from bench.machine import allow_many_files
from bench.measure import freeze, rss_mb
from bench.stub import CROWD, CROWD_SIZE
from bench.world import World


async def on_sqlite(world: World) -> dict[str, Any]:
    """Return the memory and the time of a crowd of stages on SQLite."""
    return await _in_flight(world, world.file("stages"))


async def on_postgres(world: World) -> dict[str, Any]:
    """Return the same on PostgreSQL."""
    async with world.database() as url:
        return await _in_flight(world, url)


async def _in_flight(world: World, url: str) -> dict[str, Any]:
    """Run the stages; the stub answers none of them before all have arrived."""
    allow_many_files()
    slots = {"concurrency_limit": CROWD_SIZE, "ollama_concurrency_limit": CROWD_SIZE}
    async with service(world, database_url=url, profile_fast=f"ollama:{CROWD}", **slots) as llm:
        freeze()
        warm_mb, began_s = rss_mb(), time.perf_counter()

        async def stage(number: int) -> None:
            with llm.scope(pipeline_run_id=f"run-{number // 3}", stage="bench"):
                answer = await llm.chat(request(number))
            if not answer.text or not answer.persisted:
                raise RuntimeError(f"stage {number} has no answer, or no row")

        await asyncio.gather(*(stage(number) for number in range(CROWD_SIZE)))
        took_s = time.perf_counter() - began_s
    most_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "stages": CROWD_SIZE,
        "took_s": took_s,
        "warm_mb": warm_mb,
        "most_mb": most_mb,
        "kb_per_stage": (most_mb - warm_mb) * 1024 / CROWD_SIZE,
    }

"""A hundred thousand durable calls in one process: does memory stay, is every call one row?"""

import asyncio
import sqlite3
import time
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from bench.cases.ours import MEMORY, request, service
from bench.measure import freeze, rss_mb
from bench.world import World

CALLS = 100_000
IN_FLIGHT = 64
SAMPLES = 40
FULL_AFTER = 0.25
"""Share of the calls after which the memory of answers is full: it is given room for fewer than that."""
MEMORY_BYTES = 8 * 2**20


async def soak(world: World) -> dict[str, Any]:
    """Return errors, rows, and the memory from when the LRU was full to the end."""
    url = world.file("soak")
    errors: list[str] = []
    samples: list[tuple[int, float]] = []
    numbers = count(1)
    async with service(world, database_url=url, **{MEMORY: MEMORY_BYTES}) as llm:

        async def worker() -> None:
            while (number := next(numbers)) <= CALLS:
                try:
                    await llm.chat(request(number))
                except Exception as error:  # noqa: BLE001  # counted: the target is none
                    errors.append(f"{type(error).__name__}: {error}"[:300])
                if number == CALLS // 50:
                    freeze()
                if not number % (CALLS // SAMPLES):
                    samples.append((number, rss_mb()))

        began_s = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        took_s = time.perf_counter() - began_s
    settled = [size for number, size in samples if number >= CALLS * FULL_AFTER]
    middle, rows = (min(settled) + max(settled)) / 2, _rows(url)
    return {
        "calls": CALLS,
        "calls_per_s": CALLS / took_s,
        "errors": len(errors),
        "error": errors[0] if errors else None,
        "rows": rows,
        "rows_off": abs(rows - CALLS),
        "rss_mb": samples,
        "rss_swing": (max(settled) - min(settled)) / 2 / middle,
    }


def _rows(url: str) -> int:
    with closing(sqlite3.connect(Path(str(make_url(url).database)))) as connection:
        return int(
            connection.execute("SELECT count(*) FROM llm_runs WHERE status = 'SUCCEEDED'").fetchone()[0]
        )

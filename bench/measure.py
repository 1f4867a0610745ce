"""One cell: a case, so many calls in flight, for so many seconds. Fixed by time, because counts favour the slow."""

import asyncio
import gc
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from app.core.heap import settle_heap

Call = Callable[[int], Awaitable[None]]
"""Makes the call of this number, which is never used twice; raises when the answer is not what it should be."""

WARM_UP_S = 0.15
SENTINEL_S = 0.005
"""Seconds between two looks at the loop; a stall is how much later than asked a look came."""
YIELD_EVERY = 32
"""Calls after which a worker lets others run: an answer out of memory never does so of its own accord."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one round gave. CPU is user and system time of all threads of the client's process."""

    calls: int
    errors: int
    error: str | None
    """Text of the first error."""
    wall_s: float
    cpu_ms: float
    """Milliseconds of CPU per call."""
    server_cpu_ms: float | None
    """The same of the PostgreSQL server, where it is ours."""
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    stall_ms: float
    rss_mb: float
    collections: int
    """Full garbage collections."""
    longest_collection_ms: float


@dataclass(slots=True)
class _Tally:
    """What the workers of one cell note."""

    latencies_s: list[float] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


async def warm_up(call: Call, numbers: Iterator[int], in_flight: int) -> None:
    """Open as many connections as the cell will use, and let each carry one call at least."""
    await _work(call, numbers, in_flight, WARM_UP_S, _Tally())


async def measure(
    call: Call, numbers: Iterator[int], *, in_flight: int, seconds: float, server_pid: int | None = None
) -> Cell:
    """Keep `in_flight` calls going for `seconds`, wait for the last ones, and return what that took."""
    tally, stalls_s, collections_s = _Tally(), [0.0], [0.0]
    sentinel = asyncio.create_task(_watch(stalls_s))
    await asyncio.sleep(SENTINEL_S)
    with _timed_collections(collections_s):
        server_s = family_cpu_s(server_pid) if server_pid else None
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        await _work(call, numbers, in_flight, seconds, tally)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        if server_s is not None and server_pid:
            server_s = family_cpu_s(server_pid) - server_s
    sentinel.cancel()
    return _cell(tally, cpu_s, wall_s, server_s, stalls_s, collections_s)


def _cell(
    tally: _Tally,
    cpu_s: float,
    wall_s: float,
    server_s: float | None,
    stalls_s: list[float],
    collections_s: list[float],
) -> Cell:
    sorted_s = sorted(tally.latencies_s) or [0.0]
    calls = len(tally.latencies_s)
    return Cell(
        calls=calls,
        errors=len(tally.errors),
        error=f"{type(tally.errors[0]).__name__}: {tally.errors[0]}"[:500] if tally.errors else None,
        wall_s=wall_s,
        cpu_ms=cpu_s * 1000 / max(calls, 1),
        server_cpu_ms=None if server_s is None else server_s * 1000 / max(calls, 1),
        calls_per_s=calls / wall_s,
        p50_ms=sorted_s[len(sorted_s) // 2] * 1000,
        p99_ms=sorted_s[int(len(sorted_s) * 0.99)] * 1000,
        stall_ms=max(stalls_s) * 1000,
        rss_mb=rss_mb(),
        collections=len(collections_s) - 1,
        longest_collection_ms=max(collections_s) * 1000,
    )


async def _work(call: Call, numbers: Iterator[int], in_flight: int, seconds: float, tally: _Tally) -> None:
    until_s = time.perf_counter() + seconds

    async def worker() -> None:
        for mine in count(1):
            began_s = time.perf_counter()
            try:
                await call(next(numbers))
            except Exception as error:  # noqa: BLE001  # told: a cell with an error measures nothing
                tally.errors.append(error)
            ended_s = time.perf_counter()
            tally.latencies_s.append(ended_s - began_s)
            if ended_s >= until_s:
                return
            if not mine % YIELD_EVERY:
                await asyncio.sleep(0)

    await asyncio.gather(*(worker() for _ in range(in_flight)))


async def _watch(stalls_s: list[float]) -> None:
    while True:
        asked_s = time.perf_counter()
        await asyncio.sleep(SENTINEL_S)
        stalls_s[0] = max(stalls_s[0], time.perf_counter() - asked_s - SENTINEL_S)


@contextmanager
def _timed_collections(collections_s: list[float]) -> Iterator[None]:
    """Note how long each full collection takes."""
    began_s = 0.0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal began_s
        if info["generation"] != 2:  # noqa: PLR2004  # the oldest
            return
        if phase == "start":
            began_s = time.perf_counter()
        else:
            collections_s.append(time.perf_counter() - began_s)

    gc.callbacks.append(note)
    try:
        yield
    finally:
        gc.callbacks.remove(note)


def freeze() -> None:
    """Do what a long-lived entrypoint does after its warm-up; every child does it, whoever it measures."""
    settle_heap()


def rss_mb() -> float:
    """Return the memory of this process that is resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 2**20


def family_cpu_s(parent: int) -> float:
    """Return user and system seconds of a process and its children, the ended ones included."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile; its parent has its time
            continue
        if parent in (int(stat.parent.name), int(fields[1])):
            total += sum(map(int, fields[11:15]))  # user, system, and both of the children that ended
    return total / _TICKS

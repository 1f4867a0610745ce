"""Microseconds of one small thing, by repetition: the best of several rounds, because noise only ever adds."""

import time
from collections.abc import Awaitable, Callable

ROUNDS = 5
ROUND_S = 0.04


def best_us(work: Callable[[], object], *, round_s: float = ROUND_S) -> float:
    """Return the CPU microseconds of this thread that `work` takes."""
    repeats = _repeats(work, round_s)
    best_s = float("inf")
    for _ in range(ROUNDS):
        began_s = time.thread_time()
        for _ in range(repeats):
            work()
        best_s = min(best_s, (time.thread_time() - began_s) / repeats)
    return best_s * 1e6


async def best_async_us(work: Callable[[], Awaitable[object]], *, round_s: float = ROUND_S) -> float:
    """Return the CPU microseconds of the whole process that awaiting `work` takes."""
    repeats, best_s = 8, float("inf")
    for _ in range(ROUNDS + 1):
        began_s, wall_s = time.process_time(), time.perf_counter()
        for _ in range(repeats):
            await work()
        best_s = min(best_s, (time.process_time() - began_s) / repeats)
        repeats = max(1, round(repeats * round_s / max(time.perf_counter() - wall_s, 1e-6)))
    return best_s * 1e6


def _repeats(work: Callable[[], object], round_s: float) -> int:
    began_s = time.perf_counter()
    work()
    return max(1, int(round_s / max(time.perf_counter() - began_s, 1e-7)))

"""A clock that is moved by hand, for tests of waits."""

import asyncio
import heapq
import itertools

from app.core.clock import SystemClock

TURNS = 20
"""Of the event loop, after which nothing happens any more by itself."""


class HandClock(SystemClock):
    """Whoever waits wakes when the time is moved to its end, in the order of the ends."""

    __slots__ = ("_numbers", "_sleepers", "at_s", "slept")

    def __init__(self, at_s: float = 1_000.0) -> None:
        self.at_s = at_s
        self.slept: list[float] = []
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def monotonic_s(self) -> float:
        return self.at_s

    async def sleep_s(self, seconds: float) -> None:
        self.slept.append(seconds)
        waking = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.at_s + seconds, next(self._numbers), waking))
        await waking

    async def move(self, seconds: float) -> None:
        """Let so much time pass, and everybody do in it what is due."""
        end_s = self.at_s + seconds
        await settled()
        while self._sleepers and self._sleepers[0][0] <= end_s:
            when_s, _, waking = heapq.heappop(self._sleepers)
            self.at_s = max(self.at_s, when_s)
            if not waking.done():
                waking.set_result(None)
            await settled()
        self.at_s = end_s


async def settled() -> None:
    """Let the event loop come to rest, sockets and threads aside."""
    for _ in range(TURNS):
        await asyncio.sleep(0)

"""What may reach the database a moment later: rows of hits without a key, and how often answers were replayed.

A commit for each would cost more than the look-up that it records; together they cost one.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextvars import Context

from app.llm.persistence import ledger
from app.llm.persistence.executor import Steps
from app.llm.ports import ClaimOutcome

HITS_WAIT_S = 0.05
REPLAYS_WAIT_S = 1.0
"""Seconds that rows and counts are collected before they are written."""


class WriteBehind:
    """Collects, and hands over in one go what was collected; `write` begins a transaction in the background."""

    def __init__(self, write: Callable[[Callable[[], Steps[object]]], object]) -> None:
        self._write = write
        self._hits: list[Callable[[], Steps[ClaimOutcome]]] = []
        self._replays: Counter[str] = Counter()
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._hits)

    def add_hit(self, steps: Callable[[], Steps[ClaimOutcome]]) -> None:
        """Write a hit's row soon."""
        self._hits.append(steps)
        self._soon(self.write_hits, HITS_WAIT_S)

    def count_replay(self, run_id: str) -> None:
        """Add one to a run's `replayed_count` soon."""
        self._replays[run_id] += 1
        self._soon(self.write_replays, REPLAYS_WAIT_S)

    def write_all(self) -> None:
        """Wait no longer."""
        self.write_hits()
        self.write_replays()

    def write_hits(self) -> None:
        """Begin a transaction for each row: one that fails is no other's fault."""
        self._due(self.write_hits)
        hits, self._hits = self._hits, []
        for steps in hits:
            self._write(steps)

    def write_replays(self) -> None:
        """Begin one transaction for all counts."""
        self._due(self.write_replays)
        if self._replays:
            counts, self._replays = dict(self._replays), Counter()
            self._write(lambda: ledger.add_replays(counts))

    def _soon(self, write: Callable[[], None], wait_s: float) -> None:
        if (
            write not in self._timers
        ):  # in no caller's context: that may be inside a unit of work, others are not
            self._timers[write] = asyncio.get_running_loop().call_later(wait_s, write, context=Context())

    def _due(self, write: Callable[[], None]) -> None:
        timer = self._timers.pop(write, None)
        if timer is not None:
            timer.cancel()

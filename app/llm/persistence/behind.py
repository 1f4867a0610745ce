"""What may reach the database a moment later: rows of hits without a key, and how often answers were replayed.

A commit for each would cost more than the look-up that it records; together they cost one.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from functools import partial
from typing import TypeVar

from app.llm.errors import LLMLedgerError
from app.llm.persistence import ledger
from app.llm.persistence.executor import Executor, Steps
from app.llm.persistence.ledger import ClaimRules
from app.llm.ports import NewRun, StoredAnswer

T = TypeVar("T")
HITS_WAIT_S = 0.05
REPLAYS_WAIT_S = 1.0
"""Seconds that rows and counts are collected before they are written."""
HITS_AT_ONCE = 128
"""Rows of hits that are written without further waiting; one transaction of some milliseconds."""
MAX_HITS = 4 * HITS_AT_ONCE
"""Rows that are not written yet; beyond that a hit waits for its row, or a slow database would fill the memory."""

HitRow = tuple[NewRun, StoredAnswer]


class WriteBehind:
    """Collects, and hands over in one go what was collected; `begin` runs work in the background and logs its fault."""

    def __init__(
        self,
        executor: Executor,
        rules: ClaimRules,
        *,
        begin: Callable[[Coroutine[object, object, None]], object],
    ) -> None:
        self._executor = executor
        self._rules = rules
        self._begin = begin
        self._hits: list[HitRow] = []
        self._unwritten = 0
        self._replays: Counter[str] = Counter()
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    @property
    def full(self) -> bool:
        """Whether no further hit may be added now."""
        return self._unwritten >= MAX_HITS

    def add_hit(self, run: NewRun, answer: StoredAnswer) -> None:
        """Write a hit's row soon."""
        self._hits.append((run, answer))
        self._unwritten += 1
        if len(self._hits) == HITS_AT_ONCE:
            self._due(self.write_hits)
        self._soon(self.write_hits, HITS_WAIT_S if len(self._hits) < HITS_AT_ONCE else 0.0)

    def count_replay(self, run_id: str) -> None:
        """Add one to a run's `replayed_count` soon."""
        self._replays[run_id] += 1
        self._soon(self.write_replays, REPLAYS_WAIT_S)

    def write_all(self) -> None:
        """Wait no longer."""
        self.write_hits()
        self.write_replays()

    def write_hits(self) -> None:
        """Begin one transaction for all rows."""
        self._due(self.write_hits)
        if self._hits:
            hits, self._hits = self._hits, []
            self._begin(self._write_hits(hits))

    def write_replays(self) -> None:
        """Begin one transaction for all counts."""
        self._due(self.write_replays)
        if self._replays:
            counts, self._replays = dict(self._replays), Counter()
            self._begin(self._write(partial(ledger.add_replays, counts)))

    async def _write_hits(self, hits: Sequence[HitRow]) -> None:
        """Write rows together, or each by itself where that fails: one that fails is no other's fault."""
        try:
            await self._write(partial(ledger.record_hits, hits, self._rules))
        except LLMLedgerError:
            if len(hits) == 1:
                raise
            self._unwritten += len(hits)
            for each in hits:
                self._begin(self._write_hits([each]))
        finally:
            self._unwritten -= len(hits)

    async def _write(self, steps: Callable[[], Steps[T]]) -> None:
        await self._executor.transaction(steps)

    def _soon(self, write: Callable[[], None], wait_s: float) -> None:
        if (
            write not in self._timers
        ):  # in no caller's context: that may be inside a unit of work, others are not
            self._timers[write] = asyncio.get_running_loop().call_later(wait_s, write, context=Context())

    def _due(self, write: Callable[[], None]) -> None:
        timer = self._timers.pop(write, None)
        if timer is not None:
            timer.cancel()

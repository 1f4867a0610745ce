"""Where a lane puts a streamed answer: deltas go to the listener, and time runs only while the provider is awaited."""

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from app.core.deadlines import Within
from app.llm.deltas import Delta
from app.llm.ports import Listener
from app.llm.wire.answers import Answer
from app.llm.wire.exchange import LINGER_S, Stalled
from app.llm.wire.readers import Heard

R = TypeVar("R", bound=Heard)


class Outlet:
    """The listener of one attempt, and its time limits.

    Until the first delta the limit is the attempt's. From then on it is the call's, and, while a chunk is awaited,
    the idle time. A listener that is slow slows the reading: that is no stall of the provider.
    """

    def __init__(self, listener: Listener, limit: Within, *, idle_s: float) -> None:
        self._on_delta = listener.on_delta
        self._limit = limit
        self._idle_s = idle_s
        self._clock = asyncio.get_running_loop().time
        self._ends_at_s = self._clock() + listener.left_s
        self._reader: Heard | None = None
        self._chunks = 0
        self._begun = False

    def opened(self, reader: R) -> R:
        """Note who reads the answer, and return it."""
        self._reader = reader
        return reader

    async def give(self, deltas: Iterable[Delta]) -> None:
        """Pass on what the reader has found in what came last, and begin to wait for more."""
        for delta in deltas:
            self._begun = True
            self._limit.move(self._ends_at_s)
            await self._on_delta(delta)
        reader = self._reader
        if reader is None or reader.chunks == self._chunks:
            return
        self._chunks = reader.chunks
        if reader.finished:
            self._limit.move(self._clock() + 2 * LINGER_S)  # an answer that is complete is not lost any more
        elif self._begun:
            self._limit.move(min(self._clock() + self._idle_s, self._ends_at_s))

    def answer(self) -> Answer | None:
        """Return the answer; as `Heard.answer`."""
        if self._reader is None:
            raise RuntimeError("a lane has streamed without a reader")
        return self._reader.answer()

    def out_of_time(self) -> TimeoutError:
        """Return which of the limits was reached."""
        if self._begun and self._limit.ends_at_s < self._ends_at_s:
            return Stalled(f"nothing came for {self._idle_s:g} s (LLM_STREAM_IDLE_TIMEOUT_S)")
        return TimeoutError()

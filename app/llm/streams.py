"""A call with a listener: deltas first, the answer last, and nothing left running when the listener goes."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from app.llm.deltas import Answering, Delta, Tell, deltas_of
from app.llm.errors import LLMCancelled, LLMContractError
from app.llm.types import LLMResponse

ROOM = 16
"""Deltas that wait for a slow listener; then the provider is not read any further."""

Work = Callable[[Tell], Coroutine[Any, Any, LLMResponse]]


class LLMStream:
    """The deltas of one call, then its `LLMResponse`, as an async iterator and an async context manager.

    The call runs in a task of its own. Leaving the `async with` block, or dropping the iterator, before the end
    cancels it: the connection to the provider is closed and the run is recorded as CANCELLED with what had arrived.
    """

    def __init__(self, work: Work, *, remember: Callable[[asyncio.Task[LLMResponse]], None]) -> None:
        self._work: Work | None = work
        self._remember = remember
        self._context = contextvars.copy_context()
        self._passage = _Passage()
        self._task: asyncio.Task[LLMResponse] | None = None
        self._response: LLMResponse | None = None
        self._read = False
        self._over = False

    @property
    def answering(self) -> Answering | None:
        """Who answers, from the first delta on; None where the ledger does."""
        return self._passage.answering

    @property
    def whole(self) -> LLMResponse | None:
        """The answer, from its first delta on, where it was there as a whole: a replay or a hit."""
        return self._passage.whole

    @property
    def response(self) -> LLMResponse:
        """The whole answer, once the iterator has given it.

        Raises:
            RuntimeError: It has not yet.
        """
        if self._response is None:
            raise RuntimeError("the stream has no response before its end: iterate over it first")
        return self._response

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta | LLMResponse:
        """Return the next delta, and the answer after the last one.

        Raises:
            LLMError: As `LLMService.chat`; one after the first delta is final.
            LLMCancelled: Somebody else closed the service or the stream; the reader itself was not cancelled.
            LLMContractError: Another task waits for the next delta already.
        """
        if self._over:
            raise StopAsyncIteration
        if self._read:
            raise LLMContractError("another task reads this stream: let one read it and share what it reads")
        task = self._begin()
        self._read = True
        try:
            delta = await self._passage.taken()
        finally:
            self._read = False
        if delta is not None:
            return delta
        if task.cancelled():
            raise self._closed()
        self._over = True
        self._response = task.result()
        return self._response

    async def aclose(self) -> None:
        """End the call, if it has not ended, and wait until it has; idempotent."""
        self._over, self._work = True, None
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    def __del__(self) -> None:
        task = self._task
        if task is not None and not task.done() and not task.get_loop().is_closed():
            task.get_loop().call_soon_threadsafe(task.cancel)

    def _closed(self) -> LLMCancelled:
        """Return what a reader is told whose stream, or service, somebody else closed."""
        closed = "stream" if self._over else "service"
        self._over = True
        return LLMCancelled(
            f"the {closed} was closed while the answer was read; what had arrived is recorded",
            possibly_paid=self._passage.whole is None,
        )

    def _begin(self) -> asyncio.Task[LLMResponse]:
        if self._task is None:
            if self._work is None:
                raise RuntimeError("the stream was closed before it began")
            work = _through(self._passage, self._work)
            self._task = asyncio.get_running_loop().create_task(work, context=self._context)
            self._task.add_done_callback(self._passage.close)
            self._work = None
            self._remember(self._task)
        return self._task


class Streaming:
    """The streams of a service that have not ended: somebody must hold their tasks, and end them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[LLMResponse]] = set()

    def add(self, task: asyncio.Task[LLMResponse]) -> None:
        """Hold a task until it has ended."""
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def end(self) -> None:
        """Cancel those of this event loop and wait for them."""
        here = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if task.get_loop() is here]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, task: asyncio.Task[LLMResponse]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, for a listener that left will not


async def _through(passage: "_Passage", answering: Work) -> LLMResponse:
    """Answer, with every part as a delta of its own where the answer came as a whole."""
    response = await answering(passage.give)
    if not passage.used:
        passage.whole = response
        for delta in deltas_of(response.parts):
            await passage.give(delta)
    return response


class _Passage:
    """Hands deltas from the task of the call to its listener; a giver waits while there is no room."""

    def __init__(self) -> None:
        self._waiting: deque[Delta] = deque()
        self._closed = False
        self._changed: asyncio.Future[None] | None = None
        self.used = False
        self.answering: Answering | None = None
        self.whole: LLMResponse | None = None

    async def give(self, delta: Answering | Delta) -> None:
        """Put one in; return once there is room for another."""
        if isinstance(delta, Answering):
            self.answering = delta
            return
        self._waiting.append(delta)
        self._wake()
        if not self.used:
            self.used = True
            await asyncio.sleep(0)  # the listener has the first one before the next is read
        while len(self._waiting) >= ROOM:
            await self._change()

    async def taken(self) -> Delta | None:
        """Return the next one; None when the call has ended and all were taken."""
        while not self._waiting:
            if self._closed:
                return None
            await self._change()
        delta = self._waiting.popleft()
        if len(self._waiting) == ROOM - 1:
            self._wake()
        return delta

    def close(self, _: object = None) -> None:
        """Say that none will come."""
        self._closed = True
        self._wake()

    def _change(self) -> Awaitable[None]:
        """Return what ends with the next change. One side waits at a time: the other is what changes."""
        self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

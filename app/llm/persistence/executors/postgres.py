"""The PostgreSQL executor: what is queued travels together, in few round trips, and is committed together.

When anything goes wrong with a batch, it is undone and each of its transactions is run on its own, so that none
spoils another.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from app.llm.errors import LLMLedgerUnavailable
from app.llm.persistence.executor import REPEATS, Result, Step, Steps, ledger_error
from app.llm.persistence.executors.postgres_batch import Operation, SpoiledError, attempt
from app.llm.persistence.executors.postgres_wire import FAULTS, Wire

T = TypeVar("T")

WRITERS = 2
"""Connections that write: while one waits for its commit, the next batch gathers for the other."""
MAX_BATCH = 64
PATIENCE_S = 0.2
"""Seconds that a batch waits for somebody's lock; who meets it again then waits on a connection of its own."""
MAX_PATIENT = 4
"""Connections on which somebody's lock is waited for."""
_GRACE_S = 2.0
_LOCKED = "55P03"

_Queue = asyncio.Queue[Operation | None]


class PostgresExecutor:
    """The ledger's connections to PostgreSQL; they belong to the event loop that used them first."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._writes: _Queue = asyncio.Queue()
        self._reads: _Queue = asyncio.Queue()
        self._lanes: list[asyncio.Task[None]] = []
        self._waits: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(MAX_PATIENT)
        self._open: set[Operation] = set()
        self._closed = False
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        """Process and event loop of the connections."""

    @property
    def outstanding(self) -> int:
        """Transactions and look-ups that were begun by a caller and have not ended."""
        return len(self._open)

    def transaction(self, steps: Callable[[], Steps[T]]) -> asyncio.Future[T]:
        """Run all steps in one transaction, committed together with others; whatever becomes of the caller, it ends.

        Cancelling the future takes the work back if it has not begun.
        """
        return self._put(self._writes, steps, repeatable=False)

    def read(self, step: Step) -> asyncio.Future[Result]:
        """Run one SELECT, together with others."""

        def steps() -> Steps[Result]:
            return (yield Step(step.statement, step.params, final=True))

        return self._put(self._reads, steps, repeatable=True)

    async def close(self) -> None:
        """Finish what was begun, close the connections; idempotent."""
        self._closed = True
        lanes, self._lanes = self._lanes, []
        for queue in self._queues() if lanes else ():
            queue.put_nowait(None)
        await asyncio.gather(*lanes)
        await asyncio.gather(*self._waits)

    def _queues(self) -> tuple[_Queue, ...]:
        return (*[self._writes] * WRITERS, self._reads)

    def _put(self, queue: _Queue, steps: Callable[[], Steps[T]], *, repeatable: bool) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if (reason := self._unusable(loop)) is not None:
            future.set_exception(LLMLedgerUnavailable(reason))
            return future
        due_s = loop.time() + self._timeout_s + _GRACE_S
        operation = Operation(steps, future, due_s, repeatable=repeatable, on_end=self._open.discard)
        self._open.add(operation)
        queue.put_nowait(operation)
        if not self._lanes:
            self._home = os.getpid(), loop
            self._lanes = [loop.create_task(self._lane(each)) for each in self._queues()]
        return future

    def _unusable(self, loop: asyncio.AbstractEventLoop) -> str | None:
        """Say why nothing can be done from here; None if it can."""
        if self._closed:
            return "the ledger's connections are closed already"
        if self._home is not None and self._home != (os.getpid(), loop):
            return "the ledger's connections belong to another event loop or process: build the service where it is used"
        return None

    async def _lane(self, queue: _Queue) -> None:
        """Serve a queue on one connection, until it ends."""
        wire = self._wire(min(PATIENCE_S, self._timeout_s))
        try:
            with suppress(Exception):  # the first one who needs it will be told
                await wire.connect()
            while gathered := await _gathered(queue):
                operations = [operation for operation in gathered if not operation.taken_back()]
                if operations:
                    await self._serve(wire, operations)
        finally:
            await wire.close()

    def _wire(self, lock_timeout_s: float) -> Wire:
        return Wire(self._url, timeout_s=self._timeout_s, lock_timeout_s=lock_timeout_s)

    async def _serve(self, wire: Wire, operations: list[Operation]) -> None:
        """Run a batch, and what it could not do one by one."""
        try:
            if len(operations) > 1:
                await self._run_together(wire, operations)
            for operation in _going(operations):
                await self._run_alone(wire, operation)
        except Exception as bug:  # noqa: BLE001  # told to those whom it concerns
            wire.drop()
            for operation in _going(operations):
                operation.fail(bug)

    async def _run_together(self, wire: Wire, operations: list[Operation]) -> None:
        """Run a batch; whether one that failed in the middle of a commit was committed, nobody knows."""
        error = await self._attempt(wire, operations)
        for operation in _going(operations):
            if error is not None and operation.in_doubt:
                operation.fail(ledger_error(error, self._timeout_s)[0])

    async def _run_alone(self, wire: Wire, operation: Operation) -> None:
        """Run one operation, again where that is safe, until it has ended or waits elsewhere."""
        tries = 0
        while not operation.ended:
            error = await self._attempt(wire, [operation])
            if error is None:  # it has ended, or goes on in a transaction of its own
                continue
            tries += 1
            if getattr(error, "sqlstate", None) == _LOCKED and wire.lock_timeout_s < self._timeout_s:
                self._wait_elsewhere(operation)
                return
            fault, repeat = ledger_error(error, self._timeout_s)
            broke = wire.lost and not isinstance(error, TimeoutError)
            if operation.in_doubt or tries == REPEATS or not (repeat or broke):
                operation.fail(fault)

    async def _attempt(self, wire: Wire, operations: list[Operation]) -> Exception | None:
        """Return what undid those of the operations that have not ended."""
        try:
            if not wire.stands:
                async with asyncio.timeout_at(min(operation.due_s for operation in operations)):
                    await wire.connect()
        except FAULTS as error:
            for operation in operations:
                operation.fail(ledger_error(error, self._timeout_s)[0])
            return None
        try:
            await attempt(wire, operations)
        except (SpoiledError, *FAULTS) as error:
            return error
        return None

    def _wait_elsewhere(self, operation: Operation) -> None:
        task = asyncio.get_running_loop().create_task(self._wait_for_lock(operation))
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)

    async def _wait_for_lock(self, operation: Operation) -> None:
        """Run an operation where nobody is kept by it, when a place is free."""
        try:
            async with asyncio.timeout_at(operation.due_s):
                await self._places.acquire()
        except TimeoutError as error:
            operation.fail(ledger_error(error, self._timeout_s)[0])
            return
        wire = self._wire(self._timeout_s)
        try:
            await self._serve(wire, [operation])
        finally:
            self._places.release()
            await wire.close()


def _going(operations: list[Operation]) -> list[Operation]:
    return [operation for operation in operations if not operation.ended]


async def _gathered(queue: _Queue) -> list[Operation]:
    """Wait for an operation, and return it with those behind it; nothing when the queue's end is reached."""
    operations: list[Operation] = []
    first = await queue.get()
    while first is not None:
        operations.append(first)
        if queue.empty() or len(operations) == MAX_BATCH:
            break
        first = queue.get_nowait()
    else:
        if operations:
            queue.put_nowait(None)  # come back for it
    return operations

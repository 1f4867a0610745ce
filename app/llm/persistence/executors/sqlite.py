"""The SQLite executor: writes go to one thread that commits them together, look-ups are answered where they are asked.

A look-up by an index takes some ten microseconds, less than asking another thread to do it. What takes longer has a
reader in a thread of its own, and so have look-ups once the disk turns out to be slow.
"""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic, perf_counter
from typing import TypeVar

from app.db.engine import create_private, sqlite_file, sqlite_pragmas
from app.db.unit_of_work import holds_write_lock
from app.llm.errors import LLMLedgerBusy, LLMLedgerError, LLMLedgerUnavailable
from app.llm.persistence.executor import Result, Step, Steps, ledger_error
from app.llm.persistence.executors.sqlite_writer import Operation, SqliteWriter, execute

T = TypeVar("T")

SLOW_LOOKUP_S = 0.002
"""Seconds that look-ups may take on average before they move to the reader's thread."""
_WEIGHT = 1 / 16
"""Of the latest look-up in that average: one that had to wait for a cold disk moves nothing yet."""
CHECKPOINT_PAGES = 2_000
"""Pages of the write-ahead log after which a commit moves them into the file; 8 MB bound the log."""
_GRACE_S = 2.0
"""Seconds beyond the timeout after which a disk that does not answer is told of."""


class SqliteExecutor:
    """The ledger's connections to one SQLite file: a writer, a reader, and one for look-ups on the loop.

    It belongs to the event loop and to the process that used it first.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        file = sqlite_file(url)
        if file is None:
            raise ValueError("not the URL of a SQLite file")
        create_private(file)
        self._file = file
        self._timeout_s = timeout_s
        self._pid = os.getpid()
        self._closed = False
        self._tick: list[Operation] = []
        self._open: set[Operation] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._writer = SqliteWriter(
            self._connect_writer, timeout_s=timeout_s + _GRACE_S, settled=self._settled
        )
        self._lookups: sqlite3.Connection | None = None
        self._lookup_s = 0.0
        self._reader: sqlite3.Connection | None = None
        self._reading: ThreadPoolExecutor | None = None

    @property
    def outstanding(self) -> int:
        """Transactions that were begun by a caller and have not ended."""
        return len(self._open)

    def transaction(self, steps: Callable[[], Steps[T]]) -> asyncio.Future[T]:
        """Run all steps in one transaction, committed together with others; whatever becomes of the caller, it ends.

        Cancelling the future takes the work back if it has not begun.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        refused = self._refusal()
        if refused is not None:
            future.set_exception(refused)
            return future
        operation = Operation(steps, future, monotonic() + self._timeout_s)
        if not self._tick:
            loop.call_soon(self._hand_over)
        self._tick.append(operation)
        self._open.add(operation)
        if self._watch is None:
            self._watch = loop.call_later(self._timeout_s + _GRACE_S, self._look_for_stuck)
        return future

    def read(self, step: Step) -> asyncio.Future[Result]:
        """Run one SELECT: a brief one here and now, so that its future is done already, others in a thread."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        unusable = self._unusable()
        if unusable is not None:
            future.set_exception(unusable)
            return future
        if step.brief and self._lookup_s < SLOW_LOOKUP_S:
            try:
                future.set_result(self._look_up(step))
            except sqlite3.Error as error:
                fault, _ = ledger_error(error, self._timeout_s)
                if isinstance(fault, LLMLedgerBusy):  # the reader can wait for the lock, the loop cannot
                    return loop.create_task(self._read_in_thread(step))
                future.set_exception(fault)
            return future
        return loop.create_task(self._read_in_thread(step))

    async def close(self) -> None:
        """Finish what was begun, close the connections; idempotent."""
        self._closed = True
        if self._tick:
            self._hand_over()
        await asyncio.to_thread(self._writer.close)
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._lookups is not None:
            self._lookups.close()
            self._lookups = None
        if self._reading is not None:
            reading, self._reading = self._reading, None
            await asyncio.get_running_loop().run_in_executor(reading, self._close_reader)
            reading.shutdown(wait=False)

    # -- writing

    def _refusal(self) -> LLMLedgerError | None:
        unusable = self._unusable()
        if unusable is not None:
            return unusable
        if holds_write_lock(self._file):
            return LLMLedgerBusy(
                "the unit of work around this call holds the lock of the ledger's SQLite file: commit first, "
                "use llm.joined(session), or give the ledger its own file (LLM_DATABASE_URL)"
            )
        return None

    def _unusable(self) -> LLMLedgerUnavailable | None:
        if self._closed:
            return LLMLedgerUnavailable("the ledger's connections are closed already")
        if os.getpid() == self._pid:
            return None
        return LLMLedgerUnavailable(
            "this ledger was opened before the process was forked, and its connections belong to the parent: build "
            "the service in the child"
        )

    def _hand_over(self) -> None:
        """Give the writer what this turn of the loop has brought, as one list."""
        operations, self._tick = self._tick, []
        if operations:
            self._writer.put(operations)

    def _settled(self, operations: Sequence[Operation]) -> None:
        """Wake the loop once for a whole batch; called in the writer's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            operations[0].future.get_loop().call_soon_threadsafe(self._deliver, operations)

    def _deliver(self, operations: Sequence[Operation]) -> None:
        self._open.difference_update(operations)
        for operation in operations:
            operation.settle()

    def _look_for_stuck(self) -> None:
        """Tell callers of a disk that does not answer; the thread goes on, and what it commits stays committed."""
        latest_s = monotonic() - _GRACE_S
        stuck = [operation for operation in self._open if operation.give_up_at_s < latest_s]
        for operation in stuck:
            operation.fault, _ = ledger_error(TimeoutError(), self._timeout_s)
        self._deliver(stuck)
        self._watch = None
        if self._open:
            self._watch = asyncio.get_running_loop().call_later(_GRACE_S, self._look_for_stuck)

    def _connect_writer(self) -> sqlite3.Connection:
        connection = self._connect(
            timeout_s=0.0, read_only=False
        )  # the writer waits by itself, as long as callers do
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        return connection

    # -- reading

    def _look_up(self, step: Step) -> Result:
        if self._lookups is None:
            self._lookups = self._connect(timeout_s=0.0, read_only=True)
        began_s = perf_counter()
        result = execute(self._lookups, step)
        self._note_lookup(perf_counter() - began_s)
        return result

    def _note_lookup(self, took_s: float) -> None:
        self._lookup_s += (took_s - self._lookup_s) * _WEIGHT

    async def _read_in_thread(self, step: Step) -> Result:
        if self._reading is None:
            self._reading = ThreadPoolExecutor(1, thread_name_prefix="signalbox-reader")
        fault: LLMLedgerError
        try:
            async with asyncio.timeout(self._timeout_s + _GRACE_S):
                return await asyncio.get_running_loop().run_in_executor(self._reading, self._read, step)
        except (sqlite3.Error, OSError, TimeoutError) as error:
            fault, _ = ledger_error(error, self._timeout_s)
        raise fault from None

    def _read(self, step: Step) -> Result:
        if self._reader is None:
            self._reader = self._connect(timeout_s=self._timeout_s, read_only=True)
        began_s = perf_counter()
        result = execute(self._reader, step)
        if step.brief:
            self._note_lookup(perf_counter() - began_s)
        return result

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _connect(self, *, timeout_s: float, read_only: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(self._file, timeout=timeout_s, isolation_level=None)
        try:
            for pragma in sqlite_pragmas(timeout_s=timeout_s, read_only=read_only):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

"""One thread that commits what is queued, together: a commit with its sync costs as much as ten transitions.

Whatever waits when the thread is free becomes one transaction. If one operation in it fails, everything is rolled
back and done again one by one, so that a fault belongs to the operation that has it, and to no other. An outcome is
handed out after the commit that holds it, never before.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any

from app.llm.persistence.compiled import compiled
from app.llm.persistence.executor import Result, Step, Steps, ledger_error

MAX_BATCH = 128
"""Operations of one commit: enough to share a sync among, few enough to let other processes in."""
PAUSES_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025)
"""Seconds between two tries to get the write lock while another process holds it; the last one repeats."""


@dataclass(slots=True, eq=False)
class Operation:
    """One transaction that somebody waits for."""

    steps: Callable[[], Steps[Any]]
    future: asyncio.Future[Any]
    give_up_at_s: float
    """When, by `monotonic`, it stops waiting for the write lock."""
    outcome: Any = None
    fault: BaseException | None = None

    def settle(self) -> None:
        """Tell who waits, if somebody still does; called on the loop."""
        if self.future.done():
            return
        if self.fault is None:
            self.future.set_result(self.outcome)
        else:
            self.future.set_exception(self.fault)


class SqliteWriter:
    """The only writing connection of a process to its ledger, and the thread that it lives in."""

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        *,
        timeout_s: float,
        settled: Callable[[Sequence[Operation]], None],
    ) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._settled = settled
        self._queue: SimpleQueue[Sequence[Operation] | None] = SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._thread: threading.Thread | None = None

    def put(self, operations: Sequence[Operation]) -> None:
        """Queue operations; `settled` is called in the thread, once for all that a commit holds."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="signalbox-ledger", daemon=True)
            self._thread.start()
        self._queue.put(operations)

    def close(self) -> None:
        """Finish what is queued, close the connection, wait for the thread as long as a statement may take."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(self._timeout_s)
            self._thread = None

    def _work(self) -> None:
        waiting: list[Operation] = []
        open_ = True
        while open_ or waiting:
            if not waiting:
                open_ = self._take(waiting, block=True)
            while open_ and len(waiting) < MAX_BATCH and not self._queue.empty():
                open_ = self._take(waiting, block=False)
            batch, waiting = waiting[:MAX_BATCH], waiting[MAX_BATCH:]
            if batch:
                self._perform([each for each in batch if not each.future.done()])
                self._settled(batch)
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _take(self, waiting: list[Operation], *, block: bool) -> bool:
        """Move what is queued to `waiting`; return False when the writer was closed."""
        try:
            operations = self._queue.get(block)
        except Empty:
            return True
        if operations is None:
            return False
        waiting.extend(operations)
        return True

    def _perform(self, operations: Sequence[Operation]) -> None:
        """Give each operation its outcome or its fault: together if that works, else alone."""
        tries = 0
        while operations:
            try:
                self._commit(operations)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the outcome of the operation that raised it
                if _is_locked(error):
                    operations = self._not_given_up(operations, error)
                    if operations:
                        sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
                        tries += 1
                    continue
                if len(operations) == 1:
                    self._fail(operations[0], error)
                else:
                    for each in operations:
                        if not each.future.done():  # nobody left meanwhile, or was told that it failed
                            self._perform([each])
            return

    def _commit(self, operations: Sequence[Operation]) -> None:
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            for each in operations:
                each.outcome = drive(connection, each.steps())
            connection.execute("COMMIT")
        except BaseException:
            self._undo(connection)
            raise

    def _undo(self, connection: sqlite3.Connection) -> None:
        """Roll back, unless the fault did so; a connection that cannot even do that is given up."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            connection.close()
            self._connection = None

    def _not_given_up(self, operations: Sequence[Operation], error: Exception) -> list[Operation]:
        now_s = monotonic()
        for each in operations:
            if each.give_up_at_s <= now_s:
                self._fail(each, error)
        return [each for each in operations if each.fault is None and not each.future.done()]

    def _fail(self, operation: Operation, error: Exception) -> None:
        """Note the fault in our words: the driver's error has frames behind it that hold prompts."""
        if isinstance(error, sqlite3.Error | OSError):
            operation.fault, _ = ledger_error(error, self._timeout_s)
        else:
            operation.fault = error


def drive(connection: sqlite3.Connection, steps: Steps[Any]) -> Any:
    """Run all steps of one transaction on a connection that has begun it; return their outcome."""
    try:
        step = next(steps)
        while True:
            result = execute(connection, step)
            for follower in step.then if result.rowcount > 0 else ():
                execute(connection, follower)
            step = steps.send(result)
    except StopIteration as end:
        return end.value


def execute(connection: sqlite3.Connection, step: Step) -> Result:
    """Run one statement."""
    statement, params = compiled(step.statement, "sqlite"), step.params
    if not isinstance(params, Mapping):
        bound = [statement.bind(each) for each in params]
        if not bound:
            return Result((), 0)
        cursor = connection.executemany(bound[0][0], [values for _, values in bound])
        return Result((), cursor.rowcount)
    cursor = connection.execute(*statement.bind(params))
    raw = cursor.fetchall()  # also what a PRAGMA says: a statement that is not read to its end stays open
    return Result([*map(statement.row, raw)] if raw and statement.returns_rows else (), cursor.rowcount)


def _is_locked(error: Exception) -> bool:
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says which lock it was
    return primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

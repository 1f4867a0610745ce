"""The floor of anything durable: a hand-written SQLite ledger, one writer thread, group commit, synchronous FULL.

It keeps the facts that ours keeps (a run, a send, both texts, a unique key) and none of the promises: no leases, no
fencing, no settling of cancelled callers, no redaction, no replays.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

Statement = tuple[str, Sequence[Any]]

_TABLES = """
CREATE TABLE runs (id TEXT PRIMARY KEY, workspace TEXT, key TEXT, status TEXT, model TEXT, input_tokens INT,
  output_tokens INT, latency_ms REAL, created_at TEXT, finished_at TEXT, request TEXT, response TEXT,
  UNIQUE (workspace, key)) WITHOUT ROWID;
CREATE TABLE attempts (run_id TEXT, ordinal INT, model TEXT, status INT, started_at TEXT, finished_at TEXT,
  PRIMARY KEY (run_id, ordinal)) WITHOUT ROWID;
CREATE TABLE payloads (sha256 TEXT PRIMARY KEY, bytes BLOB) WITHOUT ROWID;
"""


class RawLedger:
    """Writes what is queued in one transaction; each caller waits for the commit that holds its own."""

    def __init__(self, file: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[Sequence[Statement], asyncio.Future[None]] | None] = SimpleQueue()
        with sqlite3.connect(file) as setup:
            setup.execute("PRAGMA journal_mode=WAL")
            setup.executescript(_TABLES)
        setup.close()
        self._thread = threading.Thread(target=self._write, args=(file,), name="raw-ledger")
        self._thread.start()

    async def write(self, *statements: Statement) -> None:
        """Return when the statements are on the disk."""
        done = self._loop.create_future()
        self._queue.put((statements, done))
        await done

    async def close(self) -> None:
        """End the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _write(self, file: Path) -> None:
        connection = sqlite3.connect(file, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        while (first := self._queue.get()) is not None:
            batch = [first, *self._queued()]
            waiting = [done for _, done in batch]
            try:
                connection.execute("BEGIN IMMEDIATE")
                for statements, _ in batch:
                    for sql, values in statements:
                        connection.execute(sql, values)
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                connection.rollback()
                self._loop.call_soon_threadsafe(_settle, waiting, error)
            else:
                self._loop.call_soon_threadsafe(_settle, waiting, None)
        connection.close()

    def _queued(self) -> list[tuple[Sequence[Statement], asyncio.Future[None]]]:
        found = []
        try:
            while (item := self._queue.get_nowait()) is not None:
                found.append(item)
        except Empty:
            return found
        self._queue.put(None)  # the end, met within a batch: for the next round
        return found


def _settle(waiting: list["asyncio.Future[None]"], error: sqlite3.Error | None) -> None:
    for done in waiting:
        if done.done():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

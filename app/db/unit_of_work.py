"""The caller's unit of work: one session, one transaction, committed by the caller's own hand.

On SQLite a unit of work that has begun holds the file's write lock. It says so in a context variable, so that a
ledger on the same file can refuse at once instead of waiting for a lock that its own caller holds.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import SessionTransaction

from app.db.engine import sqlite_file


@dataclass(slots=True)
class _Scope:
    file: Path | None
    holds_lock: bool = False
    outer: "_Scope | None" = None


_current: ContextVar[_Scope | None] = ContextVar("signalbox_unit_of_work", default=None)


@asynccontextmanager
async def unit_of_work(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """Yield a session; commit it yourself, for what is left uncommitted at the end is rolled back."""
    url = engine.url.render_as_string(hide_password=False)
    scope = _Scope(file=sqlite_file(url), outer=_current.get())
    token = _current.set(scope)
    session = AsyncSession(engine, expire_on_commit=False)

    def begun(*_: object) -> None:
        scope.holds_lock = True

    def ended(_: object, transaction: SessionTransaction) -> None:
        if transaction.parent is None:  # the end of a savepoint gives no lock back
            scope.holds_lock = False

    event.listen(session.sync_session, "after_begin", begun)
    event.listen(session.sync_session, "after_transaction_end", ended)
    try:
        yield session
    finally:
        await session.close()
        _current.reset(token)


def holds_write_lock(file: Path) -> bool:
    """Return whether a unit of work around this code holds the write lock of a SQLite file."""
    scope = _current.get()
    while scope is not None:
        if scope.holds_lock and scope.file == file:
            return True
        scope = scope.outer
    return False

"""Whether the database's tables fit this version: migrated where that is allowed, refused in one line elsewhere."""

import asyncio
from collections.abc import Awaitable

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from app.db.engine import build_engine, sqlite_file
from app.db.migrate import schema_state, upgrade
from app.llm.errors import LLMLedgerError, LLMLedgerSchema
from app.llm.persistence.executor import ledger_error

_FAULTS = {
    "empty": "the database has no tables yet: run `signalbox migrate`",
    "older": "the database has older tables: run `signalbox migrate`",
    "newer": "the database was migrated by a newer version of signalbox: upgrade this one",
}


def is_file(url: str) -> bool:
    """Return whether the database is a SQLite file, which start-up migrates by default."""
    return sqlite_file(url) is not None


def check_schema(url: str, *, migrate: bool, timeout_s: float) -> Awaitable[bool]:
    """Make sure, on a connection of its own, that the tables fit; return whether they had to be migrated.

    Not a coroutine itself: a frame that waits for the database must not know its password.

    Raises:
        LLMLedgerSchema: They do not, and migrating is off or would be a step back.
        LLMLedgerError: The database cannot be reached or used.
    """
    return _check(
        build_engine(url, timeout_s=timeout_s, poolclass=NullPool), migrate=migrate, timeout_s=timeout_s
    )


async def _check(engine: AsyncEngine, *, migrate: bool, timeout_s: float) -> bool:
    fault: LLMLedgerError
    try:
        async with asyncio.timeout(timeout_s + 5):
            state = await schema_state(engine)
            if state == "current":
                return False
            if migrate and state != "newer":
                await upgrade(engine)
                return True
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        fault, _ = ledger_error(error, timeout_s)
    else:
        fault = LLMLedgerSchema(_FAULTS[state])
    finally:
        await engine.dispose()
    raise fault

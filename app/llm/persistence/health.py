"""What a ledger's database says of itself, for whoever looks whether all is well: nothing is written, or waits for a lock."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import NullPool

from app.db.base import Base, db_now
from app.db.engine import build_engine
from app.db.migrate import SchemaState, schema_state
from app.llm.persistence import models  # noqa: F401  # fills the metadata
from app.llm.persistence.executor import ledger_error
from app.llm.ports import Clock

RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
"""What the ledger does with each of its tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """One look at a database that could be reached."""

    schema: SchemaState
    ahead_s: float
    """Seconds by which its clock is ahead of this process's; negative if it is behind. Exact to half of `took_s`."""
    took_s: float
    """Seconds that it took to ask for the time."""
    read_only: bool = False
    """Whether the server takes no writes: a standby, or told so."""
    role: str | None = None
    """Who we are there; None for a file."""
    lacking: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Rights that the role has not, by table."""


def look(url: str, *, timeout_s: float, clock: Clock) -> Awaitable[Health]:
    """Return what a database, which must be there, says of itself.

    Not a coroutine itself: a frame that waits for the database must not know its password.

    Raises:
        LLMLedgerError: It cannot be reached or used.
    """
    return _look(build_engine(url, timeout_s=timeout_s, read_only=True, poolclass=NullPool), timeout_s, clock)


async def _look(engine: AsyncEngine, timeout_s: float, clock: Clock) -> Health:
    try:
        async with asyncio.timeout(timeout_s):
            schema = await schema_state(engine)
            async with engine.connect() as connection:
                facts = await _clocks(connection, clock)
                if engine.dialect.name == "postgresql":
                    facts |= await _rights(connection, tables=schema == "current")
                return Health(schema=schema, **facts)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        fault, _ = ledger_error(error, timeout_s)
    finally:
        await engine.dispose()
    raise fault


async def _clocks(connection: AsyncConnection, clock: Clock) -> dict[str, Any]:
    await connection.execute(sa.select(sa.literal(1)))  # whatever the first statement costs is no part of it
    begun_s, before = clock.monotonic_s(), clock.now()
    there = (await connection.execute(sa.select(db_now()))).scalar_one()
    took_s = clock.monotonic_s() - begun_s
    return {"ahead_s": (there - before).total_seconds() - took_s / 2, "took_s": took_s}


async def _rights(connection: AsyncConnection, *, tables: bool) -> dict[str, Any]:
    said = sa.text(
        "SELECT quote_ident(CURRENT_USER) AS role, current_setting('transaction_read_only') = 'on' AS read_only"
    )
    facts = dict((await connection.execute(said)).mappings().one())
    if not tables:
        return facts
    asked = [(table, right) for table in sorted(Base.metadata.tables) for right in RIGHTS]
    granted = sa.select(
        *(
            sa.func.has_table_privilege(sa.literal(table, sa.Text), sa.literal(right, sa.Text)).label(
                f"{table} {right}"
            )
            for table, right in asked
        )
    )
    row = (await connection.execute(granted)).mappings().one()
    lacking: dict[str, tuple[str, ...]] = {}
    for table, right in asked:
        if not row[f"{table} {right}"]:
            lacking[table] = (*lacking.get(table, ()), right)
    return {**facts, "lacking": lacking}

"""What commands do with the ledger once their options are read; loaded by them alone, because that takes time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.bootstrap import checked_url, connect, database_name, open_executor, payload_codec
from app.cli.faults import NotFound
from app.db.engine import sqlite_file
from app.llm.errors import LLMLedgerSchema
from app.llm.persistence import ledger, reports
from app.llm.persistence.codec import Codec
from app.llm.persistence.executor import Executor
from app.llm.persistence.models import STARTED
from app.llm.persistence.reports import RunDetails, RunFilter
from app.llm.persistence.schema import check_schema
from app.llm.settings import LLMSettings, load_settings

MAX_NAMED = 3
"""Runs that are named when a prefix fits several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """Where a database was and is; revisions, None for no tables."""

    database: str
    before: str | None
    after: str | None


async def listed(wanted: RunFilter, *, limit: int) -> list[reports.Row]:
    """Return the newest runs that fit, newest first."""
    async with existing(load_settings()) as executor:
        return list(await reports.list_runs(executor, wanted, limit=limit))


async def shown(start: str) -> RunDetails:
    """Return the run whose id is, or begins with, `start`.

    Raises:
        NotFound: No run, or several.
    """
    settings = load_settings()
    async with existing(settings) as executor:
        return await _details(executor, start, payload_codec(settings))


async def releasable(start: str) -> RunDetails:
    """Return a run whose owner can be declared dead.

    Raises:
        NotFound: No such run, or it has ended.
    """
    details = await shown(start)
    if details.run["status"] != STARTED:
        raise NotFound(f"run {details.run['id']} is {details.run['status']}: it holds no key any more")
    return details


async def release(run_id: str) -> None:
    """Declare the owner of a run dead, which frees its key.

    Raises:
        NotFound: The run ended meanwhile.
    """
    async with existing(load_settings()) as executor:
        if not await executor.transaction(lambda: ledger.release(run_id)):
            raise NotFound(f"run {run_id} ended before it could be released")


async def migrate(*, check: bool) -> Migration:
    """Bring the tables to this version's, or only look whether they are.

    Raises:
        LLMLedgerSchema: `check`, and they are not; or they are newer than this version.
    """
    settings = load_settings()
    async with existing(settings) if check else _opened(settings) as executor:
        before = await reports.revision(executor)
        await check_schema(checked_url(settings), migrate=not check, timeout_s=settings.ledger_timeout_s)
        after = await reports.revision(executor)
    return Migration(database=database_name(settings), before=before, after=after)


async def _details(executor: Executor, start: str, codec: Codec) -> RunDetails:
    found = await reports.matching_ids(executor, start.strip().lower(), limit=MAX_NAMED + 1)
    if len(found) > 1:
        more = ", ..." if len(found) > MAX_NAMED else ""
        raise NotFound(f"several runs begin with {start}: {', '.join(found[:MAX_NAMED])}{more}")
    details = await reports.run_details(executor, found[0], codec) if found else None
    if details is None:
        raise NotFound(f"no run begins with {start!r}: `signalbox runs list` names them")
    return details


@asynccontextmanager
async def current() -> AsyncIterator[Executor]:
    """Yield connections to a database that is there, with the tables of this version.

    Raises:
        LLMLedgerSchema: There is none, or its tables are others and not to be changed.
    """
    settings = load_settings()
    async with existing(settings):
        executor = await open_executor(settings)
    try:
        yield executor
    finally:
        await executor.close()


@asynccontextmanager
async def existing(settings: LLMSettings) -> AsyncIterator[Executor]:
    """Yield connections to a database that is there; looking at a ledger never makes one."""
    file = sqlite_file(checked_url(settings))
    if file is not None and not file.is_file():
        raise LLMLedgerSchema(
            f"there is no database at {file}: run `signalbox migrate`, or set LLM_DATABASE_URL"
        )
    async with _opened(settings) as executor:
        yield executor


@asynccontextmanager
async def _opened(settings: LLMSettings) -> AsyncIterator[Executor]:
    executor = connect(checked_url(settings), timeout_s=settings.ledger_timeout_s)
    try:
        yield executor
    finally:
        await executor.close()

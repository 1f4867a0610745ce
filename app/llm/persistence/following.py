"""Follows the ledger: each run that begins, and each that ends, is told once, whenever its transaction shows.

Rows show when they are committed, which need not be in the order of their times. So a poll reads again what was created
since a bound, and leaves out what it told. The bound is a time before which nothing new can show any more:

* PostgreSQL numbers transactions when they begin to write. Each poll notes the time, then takes a number; once every
  transaction below that number has ended, what still comes was created after that time.
* SQLite has one writer at a time, so that what still comes was created after the newest row that shows.

What is under way is looked up by its id until it has ended, however long that takes.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from app.db.base import UTCDateTime, db_now
from app.llm.persistence.compiled import PREFIX
from app.llm.persistence.executor import Executor, Step
from app.llm.persistence.models import STARTED
from app.llm.persistence.reports import LISTED, Row, RunFilter
from app.llm.persistence.statements import runs
from app.llm.persistence.statements_usage import spaces

PAGE = 500
"""Runs that one read looks at."""
SLACK = timedelta(seconds=5)
"""By how much the database's clock may be set back, or a row's time be before its transaction has a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A run began or ended, with its row as it was when that was seen."""

    kind: Literal["started", "ended"]
    at: datetime
    run: Row


class transaction_number(FunctionElement[int]):  # noqa: N801  # reads as the SQL function it is
    """The number of the `oldest` transaction that is writing, or of this one, the `newest`; NULL where there are none."""

    type = sa.BigInteger()
    inherit_cache = True
    name = "transaction_number"

    def __init__(self, which: Literal["oldest", "newest"]) -> None:
        super().__init__(sa.literal_column(which))


@compiles(transaction_number, "sqlite")
def _number_sqlite(element: transaction_number, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001  # SQLAlchemy's hook
    return "NULL"


@compiles(transaction_number, "postgresql")
def _number_postgresql(element: transaction_number, compiler: SQLCompiler, **kw: Any) -> str:
    if compiler.process(element.clauses, **kw) == "oldest":
        return "txid_snapshot_xmin(txid_current_snapshot())"
    return "txid_current()"  # not the snapshot's xmax, which may be below numbers that are given already


_latest = (
    sa.select(
        sa.select(sa.func.max(runs.c.created_at))
        .where(runs.c.workspace_id == spaces.c.name)
        .scalar_subquery()
        .label("at")
    )
    .select_from(spaces)
    .where(spaces.c.name.is_not(None))
    .subquery("latest")
)
_NOW = Step(sa.select(db_now().label("now")), {})
_MARK = Step(
    sa.select(
        transaction_number("oldest").label("oldest"),
        transaction_number("newest").label("number"),
        sa.select(sa.func.max(_latest.c.at)).scalar_subquery().label("newest"),
    ),
    {},
)
_NOT_ENDED = {
    **dict.fromkeys(("finished_at", "finish_reason", "error_code", "latency_ms", "cost_usd")),
    **dict.fromkeys(("input_tokens", "output_tokens", "source_run_id")),
    "status": STARTED,
    "possibly_paid": False,
}
"""What the row of a run said, or would have said, when it began."""
_COLUMNS = tuple(runs.c[name] for name in LISTED)
_ENDED = sa.select(*_COLUMNS).where(
    runs.c.id.in_(sa.bindparam(PREFIX + "ids", expanding=True, type_=sa.String)),
    runs.c.finished_at.is_not(None),
)


class Follower:
    """One reader's place in the ledger; `poll` goes on from it."""

    def __init__(self, reader: Executor, wanted: RunFilter) -> None:
        """Follow what fits `wanted`: runs that are not older than it says, by default those that begin from now on."""
        self._reader = reader
        self._wanted = wanted
        lasting = tuple(wanted.lasting().conditions())
        self._page = _page(lasting)
        self._under_way = sa.select(runs.c.id).where(
            runs.c.finished_at.is_(None), runs.c.created_at < _time("begin"), *lasting
        )
        self._begin: datetime | None = None
        self._bound: datetime | None = None
        self._marks: deque[tuple[int, datetime]] = deque()
        self._told: dict[str, datetime] = {}
        self._live: set[str] = set()

    async def poll(self) -> AsyncGenerator[Event, None]:
        """Yield what has shown since the last time: of runs that are new the beginning, of all the end.

        Of runs that were under way when it was first called, the end is told alone. One that was left in the middle
        tells the rest the next time.

        Raises:
            LLMLedgerError: The database is away or locked; the next poll goes on where this one was.
        """
        now: datetime = (await self._reader.read(_NOW)).rows[0]["now"]
        mark = (await self._reader.read(_MARK)).rows[
            0
        ]  # after the time: whoever is numbered later wrote later
        begin = self._begin or await self._opened(now)
        bound = max(begin, (self._bound or begin) - SLACK)
        async for row in self._ended():
            self._live.discard(row["id"])
            if self._wanted.fits(row):
                yield Event(kind="ended", at=row["finished_at"], run=row)
        async for row in self._shown(bound):
            for event in self._new(row):
                if self._wanted.fits(event.run):
                    yield event
        self._advance(mark, now)

    async def _opened(self, now: datetime) -> datetime:
        """Note what is under way; return since when runs count as new."""
        begin = now - timedelta(seconds=self._wanted.newer_than_s or 0)
        live = await self._reader.read(Step(self._under_way, {"begin": begin}))
        self._live |= {row["id"] for row in live.rows}
        self._begin = begin
        return begin

    async def _ended(self) -> AsyncIterator[Row]:
        live = sorted(self._live)
        for start in range(0, len(live), PAGE):
            part = live[start : start + PAGE]
            found = (await self._reader.read(Step(_ENDED, {"ids": part}))).rows
            for row in sorted(found, key=lambda row: (row["finished_at"], row["id"])):
                yield row

    async def _shown(self, bound: datetime) -> AsyncIterator[Row]:
        """Yield the runs that were created since, in that order."""
        last = {"at": bound, "id": ""}
        while True:
            rows = (await self._reader.read(Step(self._page, last))).rows
            for row in rows:
                yield row
            if len(rows) < PAGE:
                return
            last = {"at": rows[-1]["created_at"], "id": rows[-1]["id"]}

    def _new(self, row: Row) -> Iterator[Event]:
        """Yield what a run tells that was not told of; it counts as told before anybody is told."""
        if row["id"] in self._told:
            return
        self._told[row["id"]] = row["created_at"]
        self._live.add(row["id"])
        yield Event(kind="started", at=row["created_at"], run={**row, **_NOT_ENDED})
        if row["finished_at"] is not None:
            self._live.discard(row["id"])
            yield Event(kind="ended", at=row["finished_at"], run=row)

    def _advance(self, mark: Mapping[str, Any], now: datetime) -> None:
        """Move the bound to where nothing new can show below it, and forget what was told before that."""
        if mark["oldest"] is None:
            self._bound = mark["newest"] or self._bound
        else:
            self._marks.append((mark["number"], now))
            while self._marks and self._marks[0][0] <= mark["oldest"]:
                self._bound = self._marks.popleft()[1]
        if self._bound is not None:
            oldest = self._bound - SLACK
            self._told = {run_id: at for run_id, at in self._told.items() if at >= oldest}


def _page(lasting: tuple[sa.ColumnElement[bool], ...]) -> sa.Select[Any]:
    at, run_id = _time("at"), sa.bindparam(PREFIX + "id", type_=sa.String)
    after = sa.or_(runs.c.created_at > at, sa.and_(runs.c.created_at == at, runs.c.id > run_id))
    return (
        sa.select(*_COLUMNS)
        .select_from(spaces.join(runs, runs.c.workspace_id == spaces.c.name))
        .where(runs.c.created_at >= at, after, *lasting)
        .order_by(runs.c.created_at, runs.c.id)
        .limit(sa.literal_column(str(PAGE)))
    )


def _time(name: str) -> sa.BindParameter[datetime]:
    return sa.bindparam(PREFIX + name, type_=UTCDateTime)

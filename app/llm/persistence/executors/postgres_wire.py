"""One connection to PostgreSQL: steps of one statement share a round trip, and every row finds its step again.

The driver sends many executions of a statement at once and returns their rows as one list, so each execution carries
a number that its rows bring back.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from app.db.engine import server_settings
from app.llm.persistence.compiled import KEPT_STATEMENTS, Compiled, Values, compiled
from app.llm.persistence.executor import Result, Step

FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""What the driver raises. Its texts may quote values."""
IDLE_S = 1.0
"""Seconds without use after which a connection is asked whether it still stands."""
_PING_S = 2.0
_LOCKED_BY = ("workspace_id", "idem_slot", "flight_slot", "sha256", "id")
"""Values that name what a statement locks. Everybody locks in their order, or two batches could wait for each other."""


class Query:
    """A step as it travels: the statement's text, and values for each of its executions."""

    __slots__ = ("_params", "rows", "statement", "step", "text")

    def __init__(self, step: Step) -> None:
        many = [step.params] if isinstance(step.params, Mapping) else step.params
        self.step = step
        self.statement: Compiled = compiled(step.statement, "postgresql")
        bound = [self.statement.bind(params) for params in many]
        self.text: str = bound[0][0] if bound else ""
        self.rows: list[Values] = [values for _, values in bound]
        self._params = many

    @property
    def writes(self) -> bool:
        """Whether rows are changed, and counted by returning them."""
        return isinstance(self.step.statement, sa.UpdateBase)

    def locks(self) -> list[tuple[str, ...]]:
        """Return what each execution locks, so far as its values tell."""
        return [tuple(str(params.get(name) or "") for name in _LOCKED_BY) for params in self._params]

    @property
    def can_be_numbered(self) -> bool:
        """Whether its rows can bring back a number; plain text is left as it is."""
        return isinstance(self.step.statement, sa.UpdateBase | sa.SelectBase)


class Wire:
    """A connection that is opened when it is needed and replaced when it broke. One user at a time."""

    def __init__(self, url: str, *, timeout_s: float, lock_timeout_s: float) -> None:
        self.lock_timeout_s = lock_timeout_s
        self._options = connect_options(url, timeout_s=timeout_s, lock_timeout_s=lock_timeout_s)
        self._connection: asyncpg.Connection[Any] | None = None
        self._used_at_s = 0.0

    @property
    def lost(self) -> bool:
        """Whether there is no connection, or none that can be used."""
        return self._connection is None or self._connection.is_closed()

    @property
    def stands(self) -> bool:
        """Whether there is a connection that was in use just now; noted as used."""
        since_s, self._used_at_s = self._used_at_s, asyncio.get_running_loop().time()
        return not self.lost and self._used_at_s - since_s <= IDLE_S

    async def connect(self) -> None:
        """Have a connection that stands: the one there is, if it answers, else a new one."""
        if not self.lost:
            await self._ask()
        if self.lost:
            self.drop()
            self._connection = await asyncpg.connect(**self._options)
        self._used_at_s = asyncio.get_running_loop().time()

    async def _ask(self) -> None:
        try:
            await self._open.execute("SELECT 1", timeout=_PING_S)
        except FAULTS:  # it is replaced, and what is wrong with the database comes to light there
            self.drop()

    def drop(self) -> None:
        """Give the connection up, whatever is on it."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Take leave of the server."""
        try:
            if not self.lost:
                await self._open.close(timeout=_PING_S)
        except FAULTS:  # the server is gone already
            self.drop()
        self._connection = None

    async def begin(self) -> None:
        """Start a transaction."""
        await self._open.execute("BEGIN")

    async def commit(self) -> None:
        """Commit."""
        await self._open.execute("COMMIT")

    async def rollback(self) -> None:
        """Undo a transaction, if one is open; a connection that cannot is given up."""
        try:
            if not self.lost and self._open.is_in_transaction():
                await self._open.execute("ROLLBACK")
        except FAULTS:
            self.drop()

    async def run(self, queries: Sequence[Query], *, followed: bool = False) -> list[Result]:
        """Run queries of one text in one round trip; outside a transaction all of them or none are committed.

        `followed`: what follows one query's step is done in the same statement.
        """
        first = queries[0]
        if followed and first.step.then:
            return [await self._run_joined(query) for query in queries]
        if not first.rows:
            return [Result([], 0) for _ in queries]
        if not first.can_be_numbered:
            return [await self._run_text(query) for query in queries]
        if len(queries) == len(first.rows) == 1 and not first.writes:
            records = await self._open.fetch(first.text, *first.rows[0])
            return [Result([first.statement.row(record) for record in records], len(records))]
        return await self._run_numbered(queries)

    async def _run_joined(self, query: Query) -> Result:
        followers = [each for step in query.step.then if (each := Query(step)).rows]
        text = _joined(query.text, tuple((each.text, len(each.rows)) for each in followers))
        values = [value for each in (query, *followers) for row in each.rows for value in row]
        return Result([], len(await self._open.fetch(text, *values)))

    async def _run_numbered(self, queries: Sequence[Query]) -> list[Result]:
        first = queries[0]
        text = _numbered(first.text, len(first.rows[0]) + 1, first.writes, first.statement.returns_rows)
        rows = [(*values, number) for number, query in enumerate(queries) for values in query.rows]
        if len(rows) == 1:
            records = await self._open.fetch(text, *rows[0])
        else:
            if first.writes:
                locks = [each for query in queries for each in query.locks()]
                rows = [rows[at] for at in sorted(range(len(rows)), key=locks.__getitem__)]
            records = await self._open.fetchmany(text, rows)
        found: list[list[dict[str, Any]]] = [[] for _ in queries]
        counts = [0] * len(queries)
        for record in records:
            number = record[-1]
            counts[number] += 1
            if first.statement.returns_rows:
                found[number].append(first.statement.row(record[:-1]))
        return [Result(each, count) for each, count in zip(found, counts, strict=True)]

    async def _run_text(self, query: Query) -> Result:
        prepared = await self._open.prepare(query.text)
        found: list[dict[str, Any]] = []
        count = 0
        for values in query.rows:
            found += [dict(record) for record in await prepared.fetch(*values)]
            changed = prepared.get_statusmsg().rpartition(" ")[2]
            count += int(changed) if changed.isdigit() else 0
        return Result(found, count)

    @property
    def _open(self) -> "asyncpg.Connection[Any]":
        if self._connection is None:
            raise asyncpg.InterfaceError("the connection is closed")
        return self._connection


def connect_options(url: str, *, timeout_s: float, lock_timeout_s: float) -> dict[str, Any]:
    """Return what the driver's `connect` takes, for a URL as SQLAlchemy reads it."""
    parsed = make_url(url)
    _, options = parsed.get_dialect()().create_connect_args(parsed)
    own_cache = options.pop("prepared_statement_cache_size", None)  # SQLAlchemy's; here is only the driver's
    for name in ("statement_cache_size", "max_cached_statement_lifetime", "max_cacheable_statement_size"):
        if name in options:
            options[name] = int(options[name])
    if own_cache is not None:
        options["statement_cache_size"] = min(own_cache, options.get("statement_cache_size", own_cache))
    return {**options, "timeout": timeout_s, "server_settings": server_settings(lock_timeout_s)}


@lru_cache(maxsize=KEPT_STATEMENTS)
def _numbered(text: str, place: int, writes: bool, returns_rows: bool) -> str:  # noqa: FBT001  # a cache's key
    """Return the text with one more value, an execution's number, as the last column of its rows."""
    if not writes:
        return f"SELECT found.*, ${place}::integer FROM ({text}) AS found"  # noqa: S608  # no value is in it
    return f"{text}, ${place}::integer" if returns_rows else f"{text} RETURNING ${place}::integer"


_PLACE = re.compile(r"\$(\d+)")


@lru_cache(maxsize=KEPT_STATEMENTS)
def _joined(text: str, followers: tuple[tuple[str, int], ...]) -> str:
    """Return one statement: `text`, and INSERTs of so many rows each that happen only if it changed a row."""
    parts, used = [f"WITH changed AS ({text} RETURNING 1)"], _places(text)
    for nth, (insert, rows) in enumerate(followers):
        head, found, rest = insert.partition(" VALUES (")
        row, conflict, tail = rest.rpartition(") ON CONFLICT")
        if not found or not conflict:
            raise ValueError("only INSERT .. VALUES .. ON CONFLICT can follow another statement")
        step = _places(row)
        moved = [_moved(row, used + step * at) for at in range(rows)]
        selects = " UNION ALL ".join(f"SELECT {each} FROM changed" for each in moved)  # noqa: S608  # as above
        parts.append(f"follower_{nth} AS ({head} {selects} ON CONFLICT{tail})")
        used += step * rows
    return f"{', '.join(parts)} SELECT 1 FROM changed"  # noqa: S608  # as above


def _places(text: str) -> int:
    return max((int(place) for place in _PLACE.findall(text)), default=0)


def _moved(text: str, by: int) -> str:
    return _PLACE.sub(lambda place: f"${int(place[1]) + by}", text)

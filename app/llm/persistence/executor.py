"""Who executes the protocol's statements: a seam of two methods, so that the protocol itself never does I/O.

A transaction is a generator that yields a `Step`, is sent the `Result`, and returns its outcome. The same generator
runs in a transaction of its own or inside a caller's session, and may be started again from the beginning.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.llm.errors import LLMLedgerBusy, LLMLedgerError, LLMLedgerSchema, LLMLedgerUnavailable
from app.llm.persistence.compiled import compiled

T = TypeVar("T")
Params = Mapping[str, Any] | Sequence[Mapping[str, Any]]

REPEATS = 3
"""Times that a transaction is started again after a deadlock or a serialization failure."""
_REPEATABLE = {"40001", "40P01"}
_BUSY = {"55P03", "57014"}
_CORRUPT = (
    "the file that LLM_DATABASE_URL names is damaged or something else: restore it from a backup, or move it away "
    "and start with an empty ledger"
)
_ADVICE = {
    "is not a database": _CORRUPT,
    "is malformed": _CORRUPT,
    "disk is full": "free some space, or `signalbox prune` what is old",
    "readonly database": "this process may write neither to the file that LLM_DATABASE_URL names nor beside it",
}
"""What to do about a fault of SQLite, by what its text says."""


class Step(NamedTuple):
    """One statement with its values; a sequence of values executes it once for each."""

    statement: sa.Executable
    params: Params
    brief: bool = False
    """It finds what it looks for by an index, and that is little."""
    then: "Sequence[Step]" = ()
    """Executed at once if this step changed a row, and only then; their results are not told. INSERTs only."""
    final: bool = False
    """A promise: if this step changes a row, the steps return and do not raise, so it may be committed on its own."""
    shares: str = ""
    """Name of what it changes beside its own rows, if others change that too: whoever changes several takes them in order."""


class Result(NamedTuple):
    """What a step gave: its rows as mappings, and how many rows it changed."""

    rows: Sequence[Mapping[str, Any]]
    rowcount: int

    @property
    def first(self) -> Mapping[str, Any] | None:
        """The first row, if any."""
        return self.rows[0] if self.rows else None


Steps = Generator[Step, Result, T]


class Executor(Protocol):
    """Runs steps. Both methods raise `LLMLedgerError`, or what the steps raise."""

    def transaction(self, steps: Callable[[], Steps[T]]) -> Awaitable[T]:
        """Run all steps in one transaction and commit it; `steps` may be called again from the start.

        What is returned may be a future, whose work ends whatever becomes of the caller, or a coroutine, which needs
        a task of its own for that: `asyncio.ensure_future` makes both the same. The steps may run in another thread.
        """
        ...

    def read(self, step: Step) -> Awaitable[Result]:
        """Run one SELECT outside of any transaction of ours; likewise a future or a coroutine."""
        ...

    async def close(self) -> None:
        """Close connections; idempotent."""
        ...


class SessionExecutor:
    """The joined binding's executor: every transaction is a savepoint of the caller's session, one at a time."""

    def __init__(self, session: AsyncSession, *, timeout_s: float) -> None:
        self._session = session
        self._timeout_s = timeout_s
        self._one_at_a_time = asyncio.Lock()

    async def transaction(self, steps: Callable[[], Steps[T]]) -> T:
        """Run all steps in a savepoint; a fault of ours rolls back to it and leaves the caller's work alone."""
        try:
            async with self._one_at_a_time, self._session.begin_nested():
                return await _drive(await self._session.connection(), steps())
        except (exc.SQLAlchemyError, OSError, TimeoutError) as error:
            fault, _ = ledger_error(error, self._timeout_s)
        raise fault

    async def read(self, step: Step) -> Result:
        """Run one SELECT in the caller's transaction, which sees what the caller wrote."""

        def steps() -> Steps[Result]:
            return (yield step)

        return await self.transaction(steps)

    async def close(self) -> None:
        """Leave the session to its owner."""


def unrolled(steps: Steps[T]) -> Steps[T]:
    """Return the same steps with those of `then` as steps of their own, and no promises: one statement at a time."""
    try:
        step = next(steps)
        while True:
            result = yield Step(step.statement, step.params)
            for follower in step.then if result.rowcount > 0 else ():  # noqa: UP028  # a tuple takes no results
                yield follower
            step = steps.send(result)
    except StopIteration as end:
        outcome: T = end.value
        return outcome


async def _drive(connection: AsyncConnection, steps: Steps[T]) -> T:
    steps = unrolled(steps)
    try:
        step = next(steps)
        while True:
            step = steps.send(await _execute(connection, step))
    except StopIteration as end:
        outcome: T = end.value
        return outcome


def prefixed(step: Step, dialect: Any) -> Any:  # names of dialects, SQLAlchemy's values
    """Return the values of a step as SQLAlchemy takes them."""
    prefix = compiled(step.statement, dialect).prefixed
    return prefix(step.params) if isinstance(step.params, Mapping) else [*map(prefix, step.params)]


async def _execute(connection: AsyncConnection, step: Step) -> Result:
    result = await connection.execute(step.statement, prefixed(step, connection.dialect.name))
    rows = [dict(row) for row in result.mappings()] if result.returns_rows else []
    return Result(rows, result.rowcount)


def ledger_error(error: BaseException, timeout_s: float) -> tuple[LLMLedgerError, bool]:
    """Return our error for a database fault, and whether the transaction may simply be run again.

    Neither the statement nor its values are quoted: they hold prompts.
    """
    origin = getattr(error, "orig", None) or error
    state = str(getattr(origin, "sqlstate", None) or getattr(origin, "pgcode", None) or "")
    text = str(origin).splitlines()[0][:200] if str(origin) else type(origin).__name__
    if state.startswith("22") or type(origin).__name__ == "DataError":
        text = "a value does not fit its column"  # the driver's text quotes it
    if state in _REPEATABLE:
        return LLMLedgerBusy(
            "the database keeps refusing the transaction (deadlock or serialization failure)",
            retry_after_s=1.0,
        ), True
    if state in _BUSY or "database is locked" in text or isinstance(error, exc.TimeoutError | TimeoutError):
        return LLMLedgerBusy(
            f"the ledger's lock or connection was not to be had within {timeout_s:g} s: a writer outside holds it; "
            "keep transactions short, use llm.joined(session), or give the ledger its own file (LLM_DATABASE_URL)",
            retry_after_s=1.0,
        ), False
    if state == "42P01" or "no such table" in text or "no such column" in text or state == "42703":
        return LLMLedgerSchema(f"the ledger's tables are not there ({text}): run `signalbox migrate`"), False
    advice = next((said for sign, said in _ADVICE.items() if sign in text), "check LLM_DATABASE_URL")
    return LLMLedgerUnavailable(
        f"the ledger's database failed ({type(origin).__name__}: {text}); {advice}"
    ), False

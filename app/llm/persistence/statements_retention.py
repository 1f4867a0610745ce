"""The statements of pruning: reads that find a page without locking anybody, writes that judge its rows again.

What is written to is a range of primary keys, never a list of them. No read looks at more than `SCAN` rows, and no
write at more than its range.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from app.db.base import db_now, utc_day
from app.llm.budgets import PERIOD_CHARS
from app.llm.persistence.compiled import PREFIX
from app.llm.persistence.executor import Step
from app.llm.persistence.models import STARTED
from app.llm.persistence.statements import attempts, payloads, runs
from app.llm.persistence.statements_budgets import counters
from app.llm.persistence.statements_usage import PRUNED_COLUMNS

SCAN = 5_000
"""Rows that one read looks at."""
PAYLOAD_REST_S = 3600.0
"""Seconds since the last reference before a payload may go: a finish that is under way refers to younger ones."""

Address = tuple[str, str]
"""Workspace and SHA-256 of a payload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which runs are pruned, and how."""

    older_than_s: float
    workspace_id: str | None
    payloads_only: bool
    keys: bool


class usual_batch(FunctionElement[int]):  # noqa: N801  # reads as the SQL function it is
    """Rows per write: SQLite has one writer at a time, and the others wait for it."""

    type = sa.Integer()
    inherit_cache = True


@compiles(usual_batch, "sqlite")
def _batch_sqlite(_element: usual_batch, _compiler: SQLCompiler, **_: Any) -> str:  # SQLAlchemy's hook
    return "500"


@compiles(usual_batch, "postgresql")
def _batch_postgresql(_element: usual_batch, _compiler: SQLCompiler, **_: Any) -> str:
    return "5000"


class no_compiler(FunctionElement[Any]):  # noqa: N801
    """PostgreSQL takes the range of a page for a third of the table: compiling would take longer than deleting."""

    inherit_cache = True


@compiles(no_compiler, "sqlite")
def _no_compiler_sqlite(_element: no_compiler, _compiler: SQLCompiler, **_: Any) -> str:
    return "NULL"


@compiles(no_compiler, "postgresql")
def _no_compiler_postgresql(_element: no_compiler, _compiler: SQLCompiler, **_: Any) -> str:
    return "set_config('jit', 'off', true)"


class place(FunctionElement[Any]):  # noqa: N801
    """Where a row of `page` is stored."""

    inherit_cache = True


class is_among(FunctionElement[Any]):  # noqa: N801
    """Whether a row is stored at one of the places that a SELECT of them finds and locks.

    Not a comparison of keys: PostgreSQL would plan a join with the page, whose size it cannot guess, and could choose
    one that reads the page anew for every row of the table. A row that was changed since the statement began is
    stored elsewhere, and stays. Not of type Boolean: `(...) = 1` is what SQLite would get, and read every row for it.
    """

    inherit_cache = True


@compiles(place, "sqlite")
def _place_sqlite(_element: place, _compiler: SQLCompiler, **_: Any) -> str:
    return "page.rowid"


@compiles(place, "postgresql")
def _place_postgresql(_element: place, _compiler: SQLCompiler, **_: Any) -> str:
    return "page.ctid"


@compiles(is_among, "sqlite")
def _among_sqlite(element: is_among, compiler: SQLCompiler, **kw: Any) -> str:
    return f"rowid IN {compiler.process(element.clauses, **kw)}"


@compiles(is_among, "postgresql")
def _among_postgresql(element: is_among, compiler: SQLCompiler, **kw: Any) -> str:
    return f"ctid = ANY (ARRAY{compiler.process(element.clauses, **kw)})"


def _param(name: str) -> sa.BindParameter[str]:
    return sa.bindparam(PREFIX + name, type_=sa.String)


USUAL_BATCH = Step(sa.select(usual_batch().label("rows")), {})
NO_COMPILER = Step(sa.select(no_compiler().label("off")), {})
"""First step of a write, and for that transaction only."""

# -- runs


def find_runs(which: Selection, after: str, limit: int) -> Step:
    """Return the look-up of the next page: each old run's `id`, and whether it is `kept`."""
    window = (
        sa.select(runs.c.id, _is_wanted(which).label("wanted"), _holds_live_key().label("holds"))
        .where(runs.c.id > after)
        .order_by(runs.c.id)
        .limit(SCAN)
        .subquery()
    )
    kept = window.c.holds if _spares_keys(which) else sa.false()
    return _step(
        sa.select(window.c.id, kept.label("kept")).where(window.c.wanted).order_by(window.c.id).limit(limit)
    )


def end_of_window(which: Selection, after: str) -> Step:
    """Return the look-up of what a read has seen: its `last` id, how many rows, how many of an age to be pruned.

    No run ends before it was created and ids sort by time, so a window of young rows has only young ones behind it.
    """
    window = (
        sa.select(runs.c.id, (runs.c.created_at < _ago(which.older_than_s)).label("aged"))
        .where(runs.c.id > after)
        .order_by(runs.c.id)
        .limit(SCAN)
        .subquery()
    )
    return _step(
        sa.select(
            sa.func.max(window.c.id).label("last"),
            sa.func.count().label("seen"),
            sa.func.count(sa.case((window.c.aged, 1))).label("aged"),
        ).select_from(window)
    )


def count_attempts(which: Selection, after: str, last: str) -> Step:
    """Return the look-up of how many sends the prunable runs of a page have."""
    return _step(
        sa.select(sa.func.count().label("attempts"))
        .select_from(attempts.join(runs, runs.c.id == attempts.c.run_id))
        .where(*_page_of_runs(after, last), _is_prunable(which))
    )


def delete_runs(which: Selection, after: str, last: str) -> Step:
    """Return the deletion of a page's runs, but for those that somebody is writing to; it returns what they count."""
    return Step(_delete_runs(which), {"after": after, "last": last})


@lru_cache(maxsize=8)
def _delete_runs(which: Selection) -> sa.Executable:
    return sa.delete(runs).where(_lock_runs(which)).returning(*PRUNED_COLUMNS)


def empty_runs(which: Selection, after: str, last: str) -> Step:
    """Return the update that lets a page's runs forget their texts."""
    return Step(_empty_runs(which), {"after": after, "last": last})


@lru_cache(maxsize=8)
def _empty_runs(which: Selection) -> sa.Executable:
    forgotten = {"request_payload": sa.null(), "response_payload": sa.null()}
    return sa.update(runs).values(forgotten).where(_lock_runs(which))


def delete_attempts(after: str, last: str) -> Step:
    """Return the deletion of a page's sends that have lost their run; one in progress shows both or none."""
    return Step(_DELETE_ATTEMPTS, {"after": after, "last": last})


_RUN_OF_ATTEMPT = sa.select(runs.c.id).where(runs.c.id == attempts.c.run_id).scalar_subquery()
_DELETE_ATTEMPTS = sa.delete(attempts).where(
    attempts.c.run_id > _param("after"), attempts.c.run_id <= _param("last"), _RUN_OF_ATTEMPT.is_(None)
)


def _lock_runs(which: Selection) -> is_among:
    page = runs.alias("page")
    return _locked(page, page.c.id > _param("after"), page.c.id <= _param("last"), _is_prunable(which, page))


def _page_of_runs(after: str, last: str) -> tuple[sa.ColumnElement[bool], ...]:
    return runs.c.id > after, runs.c.id <= last


def _is_prunable(which: Selection, of: sa.FromClause = runs) -> sa.ColumnElement[bool]:
    wanted = _is_wanted(which, of)
    return sa.and_(wanted, sa.not_(_holds_live_key(of))) if _spares_keys(which) else wanted


def _is_wanted(which: Selection, of: sa.FromClause = runs) -> sa.ColumnElement[bool]:
    wanted = [of.c.status != STARTED, of.c.finished_at < _ago(which.older_than_s)]
    if which.workspace_id is not None:
        wanted.append(of.c.workspace_id == which.workspace_id)
    if which.payloads_only:
        wanted.append(sa.or_(of.c.request_payload.is_not(None), of.c.response_payload.is_not(None)))
    return sa.and_(*wanted)


def _holds_live_key(of: sa.FromClause = runs) -> sa.ColumnElement[bool]:
    """Never NULL, so that it can be negated."""
    return sa.and_(of.c.idem_slot.is_not(None), sa.or_(of.c.expires_at.is_(None), of.c.expires_at > db_now()))


def _spares_keys(which: Selection) -> bool:
    return not (which.keys or which.payloads_only)  # a run without texts holds its key as well as before


def find_counters(which: Selection) -> Step:
    """Return the look-up of one counter that `delete_counters` would delete."""
    return _step(sa.select(counters.c.period).where(*_is_long_over(which)).limit(1))


def delete_counters(which: Selection) -> Step:
    """Return the deletion of budgets' counters of months that were over by then, and of their days."""
    return _step(sa.delete(counters).where(*_is_long_over(which)))


def _is_long_over(which: Selection) -> list[sa.ColumnElement[bool]]:
    month = sa.func.substr(utc_day(_ago(which.older_than_s)), 1, PERIOD_CHARS["month"])
    whose = [] if which.workspace_id is None else [counters.c.workspace_id == which.workspace_id]
    return [counters.c.period < month, *whose]


# -- payloads


def find_orphans(which: Selection, after: Address, limit: int) -> Step:
    """Return the look-up of the next payloads that no run refers to, with their size in bytes."""
    window = _window_of_payloads(which, after).limit(SCAN).subquery()
    size = (
        sa.select(sa.func.length(payloads.c.bytes))
        .where(payloads.c.workspace_id == window.c.workspace_id, payloads.c.sha256 == window.c.sha256)
        .scalar_subquery()
    )
    return _step(
        sa.select(window.c.workspace_id, window.c.sha256, size.label("size"))
        .where(*_is_orphan(window))
        .order_by(window.c.workspace_id, window.c.sha256)
        .limit(limit)
    )


def end_of_payloads(which: Selection, after: Address) -> Step:
    """Return the look-up of the last address that a read has seen; no row when it saw the last one of all."""
    return _step(_window_of_payloads(which, after).offset(SCAN - 1).limit(1))


def delete_orphans(after: Address, last: Address) -> Step:
    """Return the deletion of a page's payloads, judged and deleted by one statement.

    A run refers to a payload in the transaction that renews `last_ref_at`, which locks the row. PostgreSQL: such a
    row is skipped while that transaction is open, and once it has ended the age is read from the row's newest
    version, whatever the statement's snapshot knows of runs. A finish that comes later waits and stores it again.
    """
    names = ("after_workspace_id", "after_sha256", "last_workspace_id", "last_sha256")
    return Step(_delete_orphans(), dict(zip(names, (*after, *last), strict=True)))


@cache
def _delete_orphans() -> sa.Executable:
    page = payloads.alias("page")
    address = sa.tuple_(page.c.workspace_id, page.c.sha256)
    after, last = (
        sa.tuple_(_param(f"{end}_workspace_id"), _param(f"{end}_sha256")) for end in ("after", "last")
    )
    orphans = _locked(page, address > after, address <= last, *_is_orphan(page))
    return sa.delete(payloads).where(orphans, payloads.c.last_ref_at < _ago(PAYLOAD_REST_S))


def _window_of_payloads(which: Selection, after: Address) -> sa.Select[Any]:
    address = (payloads.c.workspace_id, payloads.c.sha256)
    window = sa.select(*address).where(sa.tuple_(*address) > sa.tuple_(*after)).order_by(*address)
    return window if which.workspace_id is None else window.where(address[0] == which.workspace_id)


def _is_orphan(of: sa.FromClause) -> list[sa.ColumnElement[bool]]:
    """Not EXISTS: PostgreSQL could turn that into a join with every run there is; this is two index probes a row."""
    return [
        sa.select(runs.c.id)
        .where(runs.c.workspace_id == of.c.workspace_id, runs.c[name] == of.c.sha256)
        .limit(1)
        .scalar_subquery()
        .is_(None)
        for name in ("request_payload", "response_payload")
    ]


def _locked(page: sa.FromClause, *conditions: sa.ColumnElement[bool]) -> is_among:
    found = sa.select(place()).select_from(page).where(*conditions)
    return is_among(found.with_for_update(skip_locked=True).scalar_subquery())


def _ago(seconds: float) -> db_now:
    return db_now(sa.literal(-seconds, sa.Float))


def _step(statement: sa.Executable) -> Step:
    return Step(statement, {})

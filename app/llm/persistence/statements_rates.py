"""The statements of shared rates. One statement takes a place or says how long to wait, by the database's clock.

The row that is offered brings the time with it, so that one statement reads the clock once for all it decides.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert  # its ON CONFLICT compiles on SQLite as well
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from app.db.base import Base
from app.llm.persistence.compiled import PREFIX
from app.llm.persistence.models import LLMRate

rates = Base.metadata.tables[LLMRate.__tablename__]


class epoch_s(FunctionElement[float]):  # noqa: N801  # reads as the SQL function it is
    """Seconds since 1970 by the database's clock."""

    type = sa.Float()
    inherit_cache = True


@compiles(epoch_s, "sqlite")
def _epoch_sqlite(element: epoch_s, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001  # SQLAlchemy's hook
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(epoch_s, "postgresql")
def _epoch_postgresql(element: epoch_s, compiler: SQLCompiler, **kw: Any) -> str:  # noqa: ARG001  # as above
    return "EXTRACT(EPOCH FROM clock_timestamp())::float8"


class largest(FunctionElement[float]):  # noqa: N801  # as above
    """The largest of some numbers, none of which is NULL."""

    type = sa.Float()
    inherit_cache = True


@compiles(largest, "sqlite")
def _largest_sqlite(element: largest, compiler: SQLCompiler, **kw: Any) -> str:  # as above
    return f"max({compiler.process(element.clauses, **kw)})"


@compiles(largest, "postgresql")
def _largest_postgresql(element: largest, compiler: SQLCompiler, **kw: Any) -> str:  # as above
    return f"greatest({compiler.process(element.clauses, **kw)})"


def _bind(name: str, kind: Any = sa.Float) -> sa.BindParameter[Any]:
    return sa.bindparam(PREFIX + name, type_=kind)


_NONE = sa.literal_column("0.0", sa.Float)
_NAMED = rates.c.name == _bind("id", sa.String)
"""By `id`, for everybody locks in the order of ids."""


def _owed(kind: str) -> sa.ColumnElement[float]:
    """Return what is still owed of a place's cost, some time after it was taken."""
    return largest(_bind(f"{kind}_s") - (epoch_s() - _bind("at_s")), _NONE)


def _take() -> Any:  # SQLAlchemy's types of RETURNING
    offered = insert(rates).values(
        name=_bind("id", sa.String),
        requests_at_s=epoch_s() + _bind("requests_s"),
        tokens_at_s=epoch_s() + _bind("tokens_s"),
        held_until_s=_NONE,
        asked_at_s=epoch_s(),
        wait_s=_NONE,
    )
    now_s = offered.excluded.asked_at_s
    other = rates.alias("other")
    held = sa.select(other.c.held_until_s).where(other.c.name == _bind("candidate", sa.String))
    held_until_s = sa.func.coalesce(held.scalar_subquery(), _NONE)
    wait_s = largest(
        rates.c.requests_at_s - now_s - _bind("requests_lead_s"),
        rates.c.tokens_at_s - now_s - _bind("tokens_lead_s"),
        held_until_s - now_s,
        _NONE,
    )

    def moved(column: sa.ColumnElement[float], kind: str) -> sa.ColumnElement[float]:
        return sa.case((wait_s <= _NONE, largest(column, now_s) + _bind(f"{kind}_s")), else_=column)

    taken = offered.on_conflict_do_update(
        index_elements=[rates.c.name],
        set_={
            "requests_at_s": moved(rates.c.requests_at_s, "requests"),
            "tokens_at_s": moved(rates.c.tokens_at_s, "tokens"),
            "asked_at_s": now_s,
            "wait_s": wait_s,
        },
    )
    held_s = largest(held_until_s - rates.c.asked_at_s, _NONE)
    return taken.returning(rates.c.wait_s, rates.c.asked_at_s, held_s.label("held_s"))


TAKE = _take()
"""Move both times if both are close enough and nobody is held; else change neither, and say how long that takes."""
GIVE_BACK = (
    sa.update(rates)
    .values(
        requests_at_s=rates.c.requests_at_s - _owed("requests"),
        tokens_at_s=rates.c.tokens_at_s - _owed("tokens"),
    )
    .where(_NAMED)
)
CORRECT = sa.update(rates).values(tokens_at_s=rates.c.tokens_at_s + _bind("tokens_s")).where(_NAMED)

_asked_for = insert(rates).values(
    name=_bind("id", sa.String),
    **dict.fromkeys(("requests_at_s", "tokens_at_s", "asked_at_s", "wait_s"), _NONE),
    held_until_s=epoch_s() + _bind("for_s"),
)
HOLD = _asked_for.on_conflict_do_update(
    index_elements=[rates.c.name],
    set_={"held_until_s": largest(rates.c.held_until_s, _asked_for.excluded.held_until_s)},
)

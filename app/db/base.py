"""The one metadata of the application, with times and database clocks that mean the same on both dialects."""

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

_SQLITE_CHARS = len("2026-01-01 12:30:15.123")


class Base(DeclarativeBase):
    """Declarative base; the naming convention lets migrations name every constraint."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UTCDateTime(sa.types.TypeDecorator[datetime]):
    """An aware UTC time: TIMESTAMPTZ on PostgreSQL, text of millisecond precision that sorts by time on SQLite."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Choose the column type of the dialect."""
        return sa.String(_SQLITE_CHARS) if dialect.name == "sqlite" else sa.DateTime(timezone=True)

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> object:
        """Python to database."""
        if value is None or dialect.name != "sqlite":
            return value
        if value.tzinfo is not UTC:
            value = value.astimezone(UTC)
        return value.isoformat(" ", "milliseconds")[:_SQLITE_CHARS]

    def process_result_value(self, value: Any | None, dialect: sa.Dialect) -> datetime | None:
        """Database to Python."""
        if value is None or dialect.name != "sqlite":
            return value
        return datetime.fromisoformat(value).replace(tzinfo=UTC)


_NANOS, _EXACT = Decimal(10**9), Context(prec=60, rounding=ROUND_HALF_EVEN)


class Money(sa.types.TypeDecorator[Decimal]):
    """Exact dollars with nine places: NUMERIC on PostgreSQL, a whole number of nano-dollars on SQLite.

    SQLite has no decimals and would keep binary fractions, whose sums drift; whole numbers add up exactly.
    """

    impl = sa.Numeric
    cache_ok = True

    def __init__(self) -> None:
        super().__init__(18, 9)

    @property
    def python_type(self) -> type[Decimal]:
        """What a program sees."""
        return Decimal

    def bind_processor(self, dialect: sa.Dialect) -> Any:
        """Python to database."""
        return _nanos if dialect.name == "sqlite" else super().bind_processor(dialect)

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Any:
        """Database to Python."""
        return _dollars if dialect.name == "sqlite" else super().result_processor(dialect, coltype)


def _nanos(dollars: Any) -> int | None:
    return None if dollars is None else int(_EXACT.multiply(Decimal(dollars), _NANOS).to_integral_value())


def _dollars(nanos: Any) -> Decimal | None:
    return None if nanos is None else _EXACT.divide(Decimal(nanos), _NANOS)


class utc_day(FunctionElement[str]):  # noqa: N801  # as below
    """The day of a time, in UTC, as `2026-01-31`."""

    type = sa.String(10)
    inherit_cache = True


@compiles(utc_day, "sqlite")
def _day_sqlite(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:  # SQLAlchemy's hook
    return f"substr({compiler.process(element.clauses, **kw)}, 1, 10)"


@compiles(utc_day, "postgresql")
def _day_postgresql(element: utc_day, compiler: SQLCompiler, **kw: Any) -> str:
    return f"to_char({compiler.process(element.clauses, **kw)} AT TIME ZONE 'UTC', 'YYYY-MM-DD')"


class db_now(FunctionElement[datetime]):  # noqa: N801  # reads as the SQL function it is
    """The database's clock plus an offset in seconds; moves on inside a transaction, unlike `now()`."""

    type = UTCDateTime()
    inherit_cache = True

    def __init__(self, offset_s: sa.ColumnElement[float] | None = None) -> None:
        super().__init__(*(() if offset_s is None else (offset_s,)))


@compiles(db_now, "sqlite")
def _now_sqlite(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:  # SQLAlchemy's hook
    offset = compiler.process(element.clauses, **kw)
    if not offset:
        return "strftime('%Y-%m-%d %H:%M:%f', 'now')"
    return f"strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', {offset}))"


@compiles(db_now, "postgresql")
def _now_postgresql(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    offset = compiler.process(element.clauses, **kw)
    return f"(clock_timestamp() + make_interval(secs => {offset or '0.0'}))"


class seconds_until(FunctionElement[float]):  # noqa: N801
    """Seconds from the database's clock to a time column; negative when it has passed."""

    type = sa.Float()
    inherit_cache = True


@compiles(seconds_until, "sqlite")
def _until_sqlite(element: seconds_until, compiler: SQLCompiler, **kw: Any) -> str:
    return f"((julianday({compiler.process(element.clauses, **kw)}) - julianday('now')) * 86400.0)"


@compiles(seconds_until, "postgresql")
def _until_postgresql(element: seconds_until, compiler: SQLCompiler, **kw: Any) -> str:
    return f"EXTRACT(EPOCH FROM ({compiler.process(element.clauses, **kw)} - clock_timestamp()))::float8"

"""Core statements as the driver takes them, compiled once: SQL text, positional values, rows as dicts.

SQLAlchemy says what is sent, types included; only its execution, which costs ten times the driver's, is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.sql.compiler import SQLCompiler

PREFIX = "p_"
"""In front of the names that statements bind: SQLAlchemy keeps columns' own names to itself. Values come without it."""
DialectName = Literal["sqlite", "postgresql"]
Values = tuple[Any, ...]
_Processor = Callable[[Any], Any]

KEPT_STATEMENTS = 512
"""Statements that stay compiled; the protocol has some 30, those of reports and prune pass by."""
_DIALECTS: dict[DialectName, sa.Dialect] = {
    "sqlite": pysqlite.dialect(),
    "postgresql": asyncpg.dialect(),  # type: ignore[no-untyped-call]
}
_FLOAT8_OID, _NUMERIC_OID = 701, 1700
"""How PostgreSQL names the types of result columns (pg_type.dat)."""


@lru_cache(maxsize=KEPT_STATEMENTS)
def compiled(statement: sa.Executable, dialect: DialectName) -> "Compiled":
    """Return a statement for a driver: `?` for sqlite3, `$1` and casts for asyncpg. Same object, same result."""
    return Compiled(statement, _DIALECTS[dialect])


class Compiled:
    """One statement. Its text depends on the values only where a list is bound (`IN`), by the list's length."""

    __slots__ = ("_compiler", "_lists", "_result_processors", "_shape", "_shapes", "names", "returns_rows")

    def __init__(self, statement: sa.Executable, dialect: sa.Dialect) -> None:
        compiler = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        columns: Sequence[sa.ColumnElement[Any]] = tuple(getattr(statement, "exported_columns", ()))
        self._compiler: SQLCompiler = compiler
        self._lists = {name: bind for bind, name in compiler.bind_names.items() if bind.expanding}
        self._shape = None if self._lists else _Shape(compiler, {})
        self._shapes: dict[tuple[int, ...], _Shape] = {}
        self._result_processors = _result_processors(columns, dialect)
        self.names: tuple[str, ...] = tuple(str(column.name) for column in columns)
        """The columns of its rows."""
        self.returns_rows: bool = bool(columns)

    def bind(self, params: Mapping[str, Any]) -> tuple[str, Values]:
        """Return the SQL text and the values for its places, as the driver takes them.

        Raises:
            KeyError: A value is missing.
        """
        shape = self._shape or self._shape_for(params)
        return shape.text, shape.values(params)

    def prefixed(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that the statement binds under the names by which it binds them."""
        names = ((name, _plain(name)) for name in self._compiler.bind_names.values())
        return {name: params[plain] for name, plain in names if plain in params}

    def row(self, raw: Sequence[Any]) -> dict[str, Any]:
        """Return a row of the driver under the names of its columns, as Python values."""
        row = dict(zip(self.names, raw, strict=True))
        for name, process in self._result_processors:
            row[name] = process(row[name])
        return row

    def _shape_for(self, params: Mapping[str, Any]) -> "_Shape":
        lists = {name: params.get(_plain(name), bind.effective_value) for name, bind in self._lists.items()}
        lengths = tuple(map(len, lists.values()))
        shape = self._shapes.get(lengths)
        if shape is None:
            shape = self._shapes[lengths] = _Shape(self._compiler, lists)
        return shape


class _Shape:
    """A statement whose lists have certain lengths: one text, one order of values."""

    __slots__ = ("_elements", "_fixed", "_pick", "_processors", "text")

    def __init__(self, compiler: SQLCompiler, lists: Mapping[str, Sequence[Any]]) -> None:
        binds = {name: bind for bind, name in compiler.bind_names.items()}
        known = {name: None if bind.required else bind.effective_value for name, bind in binds.items()}
        state = compiler.construct_expanded_state({**known, **lists})
        order = tuple(state.positiontup or ())
        self.text: str = state.statement
        self._elements = {_plain(name): tuple(names) for name, names in state.parameter_expansion.items()}
        origin = {part: name for name, parts in state.parameter_expansion.items() for part in parts}
        self._fixed: dict[str, Any] = {
            _plain(name): value for name, value in known.items() if not binds[name].required
        }
        processors = {name: _bind_processor(binds[origin.get(name, name)], compiler) for name in order}
        self._processors = tuple(
            (place, process) for place, name in enumerate(order) if (process := processors[name]) is not None
        )
        self._pick = _picker(tuple(name if name in origin else _plain(name) for name in order))

    def values(self, params: Mapping[str, Any]) -> Values:
        if self._fixed:
            params = {**self._fixed, **params}
        if self._elements:
            params = dict(params)
            for name, parts in self._elements.items():
                params.update(zip(parts, params[name], strict=True))
        picked = self._pick(params)
        if not self._processors:
            return picked
        values = list(picked)
        for place, process in self._processors:
            values[place] = process(values[place])
        return tuple(values)


def _plain(name: str) -> str:
    return name.removeprefix(PREFIX)


def _picker(order: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Values]:
    if len(order) > 1:
        return itemgetter(*order)
    return lambda params: tuple(params[name] for name in order)  # itemgetter gives a tuple for two and more


def _bind_processor(bind: sa.BindParameter[Any], compiler: SQLCompiler) -> _Processor | None:
    return bind.type.dialect_impl(compiler.dialect).bind_processor(compiler.dialect)


def _result_processors(
    columns: Sequence[sa.ColumnElement[Any]], dialect: sa.Dialect
) -> tuple[tuple[str, _Processor], ...]:
    found = []
    for column in columns:
        kind = _FLOAT8_OID if isinstance(column.type, sa.Float) else _NUMERIC_OID
        process = column.type.dialect_impl(dialect).result_processor(dialect, kind)
        if process is not None:
            found.append((str(column.name), process))
    return tuple(found)

"""The statements of budgets: counters that change by conditional updates, derived from the run's own row.

A run counts in the day and the month in which its row was created, by the database's clock, whenever it ends. What it
holds or counts stands on its row, so that a counter can be made from the rows at any time.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert  # its ON CONFLICT compiles on SQLite as well

from app.db.base import Base, Money, UTCDateTime, db_now, utc_day
from app.llm.budgets import MOST_TOKENS
from app.llm.persistence.compiled import PREFIX
from app.llm.persistence.executor import Step
from app.llm.persistence.models import STARTED, LLMBudget, LLMUsagePruned
from app.llm.persistence.statements import runs
from app.llm.ports import TOOL

counters = Base.metadata.tables[LLMBudget.__tablename__]
pruned = Base.metadata.tables[LLMUsagePruned.__tablename__]

COLUMNS = tuple(counters.c.keys())
SUMS = ("spent_tokens", "spent_usd", "reserved_tokens", "reserved_usd", "unknown_costs")


def _bind(name: str, kind: Any = sa.String) -> sa.BindParameter[Any]:
    return sa.bindparam(PREFIX + name, type_=kind)


def _number(value: int) -> sa.ColumnElement[Any]:
    return sa.literal_column(str(value), sa.BigInteger)


def _text(value: str) -> sa.ColumnElement[str]:
    return sa.literal_column(f"'{value}'", sa.Text)


# -- one run in its counters

_HAS_ID = runs.c.id == _bind("id")


def _of_run(column: sa.ColumnElement[Any]) -> sa.ScalarSelect[Any]:
    return sa.select(column).where(_HAS_ID, runs.c.reserved_tokens.is_not(None)).scalar_subquery()


_chars = _bind("chars", sa.Integer)
_IS_ITS_COUNTER = sa.and_(
    counters.c.workspace_id == _of_run(runs.c.workspace_id),
    counters.c.period
    == _of_run(sa.func.substr(utc_day(runs.c.created_at), sa.literal_column("1", sa.Integer), _chars)),
)
"""Of no run where it holds nothing."""


def _fits(measure: str, kind: Any) -> sa.ColumnElement[bool]:
    taken = counters.c[f"spent_{measure}"] + counters.c[f"reserved_{measure}"]
    limit, more = _bind(f"{measure}_limit", kind), _bind(measure, kind)
    return sa.or_(limit.is_(None), more == _number(0), taken + more <= limit)


RESERVE = (
    sa.update(counters)
    .values(
        reserved_tokens=counters.c.reserved_tokens + _bind("tokens", sa.BigInteger),
        reserved_usd=counters.c.reserved_usd + _bind("usd", Money),
    )
    .where(_IS_ITS_COUNTER, _fits("tokens", sa.BigInteger), _fits("usd", Money))
)
"""Changes no row where it does not fit, or where there is no counter yet."""
HOLD = (
    sa.update(runs)
    .values(
        reserved_tokens=runs.c.reserved_tokens + _bind("tokens", sa.BigInteger),
        reserved_cost_usd=runs.c.reserved_cost_usd + _bind("usd", Money),
    )
    .where(_HAS_ID)
)

_held = {"tokens": _of_run(runs.c.reserved_tokens), "usd": _of_run(runs.c.reserved_cost_usd)}
_given_back = {f"reserved_{name}": counters.c[f"reserved_{name}"] - held for name, held in _held.items()}
_charge = {"tokens": _bind("tokens", sa.BigInteger), "usd": _bind("usd", Money)}
_unknown = counters.c.unknown_costs + _bind("unknown", sa.BigInteger)
SETTLE = (
    sa.update(counters)
    .values(
        **_given_back,
        **{f"spent_{name}": counters.c[f"spent_{name}"] + charge for name, charge in _charge.items()},
        unknown_costs=_unknown,
    )
    .where(_IS_ITS_COUNTER)
)
"""Of a run that has ended in this transaction: what it held is free again, what it cost counts."""
ABANDON = (
    sa.update(counters)
    .values(
        **_given_back,
        **{f"spent_{name}": counters.c[f"spent_{name}"] + held for name, held in _held.items()},
        unknown_costs=counters.c.unknown_costs + _number(1),
    )
    .where(_IS_ITS_COUNTER)
)
"""Of a run whose owner was declared dead: it may have sent, so what it held counts."""
CORRECT = (
    sa.update(counters)
    .values(
        **{
            f"spent_{name}": counters.c[f"spent_{name}"] + charge - _held[name]
            for name, charge in _charge.items()
        },
        unknown_costs=_unknown - _number(1),
    )
    .where(_IS_ITS_COUNTER)
)
"""Of such a run whose owner was only late, and told what it cost."""
CHARGE = (
    sa.update(runs).values(reserved_tokens=_charge["tokens"], reserved_cost_usd=_charge["usd"]).where(_HAS_ID)
)
CREATED_AT = sa.select(runs.c.created_at).where(_HAS_ID)

# -- counters

ALONE = Step(sa.select(sa.literal_column("1", sa.Integer).label("alone")), {}, brief=True)
"""First step of what counts runs: a look.

PostgreSQL's executor gives what begins with one a transaction of its own. In company it would see runs that others have
inserted, and whose reservation they take only in their next step, and both would count it.
"""
_one = sa.select(db_now().label("now")).subquery("one")
_day = utc_day(_one.c.now)
_MONTH = sa.func.substr(_day, sa.literal_column("1", sa.Integer), sa.literal_column("7", sa.Integer))
_IS_PRESENT = sa.or_(counters.c.period == _day, counters.c.period == _MONTH)
STATE = sa.select(_one.c.now, counters).select_from(
    _one.outerjoin(counters, sa.and_(counters.c.workspace_id == _bind("workspace_id"), _IS_PRESENT))
)
"""The counters of a workspace's present day and month; one row without a counter where there are none."""
ALL_PRESENT = sa.select(_one.c.now, counters).select_from(_one.outerjoin(counters, _IS_PRESENT))
"""Those of every workspace."""

_IS_COUNTER = sa.and_(counters.c.workspace_id == _bind("workspace_id"), counters.c.period == _bind("period"))
COUNTER = sa.select(counters).where(_IS_COUNTER)
WARN = {
    measure: sa.update(counters)
    .values({f"warned_{measure}": sa.true()})
    .where(_IS_COUNTER, counters.c[f"warned_{measure}"] == sa.false())
    for measure in ("tokens", "usd")
}
LOCK = sa.update(counters).values(period=counters.c.period).where(_IS_COUNTER)
"""Nobody changes what a run of the period holds or counts before this transaction has ended."""

_IS_LIVE = runs.c.status == _text(STARTED)
_NO_TOOL = sa.func.coalesce(runs.c.provider, _text("")) != _text(TOOL)


def _known(tokens: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.case((tokens <= _number(MOST_TOKENS), tokens), else_=_number(0))


def _if_live(then: Any, other: Any) -> sa.ColumnElement[Any]:
    return sa.case((_IS_LIVE, then), else_=other)


_HELD_TOKENS = sa.func.coalesce(runs.c.reserved_tokens, _number(0))
_HELD_USD = sa.func.coalesce(runs.c.reserved_cost_usd, _number(0))
_COUNTED_TOKENS = sa.func.coalesce(
    runs.c.reserved_tokens, _known(runs.c.input_tokens) + _known(runs.c.output_tokens), _number(0)
)
_COUNTED_USD = sa.func.coalesce(runs.c.reserved_cost_usd, runs.c.cost_usd, _number(0))
_NO_COST = sa.case((sa.and_(runs.c.cost_usd.is_(None), _NO_TOOL), _number(1)), else_=_number(0))


def _sum(value: Any, kind: Any = sa.BigInteger) -> sa.ColumnElement[Any]:
    total = sa.func.coalesce(sa.func.sum(value), _number(0))
    return sa.type_coerce(total, kind) if isinstance(kind, Money) else sa.cast(total, kind)


def _sums_of_runs() -> sa.Select[Any]:
    return sa.select(
        _sum(_if_live(_number(0), _COUNTED_TOKENS)).label("spent_tokens"),
        _sum(_if_live(_number(0), _COUNTED_USD), Money()).label("spent_usd"),
        _sum(_if_live(_HELD_TOKENS, _number(0))).label("reserved_tokens"),
        _sum(_if_live(_HELD_USD, _number(0)), Money()).label("reserved_usd"),
        _sum(_if_live(_number(0), _NO_COST)).label("unknown_costs"),
    ).where(
        runs.c.workspace_id == _bind("workspace_id"),
        runs.c.created_at >= _bind("begin", UTCDateTime),
        runs.c.created_at < _bind("end", UTCDateTime),
    )


def _sums_of_pruned() -> sa.Select[Any]:
    """What was pruned of a month's days counts as reports count it."""
    return sa.select(
        _sum(pruned.c.input_tokens + pruned.c.output_tokens).label("spent_tokens"),
        _sum(pruned.c.cost_usd, Money()).label("spent_usd"),
        _number(0).label("reserved_tokens"),
        sa.type_coerce(_number(0), Money()).label("reserved_usd"),
        _sum(pruned.c.unknown_cost).label("unknown_costs"),
    ).where(
        pruned.c.workspace_id == _bind("workspace_id"),
        sa.func.substr(pruned.c.day, sa.literal_column("1", sa.Integer), sa.func.length(_bind("period")))
        == _bind("period"),
    )


def _counted() -> sa.Select[Any]:
    both = sa.union_all(_sums_of_runs(), _sums_of_pruned()).subquery("both")
    return sa.select(
        *(
            _sum(both.c[name], Money() if name.endswith("_usd") else sa.BigInteger).label(name)
            for name in SUMS
        )
    )


COUNTED = _counted()
"""What a counter would be if it were made now."""
_found = _counted().subquery("found")
OPEN = (
    insert(counters)
    .from_select(
        ["workspace_id", "period", *SUMS, "warned_tokens", "warned_usd"],
        sa.select(
            _bind("workspace_id"), _bind("period"), *(_found.c[name] for name in SUMS), sa.false(), sa.false()
        ).where(_number(1) == _number(1)),
    )
    .on_conflict_do_nothing()
)
"""Makes a counter of the runs that are there: none at the start of a period, some where a budget is new.

Its condition is SQLite's wish, which would take ON for that of a join (https://sqlite.org/lang_upsert.html)."""
RECOUNT = (
    sa.update(counters).values({name: _bind(name, counters.c[name].type) for name in SUMS}).where(_IS_COUNTER)
)

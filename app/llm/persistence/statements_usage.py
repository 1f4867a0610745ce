"""The statements of the roll-up, of the report that reads it, and of the backfill that fills in what a send cost.

The runs of a day are found workspace by workspace, each by a range of the index on workspace and creation: by the
database's clock, whatever the clocks said that made the ids.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert  # its ON CONFLICT compiles on SQLite as well

from app.db.base import Base, Money, UTCDateTime, db_now, utc_day
from app.llm.persistence.compiled import PREFIX
from app.llm.persistence.executor import Step
from app.llm.persistence.models import (
    ABANDONED,
    CANCELLED,
    FAILED,
    SUCCEEDED,
    LLMUsage,
    LLMUsagePruned,
)
from app.llm.persistence.statements import attempts, runs, usage_days
from app.llm.persistence.usage import BOUNDS_MS, COUNTS, GROUP, MOST_TOKENS, SUMS_USD
from app.llm.ports import TOOL

usage = Base.metadata.tables[LLMUsage.__tablename__]
pruned = Base.metadata.tables[LLMUsagePruned.__tablename__]

LIVE, UNTIMED = -2, -1
"""In place of a bucket: runs that have not ended, and runs whose latency is not counted."""


def _bind(name: str, kind: Any) -> sa.BindParameter[Any]:
    return sa.bindparam(PREFIX + name, type_=kind)


def _number(value: float) -> sa.ColumnElement[Any]:
    return sa.literal_column(repr(value), sa.BigInteger if isinstance(value, int) else sa.Float)


def _text(value: str) -> sa.ColumnElement[str]:
    return sa.literal_column(f"'{value}'", sa.Text)


def _one_if(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.case((condition, _number(1)), else_=_number(0))


# -- what a run adds to its group: `Measures.of_run` in SQL

_IS_HIT = runs.c.source_run_id.is_not(None)
_NO_TOOL = sa.func.coalesce(runs.c.provider, _text("")) != _text(TOOL)
_SERVED = runs.c.replayed_count + _one_if(_IS_HIT)


def _known(tokens: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.case((tokens <= _number(MOST_TOKENS), tokens), else_=_number(0))


def _of_answer(name: str) -> sa.ColumnElement[Any]:
    return sa.case((_IS_HIT, runs.c[f"saved_{name}"]), else_=runs.c[name])


def _is_unknown(name: str) -> sa.ColumnElement[bool]:
    return sa.or_(runs.c[name].is_(None), runs.c[name] > _number(MOST_TOKENS))


def _dollars(value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    return sa.type_coerce(sa.func.coalesce(value, _number(0)), Money())


_MEASURES: Mapping[str, sa.ColumnElement[Any]] = {
    "runs": _number(1),
    "failed": _one_if(runs.c.status == _text(FAILED)),
    "cancelled": _one_if(runs.c.status == _text(CANCELLED)),
    "abandoned": _one_if(runs.c.status == _text(ABANDONED)),
    "hits": _one_if(_IS_HIT),
    "replays": runs.c.replayed_count,
    "input_tokens": _known(runs.c.input_tokens),
    "output_tokens": _known(runs.c.output_tokens),
    "unknown_tokens": _one_if(
        sa.and_(
            sa.or_(_is_unknown("input_tokens"), _is_unknown("output_tokens")),
            sa.or_(runs.c.status == _text(SUCCEEDED), runs.c.possibly_paid == sa.true()),
            _NO_TOOL,
        )
    ),
    "cost_usd": _dollars(runs.c.cost_usd),
    "unknown_cost": _one_if(sa.and_(runs.c.cost_usd.is_(None), _NO_TOOL)),
    "saved_input_tokens": _known(_of_answer("input_tokens")) * _SERVED,
    "saved_output_tokens": _known(_of_answer("output_tokens")) * _SERVED,
    "saved_cost_usd": _dollars(sa.type_coerce(_of_answer("cost_usd"), sa.BigInteger) * _SERVED),
    "unknown_saved": sa.case(
        (sa.and_(_of_answer("cost_usd").is_(None), _NO_TOOL), _SERVED), else_=_number(0)
    ),
}


def _bucket(low: int, high: int) -> sa.ColumnElement[Any]:
    """Return how many of the bounds are not above the latency, which is `low` to `high`, by halving."""
    if low == high:
        return _number(low)
    middle = (low + high) // 2
    below = runs.c.latency_ms < _number(BOUNDS_MS[middle])
    return sa.case((below, _bucket(low, middle)), else_=_bucket(middle + 1, high))


_IS_TIMED = sa.and_(runs.c.status == _text(SUCCEEDED), sa.not_(_IS_HIT), runs.c.latency_ms.is_not(None))
_BUCKET = sa.case(
    (runs.c.finished_at.is_(None), _number(LIVE)),
    (_IS_TIMED, _bucket(0, len(BOUNDS_MS))),
    else_=_number(UNTIMED),
)

# -- rolling up

_first = sa.select(sa.func.min(runs.c.workspace_id).label("name")).cte("spaces", recursive=True)
_later = runs.alias("later")
_next = sa.select(sa.func.min(_later.c.workspace_id)).where(_later.c.workspace_id > _first.c.name)
spaces = _first.union_all(sa.select(_next.scalar_subquery()).where(_first.c.name.is_not(None)))
"""The workspaces, one look at the index for each."""


def _day_of_runs() -> sa.CompoundSelect[Any]:
    each = (
        sa.select(
            *(sa.func.coalesce(runs.c[name], _text("")).label(name) for name in GROUP),
            _BUCKET.label("bucket"),
            *(value.label(name) for name, value in _MEASURES.items()),
        )
        .select_from(spaces.join(runs, runs.c.workspace_id == spaces.c.name))
        .where(
            runs.c.created_at >= _bind("begin", UTCDateTime),
            runs.c.created_at < _bind("end", UTCDateTime),
        )
        .subquery("each")
    )
    groups = [each.c[name] for name in (*GROUP, "bucket")]
    counted = sa.select(
        *groups,
        *(sa.cast(sa.func.sum(each.c[name]), sa.BigInteger).label(name) for name in COUNTS),
        *(sa.type_coerce(sa.func.sum(each.c[name]), Money()).label(name) for name in SUMS_USD),
        _text("").label("latencies"),
    ).group_by(*groups)
    gone = sa.select(
        *(pruned.c[name] for name in GROUP),
        _number(UNTIMED).label("bucket"),
        *(pruned.c[name] for name in (*COUNTS, *SUMS_USD, "latencies")),
    ).where(pruned.c.day == _bind("day", sa.String))
    return sa.union_all(counted, gone)


DAY_OF_RUNS = _day_of_runs()
"""What a day adds up to, as rows to be folded: one snapshot of its runs, and of those that are gone."""

_when = sa.select(_number(1).label("one")).subquery("one")
DAY_STATE = sa.select(
    db_now().label("now"), usage_days.c.rolls, usage_days.c.changes.label("seen")
).select_from(_when.outerjoin(usage_days, usage_days.c.day == _bind("day", sa.String)))

_STATE = {
    "counted": _bind("seen", sa.BigInteger),
    "live": _bind("live", sa.BigInteger),
    "rolled_at": _bind("now", UTCDateTime),
}
FIRST_ROLL = (
    insert(usage_days)
    .values(
        {
            "day": _bind("day", sa.String),
            "rolls": _number(1),
            "changes": _bind("seen", sa.BigInteger),
            **_STATE,
        }
    )
    .on_conflict_do_nothing()
)
NEXT_ROLL = (
    sa.update(usage_days)
    .values({"rolls": usage_days.c.rolls + _number(1), **_STATE})
    .where(usage_days.c.day == _bind("day", sa.String), usage_days.c.rolls == _bind("rolls", sa.BigInteger))
)
"""No row is changed where somebody else rolled the day up meanwhile."""
CLEAR_DAY = sa.delete(usage).where(usage.c.day == _bind("day", sa.String))
ADD_USAGE = insert(usage).values({each.name: _bind(each.name, each.type) for each in usage.c})

_latest = sa.select(sa.func.max(usage_days.c.day)).where(usage_days.c.rolled_at.is_not(None))
LATEST_DAY = sa.select(usage_days.c.day, usage_days.c.rolled_at).where(
    usage_days.c.day == _latest.scalar_subquery()
)
_soonest = (
    sa.select(
        sa.select(sa.func.min(runs.c.created_at))
        .where(runs.c.workspace_id == spaces.c.name, runs.c.created_at >= _bind("begin", UTCDateTime))
        .scalar_subquery()
        .label("at")
    )
    .select_from(spaces)
    .where(spaces.c.name.is_not(None))
    .subquery("soonest")
)
NEXT_DAY = sa.select(sa.func.min(_soonest.c.at).label("at"))
"""When the first run from `begin` on was created; None if there is none."""

_alive = (
    sa.select(utc_day(runs.c.created_at).label("day"), sa.func.count().label("live"))
    .where(runs.c.finished_at.is_(None))
    .group_by(utc_day(runs.c.created_at))
    .subquery("alive")
)
CHANGED_DAYS = (
    sa.select(usage_days.c.day)
    .select_from(usage_days.outerjoin(_alive, _alive.c.day == usage_days.c.day))
    .where(
        sa.or_(
            usage_days.c.rolled_at.is_(None),
            usage_days.c.changes != usage_days.c.counted,
            usage_days.c.live != sa.func.coalesce(_alive.c.live, _number(0)),
        )
    )
    .order_by(usage_days.c.day)
)
"""Days whose runs are not as they were when they were rolled up. A run that was live then has ended, or it is live."""

# -- pruning

PRUNED_COLUMNS = (
    utc_day(runs.c.created_at).label("day"),
    *(runs.c[name] for name in (*GROUP, "status", "source_run_id", "possibly_paid", "replayed_count")),
    *(runs.c[name] for name in ("input_tokens", "output_tokens", "cost_usd", "latency_ms")),
    *(runs.c[name] for name in ("saved_input_tokens", "saved_output_tokens", "saved_cost_usd")),
)
"""What is counted of a run that goes."""
_OF_GROUP = tuple(pruned.c[name] == _bind(name, sa.String) for name in ("day", *GROUP))
_kept = insert(pruned).values({each.name: _bind(each.name, each.type) for each in pruned.c})
ADD_PRUNED = _kept.on_conflict_do_update(
    index_elements=list(pruned.primary_key.columns),
    set_={
        **{name: pruned.c[name] + _kept.excluded[name] for name in (*COUNTS, *SUMS_USD)},
        "latencies": pruned.c.latencies + _text(" ") + _kept.excluded.latencies,
    },
)
LONGEST_TEXT = 4_000
"""Characters of a histogram that was only appended to, after which it is added up."""


def long_latencies(longest: int) -> sa.Select[Any]:
    """Return the look-up of a day's histograms that have more characters."""
    return sa.select(*(pruned.c[name] for name in ("day", *GROUP, "latencies"))).where(
        pruned.c.day == _bind("day", sa.String), sa.func.length(pruned.c.latencies) > _number(longest)
    )


LONG_LATENCIES = long_latencies(LONGEST_TEXT)
SHORTEN_LATENCIES = sa.update(pruned).values(latencies=_bind("latencies", sa.Text)).where(*_OF_GROUP)
NOTE_DAY = (
    insert(usage_days)
    .values(
        {"day": _bind("day", sa.String), **dict.fromkeys(("rolls", "changes", "counted", "live"), _number(0))}
    )
    .on_conflict_do_nothing()
)
"""A day that never was rolled up has to be, though no run of it may be left to find it by."""

# -- reporting

_KEYS: Mapping[str, Sequence[str]] = {
    "day": ("day",),
    "workspace": ("workspace_id",),
    "stage": ("stage",),
    "provider": ("provider",),
    "model": ("provider", "model"),
}
BY = tuple(_KEYS)
"""What a report can be divided by."""


def summed(by: Sequence[str], first: date, last: date, where: Mapping[str, str]) -> Step:
    """Return the look-up of a report: sums for each combination of `by`; tools are `is_tool`, and apart."""
    names = list(dict.fromkeys(name for each in by for name in _KEYS[each]))
    is_tool = _one_if(usage.c.provider == _text(TOOL))
    keys = [is_tool.label("is_tool"), *(usage.c[name] for name in names)]
    statement = (
        sa.select(
            *keys,
            *(sa.cast(sa.func.sum(usage.c[name]), sa.BigInteger).label(name) for name in COUNTS),
            *(sa.type_coerce(sa.func.sum(usage.c[name]), Money()).label(name) for name in SUMS_USD),
            sa.func.aggregate_strings(usage.c.latencies, " ").label("latencies"),
        )
        .where(usage.c.day >= first.isoformat(), usage.c.day <= last.isoformat())
        .where(*(usage.c[name] == value for name, value in where.items()))
        .group_by(is_tool, *(usage.c[name] for name in names))
        .order_by(*(usage.c[name] for name in names))
    )
    return Step(statement, {})


# -- backfill


def end_of_page(after: str, limit: int) -> Step:
    """Return the look-up of the `last` of the next so many ids; None if there are no more."""
    page = sa.select(runs.c.id).where(runs.c.id > after).order_by(runs.c.id).limit(limit).subquery()
    return Step(sa.select(sa.func.max(page.c.id).label("last")), {})


def unpriced(after: str, last: str, since: datetime | None) -> Step:
    """Return the look-up of those runs of a page whose cost, or what they saved, is unknown."""
    unknown = sa.or_(
        runs.c.cost_usd.is_(None), sa.and_(runs.c.source_run_id.is_not(None), runs.c.saved_cost_usd.is_(None))
    )
    conditions = [runs.c.id > after, runs.c.id <= last, runs.c.finished_at.is_not(None), _NO_TOOL, unknown]
    if since is not None:
        conditions.append(runs.c.created_at >= since)
    names = (
        *("id", "provider", "model", "status", "late", "needs", "source_run_id", "finished_at"),
        *("cost_usd", "saved_cost_usd", "saved_input_tokens", "saved_output_tokens"),
    )
    return Step(sa.select(*(runs.c[name] for name in names)).where(*conditions).order_by(runs.c.id), {})


def sends_of(run_ids: Sequence[str]) -> Step:
    """Return the look-up of the sends of some runs."""
    names = (
        *("run_id", "ordinal", "provider", "model", "started_at", "possibly_paid", "cost_usd"),
        *("input_tokens", "output_tokens", "cached_input_tokens"),
    )
    return Step(
        sa.select(*(attempts.c[name] for name in names))
        .where(attempts.c.run_id.in_(run_ids))
        .order_by(attempts.c.run_id, attempts.c.ordinal),
        {},
    )


PRICE_SEND = (
    sa.update(attempts)
    .values(cost_usd=_bind("cost_usd", Money))
    .where(
        attempts.c.run_id == _bind("id", sa.String),
        attempts.c.ordinal == _bind("ordinal", sa.Integer),
        attempts.c.cost_usd.is_(None),
    )
)
PRICE_RUN = (
    sa.update(runs)
    .values(cost_usd=_bind("cost_usd", Money), price_version=_bind("price_version", sa.String))
    .where(runs.c.id == _bind("id", sa.String), runs.c.cost_usd.is_(None))
)
PRICE_HIT = (
    sa.update(runs)
    .values(saved_cost_usd=_bind("cost_usd", Money), price_version=_bind("price_version", sa.String))
    .where(runs.c.id == _bind("id", sa.String), runs.c.saved_cost_usd.is_(None))
)

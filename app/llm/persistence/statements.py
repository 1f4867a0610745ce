"""Every statement of the ledger as a Core constant, compiled once; values are bound by name, nothing is formatted in.

`ON CONFLICT DO NOTHING` has no target on purpose: with a partial index as target PostgreSQL's generic plans refuse
bound predicates after a few executions. Conditions that partial indexes need are literals for the same reason.
"""

from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert  # its ON CONFLICT compiles on SQLite as well

from app.db.base import Base, db_now, seconds_until, utc_day
from app.llm.persistence.compiled import PREFIX
from app.llm.persistence.models import (
    ABANDONED,
    STARTED,
    SUCCEEDED,
    LLMAttempt,
    LLMPayload,
    LLMRun,
    LLMUsageDay,
)

runs = Base.metadata.tables[LLMRun.__tablename__]
attempts = Base.metadata.tables[LLMAttempt.__tablename__]
payloads = Base.metadata.tables[LLMPayload.__tablename__]
usage_days = Base.metadata.tables[LLMUsageDay.__tablename__]

_NULL = sa.null()


def _literal(text: str) -> sa.ColumnElement[str]:
    return sa.literal_column(f"'{text}'", sa.String)


def _bind(name: str, kind: Any = sa.String) -> sa.BindParameter[Any]:
    return sa.bindparam(PREFIX + name, type_=kind)


def _bound(table: sa.Table, *names: str) -> dict[str, sa.BindParameter[Any]]:
    return {name: _bind(name, table.c[name].type) for name in names}


_IS_LIVE = runs.c.status == _literal(STARTED)
_IS_SERVABLE = sa.and_(
    runs.c.status == _literal(SUCCEEDED),
    runs.c.source_run_id.is_(None),
    runs.c.response_payload.is_not(None),
    runs.c.finish_reason.in_([_literal("stop"), _literal("tool_calls")]),
    runs.c.cache_mode != _literal("bypass"),
)
_HAS_ID = runs.c.id == _bind("id")
_IS_OURS = sa.and_(_HAS_ID, runs.c.owner == _bind("owner"))
_LEASE_OVER = runs.c.lease_until <= db_now()  # as `judge` sees it: no time left
_EXPIRY = db_now(_bind("expires_s", sa.Float))
_EXPIRY_OR_NEVER = sa.case((_bind("expires_s", sa.Float).is_(None), _NULL), else_=_EXPIRY)

# -- claim

_CLAIMED = {
    **_bound(
        runs,
        *("id", "workspace_id", "pipeline_run_id", "stage", "idempotency_key", "idem_slot", "flight_slot"),
        *("prompt_sha256", "request_sha256", "candidate_sha256", "fingerprint_version", "profile"),
        *("provider", "model", "cache_mode", "execution", "supersedes", "owner", "sends_noted"),
        *("route", "needs", "metadata", "reserved_tokens", "reserved_cost_usd", "trace_id"),
    ),
    "status": _literal(STARTED),
    "created_at": db_now(),
    "lease_until": db_now(_bind("lease_s", sa.Float)),
}
INSERT_RUN = insert(runs).values(_CLAIMED).on_conflict_do_nothing()

_ANSWER = (
    runs.c.id,
    runs.c.workspace_id,
    runs.c.request_sha256,
    runs.c.candidate_sha256,
    runs.c.route,
    payloads.c.sha256,
    payloads.c.codec,
    payloads.c.bytes,
)
_HOLDER = (
    *_ANSWER,
    runs.c.status,
    runs.c.execution,
    runs.c.fingerprint_version,
    runs.c.reserved_tokens,
    seconds_until(runs.c.lease_until).label("lease_left_s"),
    seconds_until(runs.c.expires_at).label("expires_left_s"),
)
_WITH_ANSWER = runs.outerjoin(
    payloads,
    sa.and_(payloads.c.workspace_id == runs.c.workspace_id, payloads.c.sha256 == runs.c.response_payload),
)

KEY_HOLDER = (
    sa.select(*_HOLDER)
    .select_from(_WITH_ANSWER)
    .where(runs.c.workspace_id == _bind("workspace_id"), runs.c.idem_slot == _bind("key"))
)
REQUEST_OF = (
    sa.select(runs.c.id, runs.c.workspace_id, payloads.c.sha256, payloads.c.codec, payloads.c.bytes)
    .join_from(
        runs,
        payloads,
        sa.and_(payloads.c.workspace_id == runs.c.workspace_id, payloads.c.sha256 == runs.c.request_payload),
    )
    .where(runs.c.workspace_id == _bind("workspace_id"), runs.c.id == _bind("id"))
)
FLIGHT_HOLDER = sa.select(
    runs.c.id,
    runs.c.idem_slot,
    runs.c.reserved_tokens,
    seconds_until(runs.c.lease_until).label("lease_left_s"),
).where(runs.c.flight_slot == _bind("flight_slot"))

_ABANDON = sa.update(runs).values(
    status=ABANDONED, idem_slot=_NULL, flight_slot=_NULL, finished_at=db_now(), possibly_paid=sa.true()
)
TAKE_OVER = _ABANDON.where(_HAS_ID, _IS_LIVE, _LEASE_OVER)
RELEASE = _ABANDON.where(_HAS_ID, _IS_LIVE)
RELEASE_OWN = RELEASE.where(runs.c.workspace_id == _bind("workspace_id"))
FREE_EXPIRED = (
    sa.update(runs)
    .values(idem_slot=_NULL)
    .where(_HAS_ID, runs.c.status == _literal(SUCCEEDED), runs.c.expires_at <= db_now())
)
FREE_ANSWERED = sa.update(runs).values(idem_slot=_NULL).where(_HAS_ID, runs.c.status == _literal(SUCCEEDED))
FREE_FLIGHT = sa.update(runs).values(flight_slot=_NULL).where(_HAS_ID, _IS_LIVE, _LEASE_OVER)

# -- cache


def _freshest(candidate: sa.BindParameter[str]) -> sa.Select[Any]:
    """Select the latest servable answer of one candidate: the end of a range of the index, however long that is."""
    found = (
        sa.select(*_ANSWER, (-seconds_until(runs.c.finished_at)).label("age_s"))
        .select_from(_WITH_ANSWER)
        .where(
            runs.c.workspace_id == _bind("workspace_id"),
            runs.c.prompt_sha256 == _bind("prompt_sha256"),
            runs.c.candidate_sha256 == candidate,
            _IS_SERVABLE,
            runs.c.finished_at > db_now(_bind("minus_ttl_s", sa.Float)),
        )
        .order_by(runs.c.finished_at.desc(), runs.c.id.desc())
        .limit(sa.literal_column("1"))
        .offset(sa.literal_column("0"))
    )
    return sa.select(found.subquery())


@cache
def find_cached(candidates: int) -> sa.CompoundSelect[Any]:
    """Return the look-up of so many candidates, bound as `candidate_0` and so on; one statement for each number."""
    return sa.union_all(*(_freshest(_bind(f"candidate_{place}")) for place in range(candidates)))


_source = runs.alias("source")


def _of_source(name: str) -> sa.ScalarSelect[Any]:
    return sa.select(_source.c[name]).where(_source.c.id == _bind("source_run_id")).scalar_subquery()


_ANSWERED = {
    **_bound(runs, "provider", "model", "candidate_sha256", "finish_reason", "source_run_id"),
    **_bound(runs, "saved_input_tokens", "saved_output_tokens", "saved_cost_usd", "price_version"),
    "status": _literal(SUCCEEDED),
    **dict.fromkeys(("input_tokens", "output_tokens", "total_tokens", "cost_usd"), sa.literal_column("0")),
    "sends_noted": sa.literal_column("0"),
    **dict.fromkeys(("flight_slot", "reserved_tokens", "reserved_cost_usd"), _NULL),
    "finished_at": db_now(),
    "expires_at": _EXPIRY_OR_NEVER,
    "request_payload": _of_source("request_payload"),
    "response_payload": _of_source("response_payload"),
}
TURN_INTO_HIT = sa.update(runs).values(_ANSWERED).where(_IS_OURS, _IS_LIVE)
INSERT_HIT = insert(runs).values({**_CLAIMED, **_ANSWERED, "idem_slot": _NULL}).on_conflict_do_nothing()
TOUCH_PAYLOADS = (
    sa.update(payloads)
    .values(last_ref_at=db_now())
    .where(
        payloads.c.workspace_id == _bind("workspace_id"),
        payloads.c.sha256.in_([_of_source("request_payload"), _of_source("response_payload")]),
    )
)

# -- sends and settling

NOTE_SENDS = sa.update(runs).values(sends_noted=_bind("sends", sa.Integer)).where(_IS_OURS, _IS_LIVE)

RENEW = sa.update(runs).values(lease_until=db_now(_bind("lease_s", sa.Float))).where(_IS_OURS, _IS_LIVE)

ACCOUNTING = (
    *(
        "provider",
        "model",
        "candidate_sha256",
        "finish_reason",
        "input_tokens",
        "output_tokens",
        "total_tokens",
    ),
    *(
        "usage_source",
        "cost_usd",
        "price_version",
        "queue_wait_ms",
        "latency_ms",
        "error_code",
        "error_message",
    ),
    *("possibly_paid", "request_payload", "response_payload"),
)
SETTLED = (
    *(*ACCOUNTING, "status", "source_run_id", "saved_input_tokens", "saved_output_tokens", "saved_cost_usd"),
)
"""Columns that settling writes from a settlement as they are."""
SENT = (
    *("run_id", "ordinal", "provider", "model", "candidate_sha256", "status", "error_code"),
    *("http_status", "retry_after_s", "started_at", "finished_at", "input_tokens", "output_tokens"),
    *("cached_input_tokens", "cost_usd", "possibly_paid"),
)
KEPT = ("workspace_id", "sha256", "codec", "bytes")
FINISH_ANSWERED = (
    sa.update(runs)
    .values(**_bound(runs, *SETTLED), flight_slot=_NULL, finished_at=db_now(), expires_at=_EXPIRY_OR_NEVER)
    .where(_IS_OURS, _IS_LIVE)
)
"""It keeps its key: a column that is not written at all costs no index."""
FINISH_UNANSWERED = FINISH_ANSWERED.values(idem_slot=_NULL)
RECORD_LATE = (
    sa.update(runs)
    .values(**_bound(runs, *ACCOUNTING), late=sa.true())
    .where(_IS_OURS, runs.c.status == _literal(ABANDONED), runs.c.late == sa.false())
)
RUN_STATE = sa.select(runs.c.status, runs.c.owner).where(_HAS_ID)
INSERT_ATTEMPT = insert(attempts).values(**_bound(attempts, *SENT)).on_conflict_do_nothing()
PUT_PAYLOAD = (
    insert(payloads)
    .values(**_bound(payloads, *KEPT), last_ref_at=db_now())
    .on_conflict_do_update(
        index_elements=[payloads.c.workspace_id, payloads.c.sha256], set_={"last_ref_at": db_now()}
    )
)
ADD_REPLAYS = (
    sa.update(runs)
    .values(replayed_count=runs.c.replayed_count + _bind("count", sa.BigInteger))
    .where(_HAS_ID)
)

_no: sa.ColumnElement[int] = sa.literal_column("0", sa.Integer)
_one: sa.ColumnElement[int] = sa.literal_column("1", sa.Integer)
_changed_days = (
    sa.select(utc_day(runs.c.created_at), _no, _one, _no, _no)
    .where(
        runs.c.id.in_(sa.bindparam(PREFIX + "ids", expanding=True, type_=sa.String)),
        utc_day(runs.c.created_at) < utc_day(db_now()),
    )
    .group_by(utc_day(runs.c.created_at))
    .order_by(utc_day(runs.c.created_at))
)
NOTE_CHANGES = (
    insert(usage_days)
    .from_select(["day", "rolls", "changes", "counted", "live"], _changed_days)
    .on_conflict_do_update(index_elements=[usage_days.c.day], set_={"changes": usage_days.c.changes + _one})
)
"""Of ended runs; the present day is rolled up anew anyway, so most of these write nothing."""

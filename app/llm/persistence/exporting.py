"""Runs as rows for other programs, read page by page in flat memory; every column is named and explained here."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from app.db.base import UTCDateTime, db_now
from app.llm.persistence.codec import Codec, Unreadable
from app.llm.persistence.compiled import PREFIX
from app.llm.persistence.executor import Executor, Step
from app.llm.persistence.reports import RunFilter
from app.llm.persistence.statements import attempts, payloads, runs
from app.llm.persistence.statements_usage import spaces

PAGE = 500
"""Runs that are held at once."""

Row = dict[str, Any]


class Kind(StrEnum):
    """What the values of a column are."""

    TEXT = "text"
    COUNT = "integer"
    FLAG = "boolean"
    MILLISECONDS = "milliseconds"
    DOLLARS = "dollars"
    TIME = "time"
    JSON = "JSON"
    SENDS = "sends"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an export; any of them may be null."""

    name: str
    kind: Kind
    meaning: str


def _columns(kind: Kind, meanings: Mapping[str, str]) -> list[Column]:
    return [Column(name, kind, meaning) for name, meaning in meanings.items()]


COLUMNS: tuple[Column, ...] = (
    *_columns(
        Kind.TEXT,
        {
            "id": "The run; ids sort by time.",
            "workspace_id": "The tenant.",
            "pipeline_run_id": "The workflow run.",
            "stage": "The step of it.",
            "idempotency_key": "The key of the call.",
            "profile": "The caller's intent, or `tool` for an effect.",
            "provider": "Who answered, or was asked last; `tool` for an effect.",
            "model": "Its model, or the effect's name.",
            "status": "`STARTED`, `SUCCEEDED`, `FAILED`, `CANCELLED`, `ABANDONED`.",
            "finish_reason": "Why the model stopped.",
            "error_code": "Why there is no answer.",
            "error_message": "The same in words, redacted.",
            "cache_mode": "`use`, `refresh`, `bypass`.",
            "supersedes": "The run whose key it took over.",
            "source_run_id": "The run whose answer it was served from the cache.",
            "usage_source": "Who counted the tokens.",
            "price_version": "Whose prices these were.",
            "trace_id": "The trace that it belongs to.",
            "prompt_sha256": "What the content is compared by.",
            "request_sha256": "What requests under one key are compared by.",
            "candidate_sha256": "What model, settings and weights are compared by.",
        },
    ),
    *_columns(
        Kind.COUNT,
        {
            "execution": "1 for the first run of its key.",
            "sends_noted": "Sends that were announced.",
            "replayed_count": "How often its answer was replayed.",
            "input_tokens": "Of all sends; null is unknown.",
            "output_tokens": "Likewise.",
            "total_tokens": "Likewise.",
            "saved_input_tokens": "Of a hit: what its answer once took.",
            "saved_output_tokens": "Likewise.",
            "fingerprint_version": "By which rules the hashes were made.",
        },
    ),
    *_columns(
        Kind.DOLLARS,
        {
            "cost_usd": "Of all sends; null is unknown.",
            "saved_cost_usd": "Of a hit: what its answer would cost.",
        },
    ),
    *_columns(
        Kind.MILLISECONDS,
        {"latency_ms": "From the call to its end.", "queue_wait_ms": "Of which it waited for its turn."},
    ),
    *_columns(
        Kind.FLAG,
        {
            "possibly_paid": "A send without an answer may have been billed.",
            "late": "Its owner told what it cost after it had been declared dead.",
        },
    ),
    *_columns(
        Kind.TIME,
        {
            "created_at": "By the database's clock.",
            "finished_at": "Likewise; null while it is under way.",
            "expires_at": "When its key may be used anew.",
        },
    ),
    *_columns(
        Kind.JSON,
        {
            "route": "Each candidate, kept or not, and why.",
            "needs": "What the request asked of a candidate.",
            "metadata": "What the caller noted.",
        },
    ),
    Column("attempts", Kind.SENDS, "Each send, as below."),
)
TEXTS: tuple[Column, ...] = (
    Column("request", Kind.JSON, "With `--texts`: what was asked."),
    Column("response", Kind.JSON, "With `--texts`: what was answered."),
)
SENDS: tuple[Column, ...] = (
    Column("ordinal", Kind.COUNT, "1 for the first send of the run."),
    Column("provider", Kind.TEXT, "Who was asked."),
    Column("model", Kind.TEXT, "Its model."),
    Column("status", Kind.TEXT, "`SUCCEEDED`, `FAILED`, `CANCELLED`."),
    Column("error_code", Kind.TEXT, "Why it brought no answer."),
    Column("http_status", Kind.COUNT, "What the provider's server said."),
    Column("started_at", Kind.TIME, "By the caller's clock."),
    Column("finished_at", Kind.TIME, "Likewise."),
    Column("input_tokens", Kind.COUNT, "Null is unknown."),
    Column("output_tokens", Kind.COUNT, "Likewise."),
    Column("cached_input_tokens", Kind.COUNT, "Of the input, from the provider's own cache."),
    Column("cost_usd", Kind.DOLLARS, "Null is unknown."),
    Column("possibly_paid", Kind.FLAG, "It may have been billed without an answer."),
)
LEFT_OUT = frozenset(
    {"idem_slot", "flight_slot", "owner", "lease_until", "reserved_tokens", "reserved_cost_usd"}
)
"""Columns of a run that only its processes need."""

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_WORKSPACES = sa.select(spaces.c.name).where(spaces.c.name.is_not(None))
_PAYLOADS = ("request_payload", "response_payload")
_ALL_SENDS = (
    sa.select(attempts.c.run_id, *(attempts.c[each.name] for each in SENDS))
    .where(attempts.c.run_id.in_(sa.bindparam(PREFIX + "ids", expanding=True, type_=sa.String)))
    .order_by(attempts.c.run_id, attempts.c.ordinal)
)
_ALL_TEXTS = sa.select(payloads.c.workspace_id, payloads.c.sha256, payloads.c.codec, payloads.c.bytes).where(
    payloads.c.workspace_id == sa.bindparam(PREFIX + "workspace_id", type_=sa.String),
    payloads.c.sha256.in_(sa.bindparam(PREFIX + "addresses", expanding=True, type_=sa.String)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some runs of a workspace."""

    rows: list[Row]
    unread: int
    """Texts that are stored and cannot be read here."""


async def pages(reader: Executor, wanted: RunFilter, codec: Codec | None = None) -> AsyncIterator[Page]:
    """Yield the runs that fit, each with its sends: by workspace, then by creation; none that begins after this did.

    Args:
        reader: The ledger's connections.
        wanted: Which runs; its age counts from now, however long this takes.
        codec: Reads the texts of requests and answers; None leaves them out.

    Raises:
        LLMLedgerError: The database is away or locked.
    """
    now: datetime = (await reader.read(Step(sa.select(db_now().label("now")), {}))).rows[0]["now"]
    begin = _LONG_AGO if wanted.newer_than_s is None else now - timedelta(seconds=wanted.newer_than_s)
    ranges = _Ranges(wanted)
    for workspace in (await reader.read(Step(_WORKSPACES, {}))).rows:
        if wanted.workspace_id not in {None, workspace["name"]}:
            continue
        place: Row = {"workspace_id": workspace["name"], "at": begin, "id": "", "until": now}
        while (last := (await reader.read(Step(ranges.end, place))).first) is not None:
            found = (
                await reader.read(Step(ranges.rows, {**place, "last_at": last["at"], "last_id": last["id"]}))
            ).rows
            if found:
                yield await _whole(reader, [dict(row) for row in found], codec)
            place |= {"at": last["at"], "id": last["id"]}


class _Ranges:
    """The statements of a page: where it ends, by the index alone, and those of its runs that fit."""

    def __init__(self, wanted: RunFilter) -> None:
        at, run_id = _bind("at", UTCDateTime), _bind("id", sa.String)
        after = (
            runs.c.workspace_id == _bind("workspace_id", sa.String),
            runs.c.created_at >= at,
            runs.c.created_at <= _bind("until", UTCDateTime),
            sa.or_(runs.c.created_at > at, runs.c.id > run_id),
        )
        page = (
            sa.select(runs.c.created_at.label("at"), runs.c.id)
            .where(*after)
            .order_by(runs.c.created_at, runs.c.id)
            .limit(sa.literal_column(str(PAGE)))
            .subquery("page")
        )
        self.end = (
            sa.select(page.c.at, page.c.id)
            .order_by(page.c.at.desc(), page.c.id.desc())
            .limit(sa.literal_column("1"))
        )
        last_at = _bind("last_at", UTCDateTime)
        before = (
            runs.c.created_at <= last_at,
            sa.or_(runs.c.created_at < last_at, runs.c.id <= _bind("last_id", sa.String)),
        )
        names = [each.name for each in COLUMNS if each.kind is not Kind.SENDS]
        self.rows = (
            sa.select(*(runs.c[name] for name in (*names, *_PAYLOADS)))
            .where(*after, *before, *replace(wanted, newer_than_s=None).conditions())
            .order_by(runs.c.created_at, runs.c.id)
        )


def _bind(name: str, kind: Any) -> sa.BindParameter[Any]:
    return sa.bindparam(PREFIX + name, type_=kind)


async def _whole(reader: Executor, rows: list[Row], codec: Codec | None) -> Page:
    """Return runs with what belongs to them."""
    sends: defaultdict[str, list[Row]] = defaultdict(list)
    for each in (await reader.read(Step(_ALL_SENDS, {"ids": [row["id"] for row in rows]}))).rows:
        send = dict(each)
        sends[send.pop("run_id")].append(send)
    texts, unread = await _texts(reader, rows, codec) if codec else ({}, 0)
    for row in rows:
        row |= {each.name: json.loads(row[each.name]) for each in COLUMNS if each.kind is Kind.JSON}
        row["attempts"] = sends[row["id"]]
        stored = [texts.get(row.pop(name)) for name in _PAYLOADS]
        if codec:
            row |= dict(zip((each.name for each in TEXTS), stored, strict=True))
    return Page(rows=rows, unread=unread)


async def _texts(reader: Executor, rows: Sequence[Row], codec: Codec) -> tuple[dict[str | None, Any], int]:
    """Return the stored texts of some runs of one workspace by address, and how many cannot be read."""
    workspace = rows[0]["workspace_id"]
    addresses = sorted({row[name] for row in rows for name in _PAYLOADS if row[name] is not None})
    values = {"workspace_id": workspace, "addresses": addresses}
    found = (await reader.read(Step(_ALL_TEXTS, values))).rows if addresses else ()
    texts: dict[str | None, Any] = {}
    for each in found:
        with suppress(Unreadable):
            text = codec.decode(each["codec"], each["bytes"], workspace_id=workspace, address=each["sha256"])
            texts[each["sha256"]] = json.loads(text)
    return texts, len(found) - len(texts)

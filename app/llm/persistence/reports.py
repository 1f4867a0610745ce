"""The read side of the ledger: straight SQL for people who look at runs, apart from the protocol that writes them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa

from app.db.base import db_now, seconds_until
from app.llm.errors import LLMLedgerSchema
from app.llm.persistence.codec import ENCRYPTED, Codec, Unreadable
from app.llm.persistence.executor import Executor, Step
from app.llm.persistence.statements import attempts, payloads, runs

Row = Mapping[str, Any]

ID_CHARS = 36
MAX_HITS = 20
"""Hits of one answer that are named."""

LISTED = (
    *("id", "created_at", "workspace_id", "stage", "pipeline_run_id", "idempotency_key", "status", "profile"),
    *("provider", "model", "finish_reason", "source_run_id", "replayed_count", "execution", "input_tokens"),
    *("output_tokens", "cost_usd", "latency_ms", "error_code", "possibly_paid", "finished_at"),
)
"""What a list tells of a run."""
_EXECUTION = ("id", "created_at", "status", "execution", "supersedes", "error_code", "possibly_paid")
_JSON = ("route", "needs", "metadata")
_CHANGING = ("status", "provider", "model", "error_code")
"""Columns that are filtered by, and that a run may change on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs are wanted; None excludes nothing. Fields but the last two are columns that must be equal."""

    workspace_id: str | None = None
    stage: str | None = None
    idempotency_key: str | None = None
    pipeline_run_id: str | None = None
    status: str | None = None
    provider: str | None = None
    error_code: str | None = None
    model: str | None = None
    """With its provider in front or without: `ollama:llama3.2`, `llama3.2`."""
    newer_than_s: float | None = None
    """Age at most, in seconds by the database's clock."""

    def conditions(self) -> Iterator[sa.ColumnElement[bool]]:
        """Yield what a row must satisfy."""
        for name, value in self._equal():
            yield runs.c[name] == value
        if self.model is not None:
            provider, _, model = self.model.partition(":")
            whole = sa.and_(runs.c.provider == provider, runs.c.model == model)
            yield sa.or_(runs.c.model == self.model, whole)
        if self.newer_than_s is not None:
            yield runs.c.created_at > db_now(sa.literal(-self.newer_than_s, sa.Float))

    def lasting(self) -> "RunFilter":
        """Return the part of it that a run satisfies from its beginning to its end, or never."""
        return replace(self, **dict.fromkeys(_CHANGING), newer_than_s=None)

    def fits(self, row: Row) -> bool:
        """Return whether a row is wanted as it is now, whatever its age."""
        names = {row["model"], f"{row['provider']}:{row['model']}"}
        return all(row[name] == value for name, value in self._equal()) and self.model in {None, *names}

    def _equal(self) -> Iterator[tuple[str, str]]:
        for name, value in asdict(self).items():
            if value is not None and name not in {"model", "newer_than_s"}:
                yield name, value


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetails:
    """Everything that the ledger knows about one run."""

    run: Row
    """Its columns, JSON decoded, and `lease_left_s`: seconds, negative when the lease is over."""
    attempts: Sequence[Row]
    executions: Sequence[Row]
    """All runs of its key, oldest first; none without a key."""
    hits: Sequence[str]
    """Ids of later runs that were answered with its answer, newest first, 20 at most."""
    request: Any
    """The stored request as JSON values; None if only its hash was kept."""
    response: Any
    """The stored answer, likewise."""
    encrypted: bool = False
    """Texts are stored, but LLM_PAYLOAD_KEY is unset or another one; then both are None."""


async def list_runs(reader: Executor, wanted: RunFilter, *, limit: int) -> Sequence[Row]:
    """Return the newest runs that fit, newest first; their ids sort by time."""
    statement = (
        sa.select(*(runs.c[name] for name in LISTED))
        .where(*wanted.conditions())
        .order_by(runs.c.id.desc())
        .limit(limit)
    )
    return (await reader.read(Step(statement, {}))).rows


async def matching_ids(reader: Executor, start: str, *, limit: int) -> Sequence[str]:
    """Return ids that begin with `start`, newest first."""
    fits = runs.c.id == start if len(start) == ID_CHARS else runs.c.id.startswith(start, autoescape=True)
    statement = sa.select(runs.c.id).where(fits).order_by(runs.c.id.desc()).limit(limit)
    return [str(row["id"]) for row in (await reader.read(Step(statement, {}))).rows]


async def run_details(reader: Executor, run_id: str, codec: Codec) -> RunDetails | None:
    """Return one run with what belongs to it; None if there is no such run."""
    lease_left_s = seconds_until(runs.c.lease_until).label("lease_left_s")
    run = (await reader.read(Step(sa.select(runs, lease_left_s).where(runs.c.id == run_id), {}))).first
    if run is None:
        return None
    sends = sa.select(attempts).where(attempts.c.run_id == run_id).order_by(attempts.c.ordinal)
    hits = (
        sa.select(runs.c.id).where(runs.c.source_run_id == run_id).order_by(runs.c.id.desc()).limit(MAX_HITS)
    )
    stored, encrypted = await _documents(reader, run, codec)
    return RunDetails(
        run={**run, **{name: json.loads(run[name]) for name in _JSON}},
        attempts=(await reader.read(Step(sends, {}))).rows,
        executions=await _executions(reader, run),
        hits=[str(row["id"]) for row in (await reader.read(Step(hits, {}))).rows],
        request=stored.get(run["request_payload"]),
        response=stored.get(run["response_payload"]),
        encrypted=encrypted,
    )


async def revision(reader: Executor) -> str | None:
    """Return the revision of the tables; None while there are none."""
    versions = sa.table("alembic_version", sa.column("version_num", sa.String))
    try:
        row = (await reader.read(Step(sa.select(versions.c.version_num), {}))).first
    except LLMLedgerSchema:
        return None
    return str(row["version_num"]) if row else None


async def _executions(reader: Executor, run: Row) -> Sequence[Row]:
    if run["idempotency_key"] is None:
        return ()
    statement = (
        sa.select(*(runs.c[name] for name in _EXECUTION))
        .where(runs.c.workspace_id == run["workspace_id"], runs.c.idempotency_key == run["idempotency_key"])
        .order_by(runs.c.id)
    )
    return (await reader.read(Step(statement, {}))).rows


async def _documents(reader: Executor, run: Row, codec: Codec) -> tuple[dict[str, Any], bool]:
    """Return the stored texts of a run by address, and whether one was left out because it is encrypted.

    One in a codec that this version does not know is left out, too.
    """
    addresses = [run[name] for name in ("request_payload", "response_payload") if run[name] is not None]
    statement = sa.select(payloads.c.sha256, payloads.c.codec, payloads.c.bytes).where(
        payloads.c.workspace_id == run["workspace_id"], payloads.c.sha256.in_(addresses)
    )
    rows = (await reader.read(Step(statement, {}))).rows if addresses else ()
    documents, encrypted = {}, False
    for row in rows:
        where = {"workspace_id": run["workspace_id"], "address": row["sha256"]}
        try:
            documents[row["sha256"]] = json.loads(codec.decode(row["codec"], row["bytes"], **where))
        except Unreadable:
            encrypted |= row["codec"] in ENCRYPTED
    return documents, encrypted

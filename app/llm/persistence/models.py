"""The tables of the ledger: one row per execution of a call, one per send, one per stored text."""

from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, Money, UTCDateTime

STARTED, SUCCEEDED, FAILED, CANCELLED, ABANDONED = "STARTED", "SUCCEEDED", "FAILED", "CANCELLED", "ABANDONED"

_SERVABLE = sa.text("status = 'SUCCEEDED' AND source_run_id IS NULL")
_LIVE = sa.text(
    "finished_at IS NULL"
)  # not status = 'STARTED': settling could pick that index and scan every live run
_FLIES, _IN_PIPELINE = sa.text("flight_slot IS NOT NULL"), sa.text("pipeline_run_id IS NOT NULL")
"""Of columns that are mostly empty: most rows cost these indexes nothing."""


class LLMRun(Base):
    """One execution of a logical call. Its id is the fencing token of its key."""

    __tablename__ = "llm_runs"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    workspace_id: Mapped[str] = mapped_column(sa.String(255))
    pipeline_run_id: Mapped[str | None] = mapped_column(sa.String(255))
    stage: Mapped[str | None] = mapped_column(sa.String(255))
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    idem_slot: Mapped[str | None] = mapped_column(sa.String(255))
    flight_slot: Mapped[str | None] = mapped_column(sa.String(64))
    prompt_sha256: Mapped[str] = mapped_column(sa.String(64))
    request_sha256: Mapped[str] = mapped_column(sa.String(64))
    candidate_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    fingerprint_version: Mapped[int] = mapped_column(sa.Integer)
    profile: Mapped[str] = mapped_column(sa.String(32))
    provider: Mapped[str | None] = mapped_column(sa.String(64))
    model: Mapped[str | None] = mapped_column(sa.String(255))
    status: Mapped[str] = mapped_column(sa.String(16))
    finish_reason: Mapped[str | None] = mapped_column(sa.String(32))
    cache_mode: Mapped[str] = mapped_column(sa.String(16))
    execution: Mapped[int] = mapped_column(sa.Integer, server_default=sa.text("1"))
    supersedes: Mapped[str | None] = mapped_column(sa.String(36))
    source_run_id: Mapped[str | None] = mapped_column(sa.String(36))
    owner: Mapped[str] = mapped_column(sa.String(255))
    sends_noted: Mapped[int] = mapped_column(sa.Integer, server_default=sa.text("0"))
    route: Mapped[str] = mapped_column(sa.Text)
    needs: Mapped[str] = mapped_column(sa.Text)
    input_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    output_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    total_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    saved_input_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    saved_output_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    saved_cost_usd: Mapped[Decimal | None] = mapped_column(Money)
    usage_source: Mapped[str | None] = mapped_column(sa.String(32))
    cost_usd: Mapped[Decimal | None] = mapped_column(Money)
    price_version: Mapped[str | None] = mapped_column(sa.String(64))
    reserved_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    """Under a budget: what it holds while it is STARTED, what it counts afterwards."""
    reserved_cost_usd: Mapped[Decimal | None] = mapped_column(Money)
    queue_wait_ms: Mapped[float | None] = mapped_column(sa.Float)
    latency_ms: Mapped[float | None] = mapped_column(sa.Float)
    error_code: Mapped[str | None] = mapped_column(sa.String(64))
    error_message: Mapped[str | None] = mapped_column(sa.Text)
    possibly_paid: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.false())
    late: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.false())
    replayed_count: Mapped[int] = mapped_column(sa.BigInteger, server_default=sa.text("0"))
    metadata_: Mapped[str] = mapped_column("metadata", sa.Text)
    trace_id: Mapped[str | None] = mapped_column(sa.String(32))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    lease_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    request_payload: Mapped[str | None] = mapped_column(sa.String(64))
    response_payload: Mapped[str | None] = mapped_column(sa.String(64))

    __table_args__ = (
        sa.Index("uq_llm_runs_idem_slot", "workspace_id", "idem_slot", unique=True),
        sa.Index(
            "uq_llm_runs_flight_slot",
            "flight_slot",
            unique=True,
            sqlite_where=_FLIES,
            postgresql_where=_FLIES,
        ),
        sa.Index(
            "ix_llm_runs_servable",
            "workspace_id",
            "prompt_sha256",
            "candidate_sha256",
            "finished_at",
            sqlite_where=_SERVABLE,
            postgresql_where=_SERVABLE,
        ),
        sa.Index("ix_llm_runs_workspace_created", "workspace_id", "created_at"),
        sa.Index(
            "ix_llm_runs_pipeline",
            "pipeline_run_id",
            sqlite_where=_IN_PIPELINE,
            postgresql_where=_IN_PIPELINE,
        ),
        sa.Index("ix_llm_runs_lease", "lease_until", sqlite_where=_LIVE, postgresql_where=_LIVE),
        *(
            sa.Index(
                f"ix_llm_runs_{name}",
                "workspace_id",
                name,
                sqlite_where=sa.text(f"{name} IS NOT NULL"),
                postgresql_where=sa.text(f"{name} IS NOT NULL"),
            )
            for name in ("request_payload", "response_payload")
        ),
    )


class LLMAttempt(Base):
    """One send to one provider."""

    __tablename__ = "llm_attempts"

    run_id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    ordinal: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    provider: Mapped[str] = mapped_column(sa.String(64))
    model: Mapped[str] = mapped_column(sa.String(255))
    candidate_sha256: Mapped[str] = mapped_column(sa.String(64))
    wire_sha256: Mapped[str | None] = mapped_column(sa.String(64))
    status: Mapped[str] = mapped_column(sa.String(16))
    error_code: Mapped[str | None] = mapped_column(sa.String(64))
    http_status: Mapped[int | None] = mapped_column(sa.Integer)
    retry_after_s: Mapped[float | None] = mapped_column(sa.Float)
    started_at: Mapped[datetime] = mapped_column(UTCDateTime)
    finished_at: Mapped[datetime] = mapped_column(UTCDateTime)
    input_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    output_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    cached_input_tokens: Mapped[int | None] = mapped_column(sa.BigInteger)
    cost_usd: Mapped[Decimal | None] = mapped_column(Money)
    possibly_paid: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.false())


class LLMPayload(Base):
    """One text, content-addressed within a workspace. `codec`: how its bytes are kept, as `codec.py` numbers it."""

    __tablename__ = "llm_payloads"

    workspace_id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    sha256: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    codec: Mapped[int] = mapped_column(sa.SmallInteger)
    bytes: Mapped[bytes] = mapped_column(sa.LargeBinary)
    last_ref_at: Mapped[datetime] = mapped_column(UTCDateTime)


class _Usage:
    """What the runs of one day had in common, added up. A column without a value there has an empty text here."""

    day: Mapped[str] = mapped_column(sa.String(10), primary_key=True)
    workspace_id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    stage: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    provider: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    model: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    runs: Mapped[int] = mapped_column(sa.BigInteger)
    failed: Mapped[int] = mapped_column(sa.BigInteger)
    cancelled: Mapped[int] = mapped_column(sa.BigInteger)
    abandoned: Mapped[int] = mapped_column(sa.BigInteger)
    hits: Mapped[int] = mapped_column(sa.BigInteger)
    replays: Mapped[int] = mapped_column(sa.BigInteger)
    input_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    output_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    unknown_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    cost_usd: Mapped[Decimal] = mapped_column(Money)
    unknown_cost: Mapped[int] = mapped_column(sa.BigInteger)
    saved_input_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    saved_output_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    saved_cost_usd: Mapped[Decimal] = mapped_column(Money)
    unknown_saved: Mapped[int] = mapped_column(sa.BigInteger)
    latencies: Mapped[str] = mapped_column(sa.Text)


class LLMUsage(_Usage, Base):
    """The roll-up that reports read: all ended runs of a day, those that are gone included."""

    __tablename__ = "llm_usage"


class LLMUsagePruned(_Usage, Base):
    """The part of it whose runs were pruned: it cannot be counted again."""

    __tablename__ = "llm_usage_pruned"


class LLMUsageDay(Base):
    """When a day was rolled up, and what has happened to its runs since."""

    __tablename__ = "llm_usage_days"

    day: Mapped[str] = mapped_column(sa.String(10), primary_key=True)
    rolls: Mapped[int] = mapped_column(sa.BigInteger)
    """How often it was rolled up: who has read an older number writes nothing."""
    changes: Mapped[int] = mapped_column(sa.BigInteger)
    """How often something of its ended runs changed that a report counts."""
    counted: Mapped[int] = mapped_column(sa.BigInteger)
    """How many of the changes the roll-up has seen."""
    live: Mapped[int] = mapped_column(sa.BigInteger)
    """Runs that had not ended then."""
    rolled_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class LLMBudget(Base):
    """What the runs of a workspace hold and count in one day or month: the sums of `reserved_*` over their rows."""

    __tablename__ = "llm_budgets"

    workspace_id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    period: Mapped[str] = mapped_column(sa.String(10), primary_key=True)
    """`2026-01-31`, or `2026-01`, of the time at which runs were created, in UTC."""
    spent_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    spent_usd: Mapped[Decimal] = mapped_column(Money)
    reserved_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    """Of runs that are STARTED."""
    reserved_usd: Mapped[Decimal] = mapped_column(Money)
    unknown_costs: Mapped[int] = mapped_column(sa.BigInteger)
    """Ended runs whose cost is not known."""
    warned_tokens: Mapped[bool] = mapped_column(sa.Boolean)
    """Whether somebody told that the soft limit is reached."""
    warned_usd: Mapped[bool] = mapped_column(sa.Boolean)


class LLMRate(Base):
    """What a provider was asked by all processes that count together, or until when a candidate is left alone.

    Times are seconds since 1970 by the database's clock.
    """

    __tablename__ = "llm_rates"

    name: Mapped[str] = mapped_column(sa.String(320), primary_key=True)
    """A provider, or `provider:model`."""
    requests_at_s: Mapped[float] = mapped_column(sa.Float)
    """When all requests that were taken are paid off."""
    tokens_at_s: Mapped[float] = mapped_column(sa.Float)
    """Likewise."""
    held_until_s: Mapped[float] = mapped_column(sa.Float)
    """Until when a candidate is left alone."""
    asked_at_s: Mapped[float] = mapped_column(sa.Float)
    """When it was last asked for a place."""
    wait_s: Mapped[float] = mapped_column(sa.Float)
    """What whoever asked then was told: 0 is a place."""

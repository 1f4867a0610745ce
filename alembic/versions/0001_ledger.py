"""The ledger: llm_runs, llm_attempts, llm_payloads."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")
SERVABLE = sa.text("status = 'SUCCEEDED' AND source_run_id IS NULL")
LIVE = sa.text("finished_at IS NULL")
FLIES = sa.text("flight_slot IS NOT NULL")
IN_PIPELINE = sa.text("pipeline_run_id IS NOT NULL")
ASKED = sa.text("request_payload IS NOT NULL")
SAID = sa.text("response_payload IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "llm_attempts",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("candidate_sha256", sa.String(length=64), nullable=False),
        sa.Column("wire_sha256", sa.String(length=64), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("http_status", sa.Integer(), nullable=True),
        sa.Column("retry_after_s", sa.Float(), nullable=True),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cost_usd", sa.Numeric(precision=18, scale=9, asdecimal=False), nullable=True),
        sa.Column("possibly_paid", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "ordinal", name=op.f("pk_llm_attempts")),
    )
    op.create_table(
        "llm_payloads",
        sa.Column("workspace_id", sa.String(length=255), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("codec", sa.SmallInteger(), nullable=False),
        sa.Column("bytes", sa.LargeBinary(), nullable=False),
        sa.Column("last_ref_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "sha256", name=op.f("pk_llm_payloads")),
    )
    op.create_table(
        "llm_runs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("workspace_id", sa.String(length=255), nullable=False),
        sa.Column("pipeline_run_id", sa.String(length=255), nullable=True),
        sa.Column("stage", sa.String(length=255), nullable=True),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("idem_slot", sa.String(length=255), nullable=True),
        sa.Column("flight_slot", sa.String(length=64), nullable=True),
        sa.Column("prompt_sha256", sa.String(length=64), nullable=False),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("candidate_sha256", sa.String(length=64), nullable=True),
        sa.Column("fingerprint_version", sa.Integer(), nullable=False),
        sa.Column("profile", sa.String(length=32), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=True),
        sa.Column("model", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("finish_reason", sa.String(length=32), nullable=True),
        sa.Column("cache_mode", sa.String(length=16), nullable=False),
        sa.Column("execution", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("supersedes", sa.String(length=36), nullable=True),
        sa.Column("source_run_id", sa.String(length=36), nullable=True),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("sends_noted", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("needs", sa.Text(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("total_tokens", sa.BigInteger(), nullable=True),
        sa.Column("saved_input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("saved_output_tokens", sa.BigInteger(), nullable=True),
        sa.Column("usage_source", sa.String(length=32), nullable=True),
        sa.Column("cost_usd", sa.Numeric(precision=18, scale=9, asdecimal=False), nullable=True),
        sa.Column("price_version", sa.String(length=64), nullable=True),
        sa.Column("reserved_tokens", sa.BigInteger(), nullable=True),
        sa.Column("reserved_cost_usd", sa.Numeric(precision=18, scale=9, asdecimal=False), nullable=True),
        sa.Column("queue_wait_ms", sa.Float(), nullable=True),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("possibly_paid", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("late", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("replayed_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("lease_until", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("request_payload", sa.String(length=64), nullable=True),
        sa.Column("response_payload", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_llm_runs")),
    )
    op.create_index(
        "ix_llm_runs_lease", "llm_runs", ["lease_until"], sqlite_where=LIVE, postgresql_where=LIVE
    )
    op.create_index(
        "ix_llm_runs_pipeline",
        "llm_runs",
        ["pipeline_run_id"],
        sqlite_where=IN_PIPELINE,
        postgresql_where=IN_PIPELINE,
    )
    op.create_index(
        "ix_llm_runs_servable",
        "llm_runs",
        ["workspace_id", "prompt_sha256", "candidate_sha256", "finished_at"],
        sqlite_where=SERVABLE,
        postgresql_where=SERVABLE,
    )
    for name, stored in (
        ("request_payload", ASKED),
        ("response_payload", SAID),
    ):  # or prune would read every run
        op.create_index(
            f"ix_llm_runs_{name}",
            "llm_runs",
            ["workspace_id", name],
            sqlite_where=stored,
            postgresql_where=stored,
        )
    op.create_index("ix_llm_runs_workspace_created", "llm_runs", ["workspace_id", "created_at"])
    op.create_index(
        "uq_llm_runs_flight_slot",
        "llm_runs",
        ["flight_slot"],
        unique=True,
        sqlite_where=FLIES,
        postgresql_where=FLIES,
    )
    op.create_index("uq_llm_runs_idem_slot", "llm_runs", ["workspace_id", "idem_slot"], unique=True)


def downgrade() -> None:
    op.drop_table("llm_runs")
    op.drop_table("llm_payloads")
    op.drop_table("llm_attempts")

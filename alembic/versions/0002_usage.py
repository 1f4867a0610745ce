"""Daily usage: llm_usage, llm_usage_pruned, llm_usage_days; cached tokens of sends, what a hit saved."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")
MONEY = sa.Numeric(precision=18, scale=9)  # SQLite: nano-dollars


def upgrade() -> None:
    op.add_column("llm_attempts", sa.Column("cached_input_tokens", sa.BigInteger(), nullable=True))
    op.add_column("llm_runs", sa.Column("saved_cost_usd", MONEY, nullable=True))
    for name in ("llm_usage", "llm_usage_pruned"):
        op.create_table(
            name,
            sa.Column("day", sa.String(length=10), nullable=False),
            sa.Column("workspace_id", sa.String(length=255), nullable=False),
            sa.Column("stage", sa.String(length=255), nullable=False),
            sa.Column("provider", sa.String(length=64), nullable=False),
            sa.Column("model", sa.String(length=255), nullable=False),
            sa.Column("runs", sa.BigInteger(), nullable=False),
            sa.Column("failed", sa.BigInteger(), nullable=False),
            sa.Column("cancelled", sa.BigInteger(), nullable=False),
            sa.Column("abandoned", sa.BigInteger(), nullable=False),
            sa.Column("hits", sa.BigInteger(), nullable=False),
            sa.Column("replays", sa.BigInteger(), nullable=False),
            sa.Column("input_tokens", sa.BigInteger(), nullable=False),
            sa.Column("output_tokens", sa.BigInteger(), nullable=False),
            sa.Column("unknown_tokens", sa.BigInteger(), nullable=False),
            sa.Column("cost_usd", MONEY, nullable=False),
            sa.Column("unknown_cost", sa.BigInteger(), nullable=False),
            sa.Column("saved_input_tokens", sa.BigInteger(), nullable=False),
            sa.Column("saved_output_tokens", sa.BigInteger(), nullable=False),
            sa.Column("saved_cost_usd", MONEY, nullable=False),
            sa.Column("unknown_saved", sa.BigInteger(), nullable=False),
            sa.Column("latencies", sa.Text(), nullable=False),
            sa.PrimaryKeyConstraint(
                *("day", "workspace_id", "stage", "provider", "model"), name=op.f(f"pk_{name}")
            ),
        )
    op.create_table(
        "llm_usage_days",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("rolls", sa.BigInteger(), nullable=False),
        sa.Column("changes", sa.BigInteger(), nullable=False),
        sa.Column("counted", sa.BigInteger(), nullable=False),
        sa.Column("live", sa.BigInteger(), nullable=False),
        sa.Column("rolled_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_llm_usage_days")),
    )


def downgrade() -> None:
    for name in ("llm_usage_days", "llm_usage_pruned", "llm_usage"):
        op.drop_table(name)
    op.drop_column("llm_runs", "saved_cost_usd")
    op.drop_column("llm_attempts", "cached_input_tokens")

"""Budgets: llm_budgets, what the runs of a workspace hold and count in a day or a month."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

MONEY = sa.Numeric(precision=18, scale=9)  # SQLite: nano-dollars


def upgrade() -> None:
    op.create_table(
        "llm_budgets",
        sa.Column("workspace_id", sa.String(length=255), nullable=False),
        sa.Column("period", sa.String(length=10), nullable=False),
        sa.Column("spent_tokens", sa.BigInteger(), nullable=False),
        sa.Column("spent_usd", MONEY, nullable=False),
        sa.Column("reserved_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reserved_usd", MONEY, nullable=False),
        sa.Column("unknown_costs", sa.BigInteger(), nullable=False),
        sa.Column("warned_tokens", sa.Boolean(), nullable=False),
        sa.Column("warned_usd", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "period", name=op.f("pk_llm_budgets")),
    )


def downgrade() -> None:
    op.drop_table("llm_budgets")

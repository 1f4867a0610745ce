"""Rates that processes share: llm_rates."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "llm_rates",
        sa.Column("name", sa.String(length=320), nullable=False),
        sa.Column("requests_at_s", sa.Float(), nullable=False),
        sa.Column("tokens_at_s", sa.Float(), nullable=False),
        sa.Column("held_until_s", sa.Float(), nullable=False),
        sa.Column("asked_at_s", sa.Float(), nullable=False),
        sa.Column("wait_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_llm_rates")),
    )


def downgrade() -> None:
    op.drop_table("llm_rates")

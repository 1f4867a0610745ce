"""Who refers to a payload: two indexes, without which pruning would read every run for each payload."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COLUMNS = ("request_payload", "response_payload")


def upgrade() -> None:
    for name in COLUMNS:
        stored = sa.text(f"{name} IS NOT NULL")
        op.create_index(
            f"ix_llm_runs_{name}",
            "llm_runs",
            ["workspace_id", name],
            sqlite_where=stored,
            postgresql_where=stored,
        )


def downgrade() -> None:
    for name in COLUMNS:
        op.drop_index(f"ix_llm_runs_{name}", table_name="llm_runs")

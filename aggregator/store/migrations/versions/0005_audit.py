"""The audit journal."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the table; of what happened before, nothing is told."""
    op.create_table(
        "audit",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
    )

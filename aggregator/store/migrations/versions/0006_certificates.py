"""Certificates: which an agent showed last, and which are revoked."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the table and the column; of agents from before no certificate is known."""
    op.create_table(
        "revocations",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("serial", NAME, primary_key=True),
        sa.Column("holder", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )
    op.add_column("agents", sa.Column("expires_at", sa.Double, nullable=False, server_default="0"))

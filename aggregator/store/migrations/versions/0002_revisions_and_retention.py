"""Sampling of sites, revisions that replicas compare, and updates whose bytes were dropped."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; a federation from before samples nobody, so any seed is right."""
    op.add_column("federations", sa.Column("sampling_seed", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("federations", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("rounds", sa.Column("purged_at", sa.Double))
    op.drop_table("schema_version")

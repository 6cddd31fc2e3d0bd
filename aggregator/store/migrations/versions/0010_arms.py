"""What a site tells of its comparison of models, if it does."""

import sqlalchemy as sa
from alembic import op

from aggregator.store.schema import NAME

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "arms",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("site", NAME, primary_key=True),
        sa.Column("arm", NAME, primary_key=True),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("cases", sa.BigInteger, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("reported_at", sa.Double, nullable=False),
    )

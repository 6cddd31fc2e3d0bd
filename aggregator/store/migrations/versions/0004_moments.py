"""What a server optimiser keeps from round to round."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the table; federations from before keep nothing but the version."""
    op.create_table(
        "moments",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE moments ALTER COLUMN data SET STORAGE EXTERNAL")

"""What a round changed, as the broadcast codec wrote it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the table; federations from before broadcast every version as it is."""
    op.create_table(
        "changes",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("owed", sa.LargeBinary, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE changes ALTER COLUMN data SET STORAGE EXTERNAL")

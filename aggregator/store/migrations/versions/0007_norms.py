"""How large accepted updates are, where the recipe has a norm gate."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column; updates from before were made under recipes without a gate."""
    op.add_column("updates", sa.Column("norms", sa.Text, nullable=False, server_default="{}"))

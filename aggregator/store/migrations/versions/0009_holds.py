"""What holds a site up, by its own word, so that a coordinator sees whom to ask."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the column; an agent from before never says so."""
    op.add_column("agents", sa.Column("hold", sa.String))

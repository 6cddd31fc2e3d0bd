"""Which certificate an agent showed last, so that one that is revoked can be told of."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column; an agent from before tells its certificate with its next call."""
    op.add_column("agents", sa.Column("serial", sa.String))

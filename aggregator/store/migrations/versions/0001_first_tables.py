"""The tables of the first release, which kept the number 1 in `schema_version`. A frozen copy: `schema` has moved on."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
CLAIMED = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table("schema_version", sa.Column("version", sa.Integer, nullable=False))
    op.execute("INSERT INTO schema_version VALUES (1)")
    _federation_and_sites()
    _rounds_and_updates()
    if op.get_bind().dialect.name == "postgresql":
        for table in ("adapters", "chunks"):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN data SET STORAGE EXTERNAL")


def _federation_and_sites() -> None:
    op.create_table(
        "federations",
        sa.Column("name", NAME, primary_key=True),
        sa.Column("recipe", sa.String, nullable=False),
        sa.Column("recipe_parameters", sa.Text, nullable=False),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("adapter_digest", sa.String, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("phase", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("paused_at", sa.Double),
    )
    op.create_table(
        "sites",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("name", NAME, primary_key=True),
        sa.Column("phase", sa.String, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("training_patients", sa.Integer),
    )
    op.create_table(
        "agents",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("site", NAME, primary_key=True),
        sa.Column("agent_id", NAME, primary_key=True),
        sa.Column("authenticated", sa.Boolean, nullable=False),
        sa.Column("software_version", sa.String, nullable=False),
        sa.Column("protocol_version", sa.String, nullable=False),
        sa.Column("first_seen", sa.Double, nullable=False),
        sa.Column("last_seen", sa.Double, nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("version", CLAIMED, nullable=False),
    )
    op.create_table(
        "adapters",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("parent_digest", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "evaluations",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("site", NAME, primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("cases", sa.BigInteger, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("reported_at", sa.Double, nullable=False),
    )


def _rounds_and_updates() -> None:
    op.create_table(
        "rounds",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("phase", sa.String, nullable=False),
        sa.Column("base_version", sa.Integer, nullable=False),
        sa.Column("invited", sa.Text, nullable=False),
        sa.Column("opened_at", sa.Double, nullable=False),
        sa.Column("deadline_at", sa.Double),
        sa.Column("closed_at", sa.Double),
        sa.Column("manifest", sa.Text),
        sa.Column("input_digest", sa.String),
        sa.Column("version", sa.Integer),
        sa.Column("diagnostics", sa.Text),
    )
    op.create_table(
        "updates",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("site", NAME, primary_key=True),
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("agent_id", NAME, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("codec", sa.String, nullable=False),
        sa.Column("base_version", sa.Integer, nullable=False),
        sa.Column("training_patients", sa.Integer, nullable=False),
        sa.Column("metrics", sa.Text, nullable=False),
        sa.Column("announced_at", sa.Double, nullable=False),
        sa.Column("accepted_at", sa.Double),
    )
    op.create_index(
        "one_accepted_update_per_site_and_round",
        "updates",
        ["federation", "round", "site"],
        unique=True,
        sqlite_where=sa.text("accepted_at IS NOT NULL"),
        postgresql_where=sa.text("accepted_at IS NOT NULL"),
    )
    op.create_table(
        "chunks",
        sa.Column("federation", NAME, primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True),
        sa.Column("site", NAME, primary_key=True),
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("offset", sa.BigInteger, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )

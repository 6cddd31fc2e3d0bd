"""The tables. One schema for every database; every change of it comes with a migration (see `migrations`).

Times are seconds since 1970, digests hex SHA-256, structured values canonical JSON.
"""

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    event,
    text,
)

metadata = MetaData()

NAME = String().with_variant(String(collation="C"), "postgresql")
"""Names and ids sort by code point, as in Python and SQLite, whatever language the database was made for."""

CLAIMED = Integer().with_variant(BigInteger(), "postgresql")
"""A number that a site says and nobody checks: any uint32. SQLite's INTEGER holds it, PostgreSQL's does not."""

federations = Table(
    "federations",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("recipe", String, nullable=False),
    Column("recipe_parameters", Text, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("adapter_digest", String, nullable=False),
    Column("policy", Text, nullable=False),
    Column("phase", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("paused_at", Double),
    Column("sampling_seed", BigInteger, nullable=False, server_default="0"),
    Column("revision", BigInteger, nullable=False, server_default="0"),
)
"""The contract, which never changes, and the few things that do: phase and current version.

`revision` goes up with every change that a decision may hang on: a copy of the state is good as long as it stands.
"""

sites = Table(
    "sites",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("phase", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("training_patients", Integer),
)

agents = Table(
    "agents",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("site", NAME, primary_key=True),
    Column("agent_id", NAME, primary_key=True),
    Column("authenticated", Boolean, nullable=False),
    Column("software_version", String, nullable=False),
    Column("protocol_version", String, nullable=False),
    Column("first_seen", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
    Column("progress", Double, nullable=False),
    Column("version", CLAIMED, nullable=False),
    Column("expires_at", Double, nullable=False, server_default="0"),
    Column("serial", String),
    Column("hold", String),
)
"""Every agent that ever used a site's certificate; the one heard from last is the site's agent.

`expires_at`, `serial`: the end and the serial number (hex) of the certificate that it showed last; 0 and nothing
without one. `hold`: what of its site's own doing holds it up (aggregator/rounds.py), nothing if nothing does.
"""

adapters = Table(
    "adapters",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("parent_digest", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("created_at", Double, nullable=False),
)
"""Canonical adapter files, one per version; never changed."""

changes = Table(
    "changes",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("owed", LargeBinary, nullable=False),
)
"""What made a version from its parent, where the broadcast codec is lossy; never changed. `owed`: its residual."""

moments = Table(
    "moments",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
"""What the server optimiser goes on from after a version, where it keeps anything; never changed."""

rounds = Table(
    "rounds",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("phase", String, nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("invited", Text, nullable=False),
    Column("opened_at", Double, nullable=False),
    Column("deadline_at", Double),
    Column("closed_at", Double),
    Column("manifest", Text),
    Column("input_digest", String),
    Column("version", Integer),
    Column("diagnostics", Text),
    Column("purged_at", Double),
)
"""`purged_at`: since when the bytes of this round's updates are gone, by the retention setting; digests and manifest stay."""

updates = Table(
    "updates",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("site", NAME, primary_key=True),
    Column("digest", String, primary_key=True),
    Column("agent_id", NAME, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("codec", String, nullable=False),
    Column("base_version", Integer, nullable=False),
    Column("training_patients", Integer, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("announced_at", Double, nullable=False),
    Column("accepted_at", Double),
    Column("norms", Text, nullable=False, server_default="{}"),
    Index(
        "one_accepted_update_per_site_and_round",
        "federation",
        "round",
        "site",
        unique=True,
        sqlite_where=text("accepted_at IS NOT NULL"),
        postgresql_where=text("accepted_at IS NOT NULL"),
    ),
)
"""Announced while `accepted_at` is null. An accepted row and its chunks never change."""

chunks = Table(
    "chunks",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("site", NAME, primary_key=True),
    Column("digest", String, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("site", NAME, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("cases", BigInteger, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("reported_at", Double, nullable=False),
)

arms = Table(
    "arms",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("site", NAME, primary_key=True),
    Column("arm", NAME, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("cases", BigInteger, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("reported_at", Double, nullable=False),
)
"""The comparison of models that a site made at the end, if it tells of it: the last one."""

audit = Table(
    "audit",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("line", Text, nullable=False),
    Column("digest", String, nullable=False),
)
"""A hash-chained journal (`shared.journal`): lines as they were written, and the digest of each."""

revocations = Table(
    "revocations",
    metadata,
    Column("federation", NAME, primary_key=True),
    Column("serial", NAME, primary_key=True),
    Column("holder", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Double, nullable=False),
)
"""Certificates that are not good any more, whoever shows them."""

for _table in (adapters, changes, chunks, moments):  # float32 weights do not compress: PostgreSQL is not to try
    _ddl = DDL("ALTER TABLE %(table)s ALTER COLUMN data SET STORAGE EXTERNAL")  # type: ignore[no-untyped-call]
    event.listen(_table, "after_create", _ddl.execute_if(dialect="postgresql"))

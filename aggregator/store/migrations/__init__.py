"""From the schema of every earlier release to today's: which revision a store has, and how it becomes `HEAD`.

A change of `schema` comes with a further file in `versions/`, numbered from the last one, and a new `HEAD`. They use
Alembic's operations in the caller's transaction, so that a store is migrated as a whole or not at all. Alembic is loaded only
where there is something to migrate.
"""

from pathlib import Path

import sqlalchemy as sa

from aggregator.store import schema

HEAD = "0010"
FIRST = "0001"
FOLDER = Path(__file__).parent
REVISION = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))
"""The table Alembic keeps its revision in; apart from ours, which it compares."""
NUMBERED = sa.Table("schema_version", sa.MetaData(), sa.Column("version", sa.Integer, nullable=False))
"""What the first release kept instead: 1 is revision 0001."""


def found(connection: sa.Connection) -> str | None:
    """Return the revision of a store's schema, None if there is none."""
    tables = sa.inspect(connection).get_table_names()
    if REVISION.name in tables:
        return str(connection.execute(sa.select(REVISION.c.version_num)).scalar_one())
    if NUMBERED.name in tables:
        return f"{int(connection.execute(sa.select(NUMBERED.c.version)).scalar_one()):04d}"
    return None


def is_ours(revision: str) -> bool:
    """Whether a release of this program, perhaps a newer one, may have written this revision: ours are numbered."""
    return len(revision) == len(FIRST) and revision.isdecimal() and revision >= FIRST


def create(connection: sa.Connection) -> None:
    """Make today's tables in an empty database."""
    schema.metadata.create_all(connection)
    _stamp(connection, HEAD)


def upgrade(connection: sa.Connection, revision: str = HEAD) -> bool:
    """Bring the tables up to a revision. Returns False, changing nothing, if they are there: another process was faster."""
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    current = found(connection)
    newest_first = list(ScriptDirectory(str(FOLDER)).iterate_revisions(revision, current or "base"))
    with Operations.context(MigrationContext.configure(connection)):
        for script in reversed(newest_first):
            script.module.upgrade()
    if newest_first:
        _stamp(connection, revision)
    return bool(newest_first)


def _stamp(connection: sa.Connection, revision: str) -> None:
    REVISION.create(connection, checkfirst=True)
    connection.execute(REVISION.delete())
    connection.execute(REVISION.insert().values(version_num=revision))

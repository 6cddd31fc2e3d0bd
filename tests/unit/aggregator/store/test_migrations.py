"""A store of every earlier release becomes one of today's, with every row, whatever database it is in."""

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from structlog.testing import capture_logs

from aggregator.store import engine, federations, migrations, schema, updates
from aggregator.store.engine import Store
from shared.errors import InputError, NewerStore

FIRST_RELEASE = Path(__file__).parent / "first_release.sql"
"""The dump of a store made by release 0.1.0: two sites, two closed rounds, the third one open."""
LAST_DIGEST = "7913a9a936bbbed33802d2ee8b2d21d46148aeda2e2468ac1da316e468f3e38a"
"""As the dump has it."""
Rows = dict[str, list[dict[str, Any]]]


def rows(connection: sa.Connection) -> Rows:
    """Every row of every table, by table and in the order of the key."""
    found = sa.MetaData()
    found.reflect(connection)
    return {
        name: [
            {key: bytes(value) if isinstance(value, memoryview) else value for key, value in row.items()}
            for row in connection.execute(sa.select(table).order_by(*table.primary_key.columns)).mappings()
        ]
        for name, table in found.tables.items()
    }


def old_file(path: Path) -> Path:
    with sqlite3.connect(path) as raw:
        raw.executescript(FIRST_RELEASE.read_text())
    raw.close()
    return path


def old_rows(folder: Path) -> Rows:
    (folder / "rows.db").unlink(missing_ok=True)
    source = sa.create_engine(f"sqlite:///{old_file(folder / 'rows.db')}")
    with source.connect() as connection:
        found = rows(connection)
    source.dispose()
    return found


def fill(connection: sa.Connection, given: Rows) -> None:
    """The first release's tables as the first migration makes them, with the first release's rows."""
    migrations.upgrade(connection, migrations.FIRST)
    tables = sa.MetaData()
    tables.reflect(connection)
    for name, found in given.items():
        if found and name != "schema_version":
            connection.execute(tables.tables[name].insert(), found)


@pytest.fixture
def old(url: str, tmp_path: Path) -> str:
    """The URL of a store of the first release: in SQLite its own file, in PostgreSQL what the first migration makes."""
    if url.startswith("postgresql"):
        Store(engine._database(url)).write(fill, old_rows(tmp_path))
    else:
        old_file(Path(url))
    return url


def structure(connection: sa.Connection) -> dict[str, Any]:
    """What there is to know about the tables, as the database tells it."""
    if connection.dialect.name == "postgresql":
        query = (
            "SELECT attrelid::regclass::text, attname, atttypid::regtype::text, attnotnull, attstorage::text,"
            " attcollation::regcollation::text FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
            " WHERE relnamespace = 'public'::regnamespace AND attnum > 0 AND NOT attisdropped"
        )
        return {f"{row[0]}.{row[1]}": tuple(row[2:]) for row in connection.execute(sa.text(query))}
    inspector = sa.inspect(connection)
    columns = {
        f"{table}.{column['name']}": (str(column["type"]), column["nullable"], column["default"], column["primary_key"])
        for table in inspector.get_table_names()
        for column in inspector.get_columns(table)
    }
    return columns | {
        table: [(index["name"], index["column_names"]) for index in inspector.get_indexes(table)]
        for table in inspector.get_table_names()
    }


def differences(connection: sa.Connection) -> list[Any]:
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata))


def test_an_old_store_keeps_every_row(old: str, tmp_path: Path) -> None:
    before = old_rows(tmp_path)
    assert {name: len(found) for name, found in before.items() if found} == {
        "adapters": 3, "agents": 1, "chunks": 16, "evaluations": 1, "federations": 1, "rounds": 3, "schema_version": 1,
        "sites": 2, "updates": 4,
    }  # fmt: skip
    store = engine.open_store(old)
    after = store.read(rows)
    assert after.pop("alembic_version") == [{"version_num": migrations.HEAD}]
    assert [after.pop(name) for name in ("changes", "moments", "audit", "revocations", "arms")] == [[]] * 5
    for row in before["agents"]:
        row |= {"expires_at": 0.0, "serial": None, "hold": None}
    for row in before["updates"]:
        row["norms"] = "{}"
    del before["schema_version"]
    for row in before["federations"]:
        row |= {"sampling_seed": 0, "revision": 0}
    for row in before["rounds"]:
        row["purged_at"] = None
    assert after == before
    store.close()


def test_an_old_store_is_one_of_todays(old: str) -> None:
    store = engine.open_store(old)
    state = store.read(federations.state, "demo")
    assert (state.version, state.round.number, state.round.phase) == (2, 3, "open")
    assert state.digest == LAST_DIGEST
    assert store.read(federations.adapter, "demo", 2).digest == state.digest
    assert store.change("demo", True, federations.revision, "demo") == 0
    assert store.read(federations.revision, "demo") == 1
    key = updates.UpdateKey("demo", 1, "ge", "2b99d3bfa65055b0df6834e84ec4cd2a7f012a1eb16dc3324ef800b1aced7798")
    assert sum(map(len, updates.pieces(store, key))) == store.read(updates.committed, key) > 0
    store.close()


def test_a_new_store_and_a_migrated_one_have_the_schema_of_the_code(url: str, tmp_path: Path) -> None:
    store = engine.create(url)
    assert store.read(differences) == []
    made = store.read(structure)
    store.write(lambda connection: [connection.execute(sa.text(f"DROP TABLE {name}")) for name in rows(connection)])
    store.write(fill, old_rows(tmp_path))
    assert store.read(differences) != []
    store.close()
    migrated = engine.open_store(url)
    assert migrated.read(differences) == []
    assert migrated.read(structure) == made
    migrated.close()


def test_replicas_that_open_an_old_store_at_once_migrate_it_once(old: str) -> None:
    outcome: list[str | None] = []
    barrier = threading.Barrier(4)

    def open_it() -> None:
        barrier.wait()
        store = engine.open_store(old)
        outcome.append(store.read(migrations.found))
        store.close()

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    with capture_logs() as logs:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcome == [migrations.HEAD] * 4
    assert [entry["event"] for entry in logs] == ["store_migrated"]


def test_a_migration_that_fails_leaves_the_store_as_it_was(old: str, tmp_path: Path) -> None:
    """Here because what the last step drops is not what it thinks."""
    store = Store(engine._database(old))
    before = store.read(rows)
    store.write(lambda connection: connection.execute(sa.text("ALTER TABLE rounds ADD COLUMN purged_at FLOAT")))
    with pytest.raises(InputError, match="purged_at"):
        engine.open_store(old)
    store.write(lambda connection: connection.execute(sa.text("ALTER TABLE rounds DROP COLUMN purged_at")))
    assert store.read(rows) == before
    store.close()
    engine.open_store(old).close()


@pytest.mark.parametrize(
    ("number", "error"), [(0, InputError), (-1, InputError), (int(migrations.HEAD) + 1, NewerStore)]
)
def test_a_number_no_release_wrote_is_no_store_of_ours(tmp_path: Path, number: int, error: type[InputError]) -> None:
    with sqlite3.connect(old_file(tmp_path / "fed.db")) as raw:
        raw.execute("UPDATE schema_version SET version = ?", (number,))
    with pytest.raises(error, match=r"not a store of this program|reads up to"):
        engine.open_store(str(tmp_path / "fed.db"))


def test_head_is_the_last_migration_and_each_follows_the_one_before() -> None:
    scripts = ScriptDirectory(str(migrations.FOLDER))
    assert scripts.get_heads() == [migrations.HEAD]
    found = [script.revision for script in scripts.walk_revisions()]
    assert found == [f"{number:04d}" for number in range(len(found), 0, -1)]
    assert all(migrations.is_ours(revision) for revision in found)
    assert sorted(path.name[:4] for path in (migrations.FOLDER / "versions").glob("*.py")) == sorted(found)

"""A store in a file: its settings, a lock held by others, and a disk that fills up."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from aggregator.store import engine, schema, sqlite
from aggregator.store.engine import Store
from shared.errors import InputError, StoreUnavailable

ROOT = Path(__file__).resolve().parents[4]
PAGE = 4096


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = engine.create(str(tmp_path / "fed.db"))
    yield made
    made.close()


def pragma(connection: sa.Connection, name: str) -> object:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


def put(connection: sa.Connection, number: int, size: int) -> None:
    row = {"federation": "demo", "version": number, "parent_digest": "", "digest": "", "created_at": 0.0}
    connection.execute(schema.adapters.insert().values(**row, data=bytes(size)))


def versions(connection: sa.Connection) -> list[int]:
    return list(connection.execute(sa.select(schema.adapters.c.version).order_by(schema.adapters.c.version)).scalars())


def test_commits_survive_a_power_cut_by_setting(store: Store) -> None:
    assert store.write(pragma, "journal_mode") == "wal"
    assert store.write(pragma, "synchronous") == 2  # FULL: https://www.sqlite.org/pragma.html#pragma_synchronous


def test_a_read_waits_for_no_write_and_sees_only_what_is_committed(store: Store) -> None:
    def while_writing(connection: sa.Connection) -> None:
        put(connection, 1, 10)
        assert store.read(versions) == []

    store.write(while_writing)
    assert store.read(versions) == [1]


def test_a_new_store_has_large_pages(store: Store) -> None:
    assert store.write(pragma, "page_size") == sqlite.PAGE_BYTES


def test_a_glance_waits_for_no_writer_and_sees_only_what_is_committed(store: Store) -> None:
    assert store.glance("demo") is None

    def add(connection: sa.Connection, revision: int) -> None:
        columns = {c.name: c.type.python_type() for c in schema.federations.columns if not c.nullable}
        connection.execute(schema.federations.delete())
        connection.execute(schema.federations.insert().values({**columns, "name": "demo", "revision": revision}))

    store.write(add, 7)
    assert store.glance("demo") == 7

    def while_writing(connection: sa.Connection) -> None:
        add(connection, 8)
        assert store.glance("demo") == 7

    store.write(while_writing)
    assert store.glance("demo") == 8


def test_the_last_to_close_leaves_one_file(tmp_path: Path) -> None:
    made = engine.create(str(tmp_path / "fed.db"))
    made.glance("demo")
    made.close()
    assert [path.name for path in tmp_path.iterdir()] == ["fed.db"]


def test_a_lock_held_by_another_process_is_an_outage(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.1)
    other = engine.open_store(str(tmp_path / "fed.db"))

    def while_writing(connection: sa.Connection) -> None:
        put(connection, 1, 10)
        with pytest.raises(StoreUnavailable, match="another process keeps it locked"):
            other.write(put, 2, 10)

    store.write(while_writing)
    other.write(put, 2, 10)
    assert other.read(versions) == [1, 2]
    other.close()


def test_a_full_disk_is_an_outage_that_ends_when_there_is_space_again(store: Store, tmp_path: Path) -> None:
    store.write(put, 1, 10 * PAGE)
    full = store.write(pragma, "page_count")
    store.write(pragma, f"max_page_count={full}")
    with pytest.raises(StoreUnavailable, match=r"store cannot be used now: its disk is full\..*tries again") as caught:
        store.write(put, 2, 10 * PAGE)
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(StoreUnavailable):  # and again: it must not be stuck in the failed transaction
        store.write(put, 2, 10 * PAGE)
    assert store.read(versions) == [1]
    store.write(pragma, "max_page_count=1000000")
    store.write(put, 2, 10 * PAGE)
    assert store.read(versions) == [1, 2]


REAL_DISK = """
import sys
from pathlib import Path

from aggregator.store import engine
from shared.errors import StoreUnavailable
from tests.unit.aggregator.store.test_sqlite import put, versions

folder = Path(sys.argv[1])
store = engine.create(str(folder / "fed.db"))
(folder / "filler").write_bytes(bytes(1 << 20))
acknowledged, refused = [], 0
for number in range(100):
    if refused == 5:
        (folder / "filler").unlink(missing_ok=True)
    try:
        store.write(put, number, 100_000)
        acknowledged.append(number)
    except StoreUnavailable as error:
        assert str(folder) not in str(error) and "disk" in str(error), error
        refused += 1
        before = len(acknowledged)
        continue
    if refused >= 5 and len(acknowledged) == before + 5:
        break
store.close()
reopened = engine.open_store(str(folder / "fed.db"))
assert reopened.read(versions) == acknowledged
assert reopened.read(lambda connection: connection.exec_driver_sql("PRAGMA integrity_check").scalar_one()) == "ok"
print(refused, len(acknowledged))
"""


def test_a_real_disk_that_fills_up_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """A file system of 3 MB in a mount namespace of its own, filled by commits of 100 kB, then freed by 1 MB."""
    namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    script = f'mount -t tmpfs -o size=3m none "{tmp_path}" && exec "{sys.executable}" - "{tmp_path}"'
    result = subprocess.run(
        [*namespace, "sh", "-c", script], input=REAL_DISK, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    refused, acknowledged = map(int, result.stdout.splitlines()[-1].split())
    assert refused == 5
    assert acknowledged >= 10


def test_one_process_serves_a_file(store: Store, tmp_path: Path) -> None:
    store.reserve()
    other = engine.open_store(str(tmp_path / "fed.db"))
    with pytest.raises(InputError, match=r"served by another process already; a SQLite store has one"):
        other.reserve()
    store.close()
    other.reserve()
    other.close()


def test_there_is_nothing_to_hear_from_a_file(store: Store) -> None:
    heard: list[tuple[str, bool]] = []
    watch = store.watch(lambda *what: heard.append(what))
    store.change("demo", True, put, 1, 10)
    watch.close()
    assert heard == []


LIGHT = """
import sys
from aggregator.store import engine

store = engine.open_store(sys.argv[1])
store.close()
print([name for name in ("psycopg", "alembic", "mako") if name in sys.modules])
"""


def test_serving_a_file_loads_neither_the_other_driver_nor_the_migrations(store: Store) -> None:
    result = subprocess.run([sys.executable, "-c", LIGHT, store.place], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

"""Opening a store: what a person is told when it cannot be used."""

import sqlite3
from pathlib import Path

import pytest

from aggregator.store import engine, schema
from shared.errors import InputError, NewerStore


def test_a_missing_store_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no store at .*fed\.db; make one with: aggregator init"):
        engine.open_store(str(tmp_path / "fed.db"))
    assert not (tmp_path / "fed.db").exists()


def test_a_store_of_a_newer_release_names_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "fed.db"
    engine.create(str(path)).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE schema_version SET version = 9")
    with pytest.raises(NewerStore, match=rf"schema version 9, this release reads up to {schema.VERSION}; upgrade"):
        engine.open_store(str(path))


def test_a_file_that_is_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look at" * 50)
    with pytest.raises(InputError, match="not a store of this program"):
        engine.open_store(str(tmp_path / "notes.txt"))
    with sqlite3.connect(tmp_path / "other.db") as raw:
        raw.execute("CREATE TABLE fruit (name TEXT)")
    with pytest.raises(InputError, match="not a store of this program"):
        engine.open_store(str(tmp_path / "other.db"))


def test_an_existing_store_is_never_overwritten(tmp_path: Path) -> None:
    engine.create(str(tmp_path / "fed.db")).close()
    with pytest.raises(InputError, match="exists already"):
        engine.create(str(tmp_path / "fed.db"))


def test_urls_and_paths_mean_the_same_file(tmp_path: Path) -> None:
    engine.create(f"sqlite:///{tmp_path / 'fed.db'}").close()
    engine.open_store(str(tmp_path / "fed.db")).close()


@pytest.mark.parametrize("url", ["postgresql://host/db", "sqlite://fed.db", "mysql:///x"])
def test_an_unsupported_database_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="is not supported here"):
        engine.open_store(url)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        engine.create(str(tmp_path / "nowhere" / "fed.db"))


def test_commits_survive_a_power_cut_by_setting(tmp_path: Path) -> None:
    store = engine.create(str(tmp_path / "fed.db"))

    def pragmas(connection: engine.sa.Connection) -> tuple[str, int]:
        one = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        return one, connection.exec_driver_sql("PRAGMA synchronous").scalar_one()

    assert store.read(pragmas) == ("wal", 2)  # 2 is FULL: https://www.sqlite.org/pragma.html#pragma_synchronous
    store.close()

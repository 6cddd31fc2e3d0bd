"""Opening a store: what a person is told when it cannot be used."""

import sqlite3
from pathlib import Path

import pytest

from aggregator.store import engine, migrations
from shared.errors import InputError, NewerStore


def set_revision(url: str, revision: str) -> None:
    opened = engine.open_store(url)
    opened.write(lambda connection: connection.execute(migrations.REVISION.update().values(version_num=revision)))
    opened.close()


def test_a_missing_store_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no store at .*fed\.db; make one with: aggregator init"):
        engine.open_store(str(tmp_path / "fed.db"))
    assert not (tmp_path / "fed.db").exists()


def test_a_store_of_a_newer_release_names_both_revisions(url: str) -> None:
    engine.create(url).close()
    set_revision(url, "9001")
    with pytest.raises(NewerStore, match=rf"revision 9001, this release reads up to {migrations.HEAD}; upgrade"):
        engine.open_store(url)


@pytest.mark.parametrize("revision", ["ae1027a6acf", "0000", "x" * 32, ""])
def test_a_revision_of_another_program_is_said_to_be_none_of_ours(url: str, revision: str) -> None:
    engine.create(url).close()
    set_revision(url, revision)
    with pytest.raises(InputError, match="not a store of this program") as caught:
        engine.open_store(url)
    assert not isinstance(caught.value, NewerStore)


def test_a_file_that_is_no_store_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look at" * 50)
    with pytest.raises(InputError, match="not a store of this program"):
        engine.open_store(str(tmp_path / "notes.txt"))
    with sqlite3.connect(tmp_path / "other.db") as raw:
        raw.execute("CREATE TABLE fruit (name TEXT)")
    with pytest.raises(InputError, match="not a store of this program"):
        engine.open_store(str(tmp_path / "other.db"))


def test_an_existing_store_is_never_overwritten(url: str) -> None:
    engine.create(url).close()
    with pytest.raises(InputError, match=r"exists already; .* aggregator serve --store"):
        engine.create(url)


def test_urls_and_paths_mean_the_same_file(tmp_path: Path) -> None:
    engine.create(f"sqlite:///{tmp_path / 'fed.db'}").close()
    engine.open_store(str(tmp_path / "fed.db")).close()


@pytest.mark.parametrize("url", ["sqlite://fed.db", "mysql://user:secret@host/x", "postgres+asyncpg://host/db"])
def test_an_unsupported_database_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="is not supported here") as caught:
        engine.open_store(url)
    assert "secret" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        engine.create(str(tmp_path / "nowhere" / "fed.db"))


def test_a_file_that_may_not_be_opened_is_named_with_what_to_check(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(InputError, match="no store at"):
        engine.open_store(str(tmp_path / "folder.db"))

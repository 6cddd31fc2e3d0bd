"""Opening a store: what a person is told when it cannot be used."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from aggregator.store import engine, federations, migrations
from shared import recipe as recipes
from shared.contract import Contract, RoundPolicy
from shared.errors import InputError, NewerStore
from tests.support import adapters


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


def make_federation(connection: sa.Connection) -> None:
    contract = Contract(
        federation="demo",
        adapter_digest=adapters.adapter().digest,
        manifest=adapters.adapter().manifest,
        recipe=recipes.make("med-duallora", {}),
        policy=RoundPolicy(rounds=2, invited=3, quorum=3, deadline_s=100.0, grace_s=10.0),
    )
    federations.create(
        connection, contract, adapters.adapter(), dict.fromkeys(("ge", "philips", "siemens"), 10), 1000.0
    )


def test_an_existing_store_is_never_overwritten(url: str) -> None:
    engine.create(url, make_federation).close()
    with pytest.raises(InputError, match=r"exists already; .* aggregator serve --store"):
        engine.create(url, make_federation)


KILLED = """
import os, sys
from aggregator.store import engine
engine.create(sys.argv[1], lambda connection: os._exit(9))
"""


def test_a_store_whose_making_was_killed_is_made_anew(url: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, url], capture_output=True, check=False, timeout=60)
    assert killed.returncode == 9, killed.stderr
    with pytest.raises(InputError, match="make one with: aggregator init"):
        engine.open_store(url)
    engine.create(url, make_federation).close()
    store = engine.open_store(url)
    assert store.read(federations.only_name) == "demo"
    store.close()


def test_tables_without_a_federation_are_what_an_earlier_release_left_and_are_taken(url: str) -> None:
    engine.create(url).close()
    engine.create(url, make_federation).close()
    store = engine.open_store(url)
    assert store.read(federations.only_name) == "demo"
    store.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE alembic_version SET version_num = '0001'",
        "DROP TABLE chunks",
        "INSERT INTO sites VALUES ('demo', 'ge', 'enrolled', '', 10)",
    ],
)
def test_a_store_that_is_not_as_this_release_makes_it_is_left_alone(url: str, change: str) -> None:
    made = engine.create(url)
    made.write(lambda connection: connection.execute(sa.text(change)))
    made.close()
    with pytest.raises(InputError, match="exists already"):
        engine.create(url, make_federation)


def test_an_empty_file_is_free_and_one_of_another_program_is_not(tmp_path: Path) -> None:
    (tmp_path / "fed.db").touch()
    engine.create(str(tmp_path / "fed.db"), make_federation).close()
    (tmp_path / "notes.txt").write_text("not a database, but long enough to look at" * 50)
    with sqlite3.connect(tmp_path / "other.db") as raw:
        raw.execute("CREATE TABLE fruit (name TEXT)")
    (tmp_path / "folder").mkdir()
    for name in ("notes.txt", "other.db", "folder"):
        with pytest.raises(InputError, match=rf"{name} exists already and is not a store of this program"):
            engine.create(str(tmp_path / name))


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

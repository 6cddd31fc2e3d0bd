"""Hearing of what other processes change, across a server's restarts. A file has nothing to hear: test_sqlite.py."""

import queue
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from aggregator.store import engine, schema
from aggregator.store.engine import Store
from aggregator.store.postgres import Postgres
from tests.support.postgres import PostgresServer


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = engine.create(database)
    yield made
    made.close()


@pytest.fixture
def replica(store: Store, database: str) -> Iterator[Store]:
    opened = engine.open_store(database)
    yield opened
    opened.close()


def put(connection: sa.Connection, number: int) -> None:
    row = {"federation": "demo", "version": number, "parent_digest": "", "digest": "", "created_at": 0.0}
    connection.execute(schema.adapters.insert().values(**row, data=b"data"))


def versions(connection: sa.Connection) -> list[int]:
    return list(connection.execute(sa.select(schema.adapters.c.version).order_by(schema.adapters.c.version)).scalars())


class Ear:
    """Keeps what is heard, in order."""

    def __init__(self) -> None:
        self._heard: queue.Queue[tuple[str, bool]] = queue.Queue()

    def __call__(self, federation: str, news: bool) -> None:
        self._heard.put((federation, news))

    def next(self, timeout_s: float = 10.0) -> tuple[str, bool] | None:
        """Return what was heard first; None if nothing is heard in that time."""
        try:
            return self._heard.get(timeout=timeout_s)
        except queue.Empty:
            return None

    @property
    def silent(self) -> bool:
        return self._heard.empty()


@pytest.fixture
def ear(store: Store) -> Iterator[Ear]:
    """Listens on `store`; the greeting has been heard."""
    heard = Ear()
    watch = store.watch(heard)
    heard.next()
    yield heard
    watch.close()


def test_whoever_begins_to_listen_wakes_for_what_happened_before(store: Store) -> None:
    ear = Ear()
    watch = store.watch(ear)
    try:
        assert ear.next(5.0) == ("", True)
    finally:
        watch.close()


def test_a_replica_hears_of_the_others_changes_and_not_of_its_own(store: Store, replica: Store, ear: Ear) -> None:
    def fails(connection: sa.Connection) -> None:
        raise KeyError("on purpose")

    store.change("demo", True, put, 1)
    replica.write(put, 2)  # nobody decides anything by it
    with pytest.raises(KeyError):
        replica.change("failed", True, fails)
    replica.change("demo", True, put, 3)
    replica.change("a name with spaces", False, put, 4)
    assert ear.next() == ("demo", True)
    assert ear.next() == ("a name with spaces", False)
    assert ear.silent


def test_what_is_heard_is_committed(store: Store, replica: Store) -> None:
    seen: queue.Queue[list[int]] = queue.Queue()
    watch = store.watch(lambda federation, news: seen.put(store.read(versions)))
    assert seen.get(timeout=10) == []
    replica.change("demo", True, put, 1)
    assert seen.get(timeout=10) == [1]
    watch.close()


def test_a_watch_outlives_its_server(store: Store, replica: Store, ear: Ear, server: PostgresServer) -> None:
    server.crash()
    time.sleep(0.5)
    assert ear.silent
    server.start()
    assert ear.next() == ("", True)
    replica.change("demo", False, put, 1)
    assert ear.next() == ("demo", False)


@pytest.mark.parametrize("payload", ["hello", "", "one two three", "a 2 demo", "a 1", "\u2603 " * 1000])
def test_what_was_not_sent_by_a_replica_wakes_everybody_and_stops_nobody(
    store: Store, replica: Store, ear: Ear, postgres: PostgresServer, database: str, payload: str
) -> None:
    del store  # `ear` listens on it
    postgres.execute(f"NOTIFY med_duallora, '{payload}'", database.rpartition("/")[2])
    assert ear.next() == ("", True)
    replica.change("demo", False, put, 1)
    assert ear.next() == ("demo", False)


def test_a_failure_of_whoever_is_told_costs_a_pause_and_a_new_connection(store: Store, replica: Store) -> None:
    ear = Ear()

    def stumbles(federation: str, news: bool) -> None:
        ear(federation, news)
        if federation == "fatal":
            raise RuntimeError("on purpose")

    watch = store.watch(stumbles)
    try:
        assert ear.next() == ("", True)
        replica.change("fatal", True, put, 1)
        assert ear.next() == ("fatal", True)
        assert ear.next() == ("", True)
        replica.change("demo", True, put, 2)
        assert ear.next() == ("demo", True)
    finally:
        watch.close()
    assert watchers() == 0


def watchers() -> int:
    return sum(thread.name == "store-watch" for thread in threading.enumerate())


def test_a_closed_watch_is_gone_in_two_seconds(store: Store, server: PostgresServer) -> None:
    for outage in (lambda: None, server.stop):
        ear = Ear()
        watch = store.watch(ear)
        assert ear.next() == ("", True)
        outage()
        began = time.monotonic()
        watch.close()
        assert time.monotonic() - began < 2.0
        assert watchers() == 0


def test_a_watch_can_be_closed_while_the_server_answers_nothing(store: Store) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://tests@127.0.0.1:{mute.getsockname()[1]}/none"
        ear = Ear()
        watch = Postgres(url).watch(ear)
        time.sleep(0.2)
        began = time.monotonic()
        watch.close()
        assert time.monotonic() - began < 2.5
    assert ear.silent
    assert watchers() == 0

"""What every store's transactions promise, whatever database is behind it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa

from aggregator.store import engine, federations, schema
from aggregator.store.engine import Store
from shared.contract import Contract, RoundPolicy
from shared.errors import NotFound
from shared.recipe import Recipe
from tests.support import adapters

ADAPTER = adapters.adapter()
CONTRACT = Contract(
    federation="demo",
    adapter_digest=ADAPTER.digest,
    manifest=ADAPTER.manifest,
    recipe=Recipe(),
    policy=RoundPolicy(rounds=2, invited=3, quorum=3),
)
SITES = ("Zürich", "a_b", "aa", "b-site", "ge")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = engine.create(url)
    made.write(federations.create, CONTRACT, ADAPTER, dict.fromkeys(SITES, 10), 1000.0)
    yield made
    made.close()


@pytest.fixture
def other(store: Store, url: str) -> Iterator[Store]:
    """The same store, opened again."""
    opened = engine.open_store(url)
    yield opened
    opened.close()


def version(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(schema.federations.c.version)).scalar_one())


def set_version(connection: sa.Connection, value: int) -> None:
    connection.execute(schema.federations.update().values(version=value))


def increment(connection: sa.Connection) -> None:
    set_version(connection, version(connection) + 1)


def together(count: int, work: Callable[[int], None]) -> None:
    """Run it in as many threads at once; raise what one of them raises."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            barrier.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_writes_are_alone_so_no_increment_is_lost(store: Store, other: Store) -> None:
    def work(number: int) -> None:
        for _ in range(10):
            (store, other)[number % 2].write(increment)

    together(6, work)
    assert store.read(version) == 60


class Waiting:
    """Holds a store's first write inside its transaction until others wait for it; counts the transactions that write."""

    def __init__(self, store: Store, count: int) -> None:
        self.transactions = 0
        self._store, self._count, self._transaction = store, count, store._database.transaction
        store._database.transaction = self.transaction  # type: ignore[method-assign]

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[sa.Connection]:
        self.transactions += write
        with self._transaction(write=write) as connection:
            yield connection

    def first(self, connection: sa.Connection) -> None:
        increment(connection)
        for _ in range(500):
            if len(self._store._waiting) == self._count:
                return
            time.sleep(0.01)

    def run(self, *works: Callable[[sa.Connection], object]) -> list[BaseException | None]:
        """Write the first and then these at once. Returns what each of them raised."""
        raised: list[BaseException | None] = [None] * len(works)

        def run(number: int) -> None:
            try:
                self._store.change("demo", False, works[number])
            except BaseException as error:
                raised[number] = error

        threads = [threading.Thread(target=run, args=(n,)) for n in range(len(works))]
        leader = threading.Thread(target=self._store.write, args=(self.first,))
        leader.start()
        while not self.transactions:
            time.sleep(0.001)
        for thread in threads:
            thread.start()
        for thread in (leader, *threads):
            thread.join()
        return raised


def test_writes_that_come_during_a_commit_share_the_next_one(store: Store) -> None:
    waiting, before = Waiting(store, 4), store.read(federations.revision, "demo")
    assert waiting.run(*[increment] * 4) == [None] * 4
    assert waiting.transactions == 2
    assert store.read(version) == 5
    assert store.read(federations.revision, "demo") == before + 4


def test_one_of_them_that_raises_leaves_the_others_alone(store: Store) -> None:
    def fails(connection: sa.Connection) -> None:
        increment(connection)
        raise KeyError("on purpose")

    waiting, before = Waiting(store, 3), store.read(federations.revision, "demo")
    first, second, third = waiting.run(increment, fails, increment)
    assert (first, third) == (None, None)
    assert isinstance(second, KeyError)
    assert store.read(version) == 3
    assert store.read(federations.revision, "demo") == before + 2


def test_a_write_decides_by_what_the_one_before_it_committed(store: Store, other: Store) -> None:
    """The waiting write began before the first one committed, and must not decide by the state it found then."""
    inside, seen = threading.Event(), []

    def first(connection: sa.Connection) -> None:
        set_version(connection, 7)
        inside.set()
        waiting.join(0.5)  # time enough for the other one to begin, and to read if it were let

    def second() -> None:
        inside.wait()
        seen.append(other.write(version))

    waiting = threading.Thread(target=second)
    waiting.start()
    store.write(first)
    waiting.join()
    assert seen == [7]


def test_a_read_sees_one_state_whatever_is_written_meanwhile(store: Store, other: Store) -> None:
    def twice(connection: sa.Connection) -> tuple[int, int]:
        before = version(connection)
        other.write(increment)
        return before, version(connection)

    assert store.read(twice) == (0, 0)
    assert store.read(version) == 1


def test_what_raises_leaves_nothing_behind(store: Store) -> None:
    def fails(connection: sa.Connection) -> None:
        increment(connection)
        raise KeyError("on purpose")

    with pytest.raises(KeyError, match="on purpose"):
        store.write(fails)
    assert store.read(version) == 0


def test_the_revision_goes_up_once_with_every_change_and_only_then(store: Store) -> None:
    def revision() -> int:
        return store.read(federations.revision, "demo")

    def fails(connection: sa.Connection) -> None:
        raise KeyError("on purpose")

    before = revision()
    store.write(increment)
    assert revision() == before
    assert store.change("demo", True, version) == 1  # what the work returned
    assert revision() == before + 1
    with pytest.raises(KeyError):
        store.change("demo", False, fails)
    assert revision() == before + 1
    together(4, lambda _: store.change("demo", False, increment))
    assert (revision(), store.read(version)) == (before + 5, 5)


def test_the_revision_of_an_unknown_federation_names_the_known(store: Store) -> None:
    with pytest.raises(NotFound, match="it has: demo"):
        store.read(federations.revision, "other")


def test_names_sort_as_in_python_whatever_language_the_database_speaks(store: Store) -> None:
    query = sa.select(schema.sites.c.name).order_by(schema.sites.c.name)
    assert store.read(lambda connection: connection.execute(query).scalars().all()) == sorted(SITES)
    assert sorted(SITES)[0] == "Zürich"  # which no dictionary would put first


def test_a_store_can_be_closed_twice(store: Store) -> None:
    store.close()
    store.close()

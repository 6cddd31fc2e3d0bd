"""A store in PostgreSQL: several processes on it, a server that goes away, and what an operator is told."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import unquote

import pytest
import sqlalchemy as sa

from aggregator.store import engine, schema
from aggregator.store.engine import Store
from shared.errors import InputError, MedDualLoRAError, StoreUnavailable
from tests.support.postgres import PASSWORD_ROLE, PostgresServer

SECRET = "pa55word"


@contextmanager
def opened(url: str) -> Iterator[Store]:
    store = engine.open_store(url)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    made = engine.create(database)
    yield made
    made.close()


def put(connection: sa.Connection, number: int) -> None:
    row = {"federation": "demo", "version": number, "parent_digest": "", "digest": "", "created_at": 0.0}
    connection.execute(schema.adapters.insert().values(**row, data=b"data"))


def versions(connection: sa.Connection) -> list[int]:
    return list(connection.execute(sa.select(schema.adapters.c.version).order_by(schema.adapters.c.version)).scalars())


def setting(connection: sa.Connection, name: str) -> str:
    return str(connection.execute(sa.text(f"SHOW {name}")).scalar_one())


def with_options(url: str, **settings: str) -> str:
    """The URL with session settings that replace ours."""
    given = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return str(sa.make_url(url).update_query_dict({"options": given}).render_as_string(hide_password=False))


# transactions


def test_a_transaction_is_what_the_promises_rest_on(store: Store) -> None:
    for run, isolation, read_only in (
        (store.read, "repeatable read", "on"),
        (store.write, "read committed", "off"),
        (store.read, "repeatable read", "on"),
    ):
        assert run(setting, "transaction_isolation") == isolation
        assert run(setting, "transaction_read_only") == read_only
        assert run(setting, "synchronous_commit") == "on"
        assert run(setting, "idle_in_transaction_session_timeout") == "15s"
        assert run(setting, "tcp_user_timeout") == "20000"
        assert run(setting, "tcp_keepalives_count") == "3"


def test_an_operator_changes_limits_but_not_durability(store: Store, database: str) -> None:
    with opened(with_options(database, lock_timeout="5s", synchronous_commit="off")) as other:
        assert other.read(setting, "lock_timeout") == "5s"
        assert other.read(setting, "synchronous_commit") == "on"


def test_the_socket_is_as_good_as_tcp(store: Store, postgres: PostgresServer, database: str) -> None:
    store.write(put, 1)
    with opened(postgres.socket_url(database.rpartition("/")[2])) as other:
        assert other.read(versions) == [1]
        assert str(postgres.folder) in unquote(other.place)


def test_one_that_stands_still_in_a_write_loses_it_and_the_others_go_on(store: Store, database: str) -> None:
    """As a frozen or cut-off replica does: here for 3 s, where it may be silent for 1 s."""
    inside, outcome = threading.Event(), []

    def stand_still(connection: sa.Connection) -> None:
        put(connection, 1)
        inside.set()
        time.sleep(3)
        put(connection, 2)

    def run() -> None:
        with opened(with_options(database, idle_in_transaction_session_timeout="1s")) as frozen:
            try:
                frozen.write(stand_still)
            except StoreUnavailable as error:
                outcome.append(str(error))
            frozen.write(put, 4)  # and is well again

    thread = threading.Thread(target=run)
    thread.start()
    inside.wait()
    began = time.monotonic()
    store.write(put, 3)
    assert time.monotonic() - began < 2.5
    thread.join()
    assert len(outcome) == 1
    assert store.read(versions) == [3, 4]


def test_a_lock_that_does_not_come_free_is_an_outage(store: Store, database: str) -> None:
    def while_writing(connection: sa.Connection) -> None:
        with opened(with_options(database, lock_timeout="200ms")) as other:
            assert other.read(versions) == []  # reading waits for nobody
            with pytest.raises(StoreUnavailable, match="another process keeps it locked"):
                other.write(put, 1)

    store.write(while_writing)


def test_a_slow_statement_is_an_outage(store: Store, database: str) -> None:
    with (
        opened(with_options(database, statement_timeout="100ms")) as other,
        pytest.raises(StoreUnavailable, match="it took too long"),
    ):
        other.read(lambda connection: connection.execute(sa.text("SELECT pg_sleep(2)")))


def test_a_full_disk_is_an_outage(store: Store) -> None:
    def fill(connection: sa.Connection) -> None:
        put(connection, 1)
        connection.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION 'could not extend' USING ERRCODE = '53100'; END $$"))

    with pytest.raises(StoreUnavailable, match=r"its disk is full\. Nothing that was acknowledged is lost"):
        store.write(fill)
    store.write(put, 1)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("08006", "it does not answer"),
        ("25006", "it takes no writes"),
        ("40001", "another process was in its way"),
        ("40P01", "another process was in its way"),
        ("53200", "it has no memory, disk or connection left"),
        ("53300", "it has too many connections"),
        ("55P03", "another process keeps it locked"),
        ("57P01", "it does not answer"),
        ("57P02", "it does not answer"),
        ("57P03", "it does not answer"),
        ("58030", "its disk fails"),
    ],
)
def test_what_passes_by_itself_is_an_outage_whatever_class_the_driver_gives_it(
    store: Store, state: str, said: str
) -> None:
    def fail(connection: sa.Connection) -> None:
        put(connection, 1)
        connection.execute(sa.text(f"DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{state}'; END $$"))

    with pytest.raises(StoreUnavailable, match=said):
        store.write(fail)
    assert store.read(versions) == []


def test_a_transaction_turned_read_only_is_an_outage(store: Store) -> None:
    def turned(connection: sa.Connection) -> None:
        connection.execute(sa.text("SET TRANSACTION READ ONLY"))
        put(connection, 1)

    with pytest.raises(StoreUnavailable, match="it takes no writes"):
        store.write(turned)
    store.write(put, 1)


def test_a_mistake_of_ours_is_no_outage(store: Store) -> None:
    with pytest.raises(sa.exc.ProgrammingError):
        store.read(lambda connection: connection.execute(sa.text("SELECT nonsense")))
    with pytest.raises(sa.exc.IntegrityError):
        store.write(lambda connection: (put(connection, 1), put(connection, 1)))


def test_a_reading_transaction_writes_nothing(store: Store) -> None:
    with pytest.raises(StoreUnavailable, match="it takes no writes"):
        store.read(put, 1)
    assert store.read(versions) == []


def test_weights_are_not_compressed(store: Store) -> None:
    query = sa.text(
        "SELECT attrelid::regclass::text FROM pg_attribute WHERE attname = 'data' AND attstorage = 'e' ORDER BY 1"
    )
    assert store.read(lambda connection: connection.execute(query).scalars().all()) == [
        "adapters",
        "changes",
        "chunks",
        "moments",
    ]


# a server that goes away


def test_a_restart_while_idle_costs_nothing(store: Store, server: PostgresServer) -> None:
    store.write(put, 1)
    assert store.read(versions) == [1]
    server.restart()
    store.write(put, 2)
    assert store.read(versions) == [1, 2]


def test_a_server_that_is_down_is_an_outage_that_ends_with_it(store: Store, server: PostgresServer) -> None:
    store.write(put, 1)
    server.stop()
    for run in (lambda: store.read(versions), lambda: store.write(put, 2), lambda: store.change("demo", True, put, 2)):
        with pytest.raises(StoreUnavailable, match="it does not answer") as caught:
            run()
        assert "127.0.0.1" not in str(caught.value)
    server.start()
    store.write(put, 2)
    assert store.read(versions) == [1, 2]


def test_a_crash_inside_a_write_undoes_it_and_nothing_else(store: Store, server: PostgresServer) -> None:
    store.write(put, 1)

    def cut_off(connection: sa.Connection) -> None:
        put(connection, 2)
        server.crash()
        put(connection, 3)

    with pytest.raises(StoreUnavailable, match="it does not answer"):
        store.write(cut_off)
    server.start()
    assert store.read(versions) == [1]
    store.write(put, 2)


def test_a_commit_that_is_never_confirmed_is_an_outage(store: Store, server: PostgresServer) -> None:
    def cut_off(connection: sa.Connection) -> None:
        put(connection, 1)
        server.crash()

    with pytest.raises(StoreUnavailable):
        store.write(cut_off)
    server.start()
    assert store.read(versions) == []


def test_a_primary_that_was_demoted_is_an_outage_that_ends_when_it_takes_writes_again(
    store: Store, server: PostgresServer, database: str
) -> None:
    store.write(put, 1)
    server.stop()
    standby = server.data / "standby.signal"
    standby.touch()
    try:
        server.start()
        assert store.read(versions) == [1]
        with pytest.raises(StoreUnavailable, match="it takes no writes"):
            store.write(put, 2)
        with pytest.raises(InputError, match="give the address of the primary"):
            engine.create(database)
    finally:
        server.stop()
        standby.unlink(missing_ok=True)
        server.start()
    store.write(put, 2)
    assert store.read(versions) == [1, 2]


# what an operator is told


def refusal(
    work: Callable[[str], Store],
    url: str,
    capsys: pytest.CaptureFixture[str],
    kind: type[MedDualLoRAError] = InputError,
) -> str:
    """The message of the error; neither it nor what caused it, nor a log line, has the password."""
    with pytest.raises(kind) as caught:
        work(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in f"{error}{error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert SECRET not in str(capsys.readouterr())
    return str(caught.value)


@pytest.mark.parametrize("work", [engine.create, engine.open_store])
def test_a_database_that_cannot_be_reached_says_why_and_what_to_do(
    work: Callable[[str], Store], postgres: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    there = f"postgresql://%s:{SECRET}@127.0.0.1:%s/%s"
    postgres.execute(f"DROP ROLE IF EXISTS {PASSWORD_ROLE}")
    postgres.execute(f"CREATE ROLE {PASSWORD_ROLE} LOGIN PASSWORD 'another'")
    said = refusal(work, there % ("tests", postgres.port, "nosuch"), capsys)
    assert 'database "nosuch" does not exist' in said
    assert "createdb" in said
    said = refusal(work, there % (PASSWORD_ROLE, postgres.port, "postgres"), capsys)
    assert "password authentication failed" in said
    assert "~/.pgpass" in said
    assert f"postgresql://{PASSWORD_ROLE}:***@127.0.0.1:{postgres.port}/postgres" in said
    said = refusal(work, there % ("tests", 1, "postgres"), capsys, StoreUnavailable)
    assert "Connection refused" in said
    assert "check host and port" in said


def test_a_url_that_is_not_understood_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    for url in (f"postgresql://user:{SECRET}@host:port/db", f"postgresql://u:{SECRET}@h", f"postgresql:// :{SECRET}"):
        assert "write postgresql://user@host:5432/database" in refusal(engine.open_store, url, capsys)
    said = refusal(engine.open_store, f"postgresql://h/db?password={SECRET}", capsys)
    assert "before the @" in said


def test_an_empty_database_names_the_command_that_makes_a_store(database: str) -> None:
    with pytest.raises(InputError, match=r"no store at postgresql://.*make one with: aggregator init --store postgres"):
        engine.open_store(database)


def test_tables_of_others_are_left_alone(database: str, postgres: PostgresServer) -> None:
    name = database.rpartition("/")[2]
    postgres.execute("CREATE TABLE fruit (name text)", name)
    with pytest.raises(InputError, match="is not a store of this program"):
        engine.open_store(database)
    engine.create(database).close()  # beside them there is room
    with opened(database) as store:
        assert store.read(versions) == []


def test_tables_named_like_ours_are_in_the_way(database: str, postgres: PostgresServer) -> None:
    postgres.execute("CREATE TABLE rounds (name text)", database.rpartition("/")[2])
    with pytest.raises(InputError, match="exists already; choose an empty database"):
        engine.create(database)


def test_a_user_who_may_make_no_tables_is_told_so(database: str, postgres: PostgresServer) -> None:
    postgres.execute("DROP ROLE IF EXISTS visitor")
    postgres.execute("CREATE ROLE visitor LOGIN")
    with pytest.raises(InputError, match=r"permission denied for schema public.*make the user the owner"):
        engine.create(postgres.url(database.rpartition("/")[2], "visitor"))
    with pytest.raises(InputError, match="no store at"):
        engine.open_store(database)


def test_two_that_make_the_store_at_once_make_one(database: str) -> None:
    made: list[str] = []

    def make() -> None:
        try:
            engine.create(database, lambda connection: put(connection, 1)).close()
            made.append("made")
        except InputError as error:
            made.append(str(error))

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made)[0] == "made"
    assert [("exists already" in said) for said in sorted(made)] == [False, True, True]


WITHOUT_DRIVER = """
import sys

class NoDriver:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "psycopg":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, NoDriver())
from aggregator.store import engine
from shared.errors import InputError

try:
    engine.open_store("postgresql://user:pa55word@host/database")
except InputError as error:
    print(error)
"""


def test_a_missing_driver_names_the_extra() -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_DRIVER], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert "pip install 'med-duallora[postgres]'" in result.stdout
    assert SECRET not in result.stdout

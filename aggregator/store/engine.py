"""Opening a store and running transactions in it.

SQLite: one connection under one lock, write-ahead log, `synchronous=FULL`: a commit that returned survives a power cut.
Functions of the other modules here take a connection and values; `Store.write` makes one transaction of one of them.
"""

import fcntl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TextIO, TypeVar

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from aggregator.store import schema
from shared.errors import InputError, NewerStore

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_S = 10
SQLITE_FLOOR = (3, 38)
MIGRATIONS: dict[int, Callable[[sa.Connection], None]] = {}
"""From version n to n + 1, by n."""


class Store:
    """Runs functions of a connection as transactions. Safe to use from several threads."""

    def __init__(self, engine: sa.Engine, place: str) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self.place = place
        self._reservation: TextIO | None = None

    def read(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(connection, ...)` on one consistent state of the store."""
        return self._run(False, work, *args, **kwargs)

    def write(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(connection, ...)` and commit, or roll back if it raises. Durable when this returns."""
        return self._run(True, work, *args, **kwargs)

    def _run(
        self, immediate: bool, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self._lock, self._engine.connect() as plain:
            connection = plain.execution_options(immediate=immediate)
            with connection.begin():
                return work(connection, *args, **kwargs)

    def reserve(self) -> None:
        """Make this the one process that serves the store: SQLite cannot tell another one of changes.

        Raises InputError if there is one already. The reservation ends with the process, however it ends.
        """
        self._reservation = Path(f"{self.place}.serving").open("a", encoding="ascii")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._reservation, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"store {self.place} is served by another process already; a SQLite store has one serving process"
            ) from None

    def close(self) -> None:
        """Let go of the database."""
        if self._reservation is not None:
            self._reservation.close()
        with self._lock:
            self._engine.dispose()


def create(url: str) -> Store:
    """Make a new, empty store. Raises InputError if there is one already."""
    path = _path_of(url)
    if path.exists():
        raise InputError(
            f"store {path} exists already; choose another path, or serve it: aggregator serve --store {path}"
        )
    if not path.parent.is_dir():
        raise InputError(f"cannot make store {path}: there is no folder {path.parent}")
    store = Store(_engine(path), str(path))
    try:
        store.write(_create_tables)
    except sa.exc.DatabaseError as error:
        raise InputError(f"cannot make store {path}: {error.orig}; choose another path") from error
    return store


def open_store(url: str) -> Store:
    """Open an existing store, migrating it if it is of an older release.

    Raises InputError if it is missing or not a store, NewerStore if a newer release wrote it.
    """
    path = _path_of(url)
    if not path.is_file():
        raise InputError(f"no store at {path}; make one with: aggregator init --store {path} --help")
    store = Store(_engine(path), str(path))
    try:
        found = store.read(_version)
    except (sa.exc.SQLAlchemyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a store of this program ({_cause(error)}); check --store") from error
    if found < min(MIGRATIONS, default=schema.VERSION):
        raise InputError(f"store {path} has schema version {found}, which no release wrote; check --store")
    if found > schema.VERSION:
        raise NewerStore(
            f"store {path} has schema version {found}, this release reads up to {schema.VERSION}; "
            "upgrade med-duallora, or use the release that wrote it"
        )
    if found < schema.VERSION:
        store.write(_migrate, found)
    return store


@contextmanager
def damage_named(store: Store) -> Iterator[None]:
    """For reading rows: raises InputError naming the store where the database or a value in it cannot be read."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"store {store.place} cannot be read ({_cause(error)}): it is damaged, or its disk is; restore a copy of it"
        ) from error


def _cause(error: Exception) -> str:
    """One line: what the database said, or what was wrong with a value."""
    said = str(getattr(error, "orig", None) or error).strip() or "no reason given"
    return f"{type(error).__name__}: {said.splitlines()[0]}" if isinstance(error, KeyError) else said.splitlines()[0]


def _path_of(url: str) -> Path:
    if "://" not in url:
        return Path(url)
    scheme, _, rest = url.partition("://")
    if scheme != "sqlite" or not rest.startswith("/"):
        raise InputError(
            f"store '{url}' is not supported here; give a path, or sqlite:///path (sqlite:////absolute/path)"
        )
    return Path(rest[1:])


def _engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
    )
    sa.event.listen(engine, "connect", _prepare_connection)
    sa.event.listen(engine, "begin", _begin)
    return engine


def _prepare_connection(raw: Any, record: Any) -> None:
    del record
    raw.isolation_level = None  # the driver must not begin transactions on its own: we choose deferred or immediate
    cursor = raw.cursor()
    (version,) = cursor.execute("SELECT sqlite_version()").fetchone()
    if tuple(map(int, version.split(".")[:2])) < SQLITE_FLOOR:
        raise InputError(f"SQLite {version} is too old, 3.38 or newer is needed")
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _create_tables(connection: sa.Connection) -> None:
    schema.metadata.create_all(connection)
    connection.execute(schema.schema_version.insert().values(version=schema.VERSION))


def _version(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(schema.schema_version.c.version)).scalar_one())


def _migrate(connection: sa.Connection, found: int) -> None:
    for version in range(found, schema.VERSION):
        MIGRATIONS[version](connection)
    connection.execute(schema.schema_version.update().values(version=schema.VERSION))

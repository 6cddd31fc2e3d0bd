"""Opening a store and running transactions in it, whatever database is behind it: SQLite in a file, or PostgreSQL.

Functions of the other modules here take a connection and values; `Store.write` makes one transaction of one of them.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
import structlog

from aggregator.errors import NoStore
from aggregator.store import migrations, schema
from aggregator.store.database import Database, Heard, Watch
from aggregator.store.postgres import Postgres
from aggregator.store.sqlite import Sqlite
from shared.errors import InputError, NewerStore, StoreUnavailable

log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")

_CHANGED = (
    schema.federations.update()
    .where(schema.federations.c.name == sa.bindparam("federation"))
    .values(revision=schema.federations.c.revision + 1)
)
"""Made once: making a statement takes several times as long as running it."""


class Store:
    """Runs functions of a connection as transactions. Safe to use from several threads.

    Each of them raises StoreUnavailable while the database is away, locked, or out of disk. If its connection broke during a
    commit nobody can know whether it took place: what is written must be such that writing it again is harmless.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Job] = []
        self._waiting_lock, self._writing = threading.Lock(), threading.Lock()
        self.place = database.place
        """Where the store is, for its operator; without a password."""

    def read(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(connection, ...)` on one consistent state of the store."""
        with self._translated(), self._database.transaction(write=False) as connection:
            return work(connection, *args, **kwargs)

    def write(self, work: Callable[Concatenate[sa.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work(connection, ...)` alone and commit, or roll back if it raises. Durable when this returns.

        It may be run twice, the first time for nothing: see `_commit_waiting`.
        """
        with self._translated():
            return self._commit(lambda connection: work(connection, *args, **kwargs))

    def change(
        self,
        federation: str,
        news: bool,
        work: Callable[Concatenate[sa.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Write something that decisions hang on: the federation's revision goes up and other processes hear of it.

        `news`: the waiting sites are to hear of it at once.
        """

        def change(connection: sa.Connection) -> T:
            result = work(connection, *args, **kwargs)
            connection.execute(_CHANGED, {"federation": federation})
            self._database.announce(connection, federation, news)
            return result

        with self._translated():
            return self._commit(change)

    def _commit(self, work: Callable[[sa.Connection], T]) -> T:
        job = _Job(work)
        with self._waiting_lock:
            self._waiting.append(job)
        with self._writing:
            if not job.is_over:
                self._commit_waiting()
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def _commit_waiting(self) -> None:
        """Run all that came while the last transaction was committed in one of them, in their order: a commit waits for the
        disk, and this way they wait for it together.

        If any of it raises, nothing was done, and each is run in a transaction of its own. If the database is away, it is for
        all of them.
        """
        with self._waiting_lock:
            jobs, self._waiting = self._waiting, []
        try:
            if len(jobs) > 1 and self._commit_together(jobs):
                return
            for job in jobs:
                job.run_alone(self._database)
        finally:
            for job in jobs:
                job.end()

    def _commit_together(self, jobs: Sequence["_Job"]) -> bool:
        """Return whether it is done."""
        try:
            with self._database.transaction(write=True) as connection:
                for job in jobs:
                    job.result = job.work(connection)
        except sa.exc.SQLAlchemyError as error:
            if not self._database.unavailable(error):
                return False
            for job in jobs:
                job.error = error
        except Exception:  # each will raise its own
            return False
        for job in jobs:
            job.is_over = True
        return True

    def glance(self, federation: str) -> int | None:
        """Return a federation's revision if it can be had at once, without a transaction, on the event loop; else None."""
        return self._database.glance(federation)

    def watch(self, heard: Heard) -> Watch:
        """Call `heard(federation, news)` from a thread for changes that other processes make, until the watch is closed.

        `heard("", True)` means that anything may have changed: after every connection to the database, the first included.
        A database that is away is waited for. SQLite has one serving process and nothing to hear.
        """
        return self._database.watch(heard)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            cause = self._database.unavailable(error)
            if not cause:
                raise
            log.warning("store_unavailable", cause=cause, error=_cause(error))
            raise StoreUnavailable(
                f"the aggregator's store cannot be used now: {cause}. Nothing that was acknowledged is lost; "
                "a site tries again by itself"
            ) from error

    def reserve(self) -> None:
        """Make this the one process that serves the store if it is SQLite, which cannot tell another one of changes.

        Raises InputError if there is one already. The reservation ends with the process, however it ends.
        """
        self._database.reserve()

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()


@dataclass(eq=False)
class _Job:
    """Work that waits for its transaction, and what came of it."""

    work: Callable[[sa.Connection], Any]
    result: Any = None
    error: BaseException | None = None
    is_over: bool = False

    def run_alone(self, database: Database) -> None:
        """Run it in a transaction of its own, and keep what it raises."""
        try:
            with database.transaction(write=True) as connection:
                self.result = self.work(connection)
        except Exception as error:
            self.error = error
        self.is_over = True

    def end(self) -> None:
        """Have it over, also if the thread that ran it was stopped."""
        if not self.is_over:
            self.is_over, self.error = (
                True,
                StoreUnavailable("the transaction was stopped; a site tries again by itself"),
            )


def create(url: str, fill: Callable[[sa.Connection], None] | None = None) -> Store:
    """Make a new store and `fill` its tables, in one transaction: killed before its end, this leaves nothing in the way.

    Raises InputError if there is a store already, or no place for one.
    """
    database = _database(url)
    database.check_free()
    with _named(database, "made"), database.transaction(write=True) as connection:
        if not _is_free(connection):
            raise InputError(
                f"store {database.place} exists already; choose an empty database or another path, or serve it: "
                f"aggregator serve --store {database.place}"
            )
        migrations.create(connection)
        if fill is not None:
            fill(connection)
    return Store(database)


def open_store(url: str) -> Store:
    """Open an existing store, migrating it if it is of an older release.

    Raises InputError if it is missing or not a store, NewerStore if a newer release wrote it.
    """
    database = _database(url)
    database.check_there()
    with _named(database, "opened"):
        with database.transaction(write=False) as connection:
            found, tables = migrations.found(connection), sa.inspect(connection).get_table_names()
        _check_revision(database.place, found, bool(tables))
        if found != migrations.HEAD:
            with database.transaction(write=True) as connection:
                migrated = migrations.upgrade(connection)
            if migrated:
                log.info("store_migrated", before=found, after=migrations.HEAD)
    return Store(database)


@contextmanager
def damage_named(store: Store) -> Iterator[None]:
    """For reading rows: raises InputError naming the store where the database or a value in it cannot be read."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"store {store.place} cannot be read ({_cause(error)}): it is damaged, or its disk is; restore a copy of it"
        ) from error


@contextmanager
def _named(database: Database, step: str) -> Iterator[None]:
    """For what the operator does to a database as a whole: raises InputError with the place, the cause and the next step, or
    StoreUnavailable with the same if another try may help."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, TypeError, ValueError) as error:
        database.close()
        advice = (
            database.advice(error) if isinstance(error, sa.exc.SQLAlchemyError) else "it is damaged; restore a copy"
        )
        passes = isinstance(error, sa.exc.SQLAlchemyError) and database.passes(error)
        kind = StoreUnavailable if passes else InputError
        raise kind(f"store {database.place} cannot be {step} ({_cause(error)}): {advice}") from error
    except InputError:
        database.close()
        raise


def _check_revision(place: str, found: str | None, has_tables: bool) -> None:
    if found is None and not has_tables:
        raise NoStore(f"no store at {place}, it is empty; make one with: aggregator init --store {place} --help")
    if found is None or not migrations.is_ours(found):
        wrong = f"its schema revision is '{found[:40]}', which no release wrote" if found else "its tables are others"
        raise InputError(f"{place} is not a store of this program ({wrong}); check --store")
    if found > migrations.HEAD:
        raise NewerStore(
            f"store {place} has schema revision {found}, this release reads up to {migrations.HEAD}; "
            "upgrade med-duallora, or use the release that wrote it"
        )


def _is_free(connection: sa.Connection) -> bool:
    """Return whether no table of ours is there, or all of them are as today's release makes them, with nothing in any.

    The latter is what releases that wrote tables and federation one after the other left behind when they were killed.
    """
    found, ours = migrations.found(connection), schema.metadata.tables
    there = ours.keys() & set(sa.inspect(connection).get_table_names())
    if found is None or not there:
        return found is None and not there
    rows = (sa.select(sa.literal(1)).select_from(table).limit(1) for table in ours.values())
    return found == migrations.HEAD and there == ours.keys() and not any(map(connection.scalar, rows))


def _cause(error: Exception) -> str:
    """One line: what the database said, or what was wrong with a value."""
    said = str(getattr(error, "orig", None) or error).strip() or "no reason given"
    return f"{type(error).__name__}: {said.splitlines()[0]}" if isinstance(error, KeyError) else said.splitlines()[0]


def place_of(url: str) -> str:
    """Return where a store is, in words that may be shown: a password is hidden. Raises InputError for a URL that is none."""
    return _database(url).place


def _database(url: str) -> Database:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Sqlite(Path(url))
    if scheme == "sqlite" and rest.startswith("/"):
        return Sqlite(Path(rest[1:]))
    if scheme == "postgresql":
        return Postgres(url)
    raise InputError(
        f"store '{scheme}://...' is not supported here; give a path, sqlite:///path (sqlite:////absolute/path), "
        "or postgresql://user@host:5432/database"
    )

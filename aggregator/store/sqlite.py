"""The store in a file: a connection that writes and one that reads, write-ahead log, `synchronous=FULL`.

A commit that returned survives a power cut. A write begins with BEGIN IMMEDIATE, so it is alone among all processes. A read waits
for other reads, but for no write: it does not stand behind a commit that waits for the disk.
"""

import fcntl
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TextIO

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from aggregator.errors import NoStore
from aggregator.store import migrations, schema
from aggregator.store.database import Heard, Watch
from shared.errors import InputError

BUSY_TIMEOUT_S = 10
FLOOR = (3, 38)
PAGE_BYTES = 16 << 10
"""Of a new store; an older one keeps its own. Updates are megabytes in one row, which cost a write and a checksum a page."""
GLANCE = "SELECT revision FROM federations WHERE name = ?"
UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: "another process keeps it locked",
    sqlite3.SQLITE_LOCKED: "another process keeps it locked",
    sqlite3.SQLITE_FULL: "its disk is full",
    sqlite3.SQLITE_IOERR: "its disk fails or is full",
    sqlite3.SQLITE_CANTOPEN: "its file cannot be opened",
    sqlite3.SQLITE_READONLY: "its file cannot be written",
}
"""By primary result code: https://www.sqlite.org/rescode.html"""


class Sqlite:
    """A database that is a file on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looking: sqlite3.Connection | None = None
        self._reservation: TextIO | None = None
        self._writing, self._reading = _engine(path), _engine(path)
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()

    @property
    def place(self) -> str:
        return str(self._path)

    def check_free(self) -> None:
        if not self._path.parent.is_dir():
            raise InputError(f"cannot make store {self.place}: there is no folder {self._path.parent}")
        if self._path.exists() and not self._has_room():
            raise InputError(f"{self.place} exists already and is not a store of this program; choose another path")

    def _has_room(self) -> bool:
        """Whether the file is empty or has a store's tables and no others; what is in them is asked where they are made."""
        try:
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as raw:
                found = {name for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except sqlite3.Error:
            return False
        return found <= {*schema.metadata.tables, migrations.REVISION.name, migrations.NUMBERED.name}

    def check_there(self) -> None:
        if not self._path.is_file():
            raise NoStore(f"no store at {self.place}; make one with: aggregator init --store {self.place} --help")

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[sa.Connection]:
        lock, engine = (self._write_lock, self._writing) if write else (self._read_lock, self._reading)
        with lock, engine.connect() as connection, connection.begin():
            # Not by an event of the engine: every statement would ask for further events.
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
            yield connection

    def glance(self, federation: str) -> int | None:
        """A reader of the write-ahead log waits for nobody, and nobody for it."""
        try:
            if self._looking is None:
                where = f"{self._path.absolute().as_uri()}?mode=ro"
                self._looking = sqlite3.connect(
                    where, uri=True, timeout=0, isolation_level=None, check_same_thread=False
                )
            row = self._looking.execute(GLANCE, (federation,)).fetchone()
        except sqlite3.Error:
            return None
        return None if row is None else int(row[0])

    def unavailable(self, error: sa.exc.SQLAlchemyError) -> str:
        return UNAVAILABLE.get(_code(error), "")

    def advice(self, error: sa.exc.SQLAlchemyError) -> str:
        if _code(error) in UNAVAILABLE:
            return "check that this user may read and write it and its folder, and that its disk has space"
        return "it is not a store of this program, or it is damaged; check --store"

    def passes(self, error: sa.exc.SQLAlchemyError) -> bool:
        return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def announce(self, connection: sa.Connection, federation: str, news: bool) -> None:
        del connection, federation, news  # one process serves a file, and it knows what it writes

    def watch(self, heard: Heard) -> Watch:
        del heard
        return Silence()

    def reserve(self) -> None:
        """The reservation ends with the process, however it ends."""
        self._reservation = Path(f"{self.place}.serving").open("a", encoding="ascii")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._reservation, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"store {self.place} is served by another process already; a SQLite store has one serving process, "
                "a PostgreSQL store as many as you like"
            ) from None

    def close(self) -> None:
        if self._reservation is not None:
            self._reservation.close()
        # The last to close tidies up the write-ahead log: it must be able to write.
        if self._looking is not None:
            self._looking.close()
            self._looking = None
        with self._read_lock:
            self._reading.dispose()
        with self._write_lock:
            self._writing.dispose()


class Silence:
    """The watch of a database that no other process serves: there is nothing to hear."""

    def close(self) -> None:
        return


def _engine(path: Path) -> sa.Engine:
    """Return an engine with one connection, opened when it is used."""
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
        hide_parameters=True,
    )
    sa.event.listen(engine, "connect", _prepare)
    return engine


def _code(error: sa.exc.SQLAlchemyError) -> int:
    extended: int = getattr(getattr(error, "orig", None), "sqlite_errorcode", sqlite3.SQLITE_OK)
    return extended & 0xFF  # the primary result code


def _prepare(raw: Any, record: Any) -> None:
    del record
    raw.isolation_level = None  # the driver must not begin transactions on its own: we choose deferred or immediate
    cursor = raw.cursor()
    (version,) = cursor.execute("SELECT sqlite_version()").fetchone()
    if tuple(map(int, version.split(".")[:2])) < FLOOR:
        raise InputError(f"SQLite {version} is too old, 3.38 or newer is needed")
    cursor.execute(f"PRAGMA page_size={PAGE_BYTES}")
    _choose_log(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _choose_log(cursor: sqlite3.Cursor) -> None:
    """Switch to the write-ahead log. Where two connections switch a file at once SQLite answers busy without having waited:
    https://www.sqlite.org/c3ref/busy_handler.html."""
    give_up = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.02)
        else:
            return

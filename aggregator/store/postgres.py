"""The store in PostgreSQL: any number of serving processes, each with its own connections.

**A write is alone**, as in a file: it first takes one advisory lock, which its end releases. The rows' code can then read,
decide and write without thinking of others, and one suite of tests proves it for both databases. SERIALIZABLE would allow more
at a time, but fails transactions at random to do so, and each caller would have to run its work again. Rounds are decided
hundreds of times an hour, not thousands of times a second: waiting is cheaper. The lock goes with READ COMMITTED, where every
statement sees what was committed before it began: a snapshot taken with the lock statement, as in REPEATABLE READ, would be
older than the lock and miss what the previous holder wrote. Reads are REPEATABLE READ, one state throughout, and lock nothing.

A process that dies or is cut off keeps neither the lock nor the others waiting: see `LIMITS`.
Not for a pooler in transaction mode (PgBouncer): settings and LISTEN belong to a session.
"""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
import structlog

from aggregator.store.database import Heard, Watch
from shared.errors import InputError

log = structlog.get_logger()

WRITE_LOCK = sa.text("SELECT pg_advisory_xact_lock(7235411906172533)")
"""The number means nothing; it only has to be the same in every release."""
CHANNEL = "med_duallora"
LOCK_WAIT_S = 25
LIMITS = {
    "idle_in_transaction_session_timeout": "15s",  # a process that stopped in mid-transaction
    "lock_timeout": f"{LOCK_WAIT_S}s",  # longer than any holder may be silent, so that waiting usually succeeds
    "statement_timeout": "60s",
    "tcp_keepalives_idle": "10",  # a process that was cut off; these are the server's side
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""Session settings; `?options=-c lock_timeout=5s` in the URL changes one."""
DURABLE = "-c synchronous_commit=on"
CLIENT = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # ms
    "application_name": "med-duallora",
}
"""Parameters of libpq, unless the URL has them: how long this side waits for a server that is gone."""
READERS, MORE_READERS = 8, 24
"""Connections kept, and opened beyond those in a rush: together the most threads that asyncio.to_thread uses."""

UNAVAILABLE = {
    "08": "it does not answer",
    "0A000": "it takes no writes, as a standby",  # what BEGIN says there; nothing else we ask for is ever refused as this
    "25006": "it takes no writes",
    "25P03": "it does not answer",  # it ended a transaction that stood still
    "40001": "another process was in its way",
    "40P01": "another process was in its way",
    "53": "it has no memory, disk or connection left",
    "53100": "its disk is full",
    "53300": "it has too many connections",
    "55P03": "another process keeps it locked",
    "57014": "it took too long",
    "57P": "it does not answer",
    "58": "its disk fails",
}
"""By SQLSTATE or the beginning of it: https://www.postgresql.org/docs/15/errcodes-appendix.html

The driver's class of an error says less: it makes of some of these a mistake of the caller.
"""
ADVICE = {
    "does not exist": "make the user and the database first: createuser NAME; createdb --owner NAME DATABASE",
    "password": "check the user and the password, in the URL or in ~/.pgpass",
    "no pg_hba.conf entry": "allow this machine and user in the server's pg_hba.conf",
    "permission denied": "make the user the owner of its database: ALTER DATABASE ... OWNER TO ...",
    "during recovery": "this server is a standby; give the address of the primary",
}
"""What to do, by what the server says; it says no more than this text when it refuses a connection."""


class Postgres:
    """A database of a PostgreSQL server."""

    def __init__(self, url: str) -> None:
        self._url = _parsed(url)
        self._id = uuid.uuid4().hex
        self._extra = _parameters(self._url)
        # one connection for writes: this process's writers wait here and keep neither the server's connections nor its lock
        self._writing = self._engine("READ COMMITTED", pool_size=1, max_overflow=0)
        self._reading = self._engine("REPEATABLE READ", pool_size=READERS, max_overflow=MORE_READERS)

    def _engine(self, isolation: str, **pool: int) -> sa.Engine:
        try:
            engine = sa.create_engine(
                self._url,
                connect_args=self._extra,
                pool_pre_ping=True,  # a server that was restarted meanwhile costs nobody a failure
                pool_timeout=LOCK_WAIT_S,
                hide_parameters=True,
                **pool,
            )
        except ImportError as error:
            raise InputError(
                f"a PostgreSQL store needs the driver psycopg ({error}); install it: pip install 'med-duallora[postgres]'"
            ) from error
        return engine.execution_options(isolation_level=isolation)

    @property
    def place(self) -> str:
        shown = {key: value for key, value in self._url.query.items() if key in ("host", "port")}
        return self._url.set(drivername="postgresql", query=shown).render_as_string(hide_password=True)

    def check_free(self) -> None:
        return  # the database must be there; whether it holds tables is asked in the transaction that makes them

    def check_there(self) -> None:
        return

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[sa.Connection]:
        with (self._writing if write else self._reading).connect() as plain:
            connection = plain.execution_options(postgresql_readonly=not write)
            with connection.begin():
                if write:
                    connection.execute(WRITE_LOCK)
                yield connection

    def glance(self, federation: str) -> int | None:
        del federation
        return None  # a round trip, and maybe a wait for a connection

    def unavailable(self, error: sa.exc.SQLAlchemyError) -> str:
        if isinstance(error, sa.exc.TimeoutError):  # of the pool
            return "too many calls wait for it"
        state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
        for known in (state, state[:3], state[:2]):
            if known in UNAVAILABLE:
                return UNAVAILABLE[known]
        passing = isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
        return "it does not answer" if passing or getattr(error, "connection_invalidated", False) else ""

    def advice(self, error: sa.exc.SQLAlchemyError) -> str:
        if advice := _refusal(error):
            return advice
        if self.unavailable(error):
            return "check host and port, and that PostgreSQL is running there"
        return "it is not a store of this program, or it is damaged; check --store"

    def passes(self, error: sa.exc.SQLAlchemyError) -> bool:
        return not _refusal(error) and bool(self.unavailable(error))

    def announce(self, connection: sa.Connection, federation: str, news: bool) -> None:
        """PostgreSQL delivers it after the commit, and not at all if there is none."""
        said = f"{self._id} {news:d} {federation}"
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, said)))

    def watch(self, heard: Heard) -> Watch:
        """`heard("", True)` is called after every connection: anything may have changed while nobody listened.

        And after a notice that no replica of this release sent: nobody knows what it means.
        """
        _, parameters = self._reading.dialect.create_connect_args(self._url)
        return Listening({**parameters, **self._extra}, self._id, heard)

    def reserve(self) -> None:
        return  # any number of processes may serve it

    def close(self) -> None:
        self._writing.dispose()
        self._reading.dispose()


class Listening:
    """A thread with a connection of its own that hears of other processes' changes, and connects again for ever.

    Whatever fails: a thread that ended would be missed by nobody, and every site would hear of the others' changes late.
    """

    POLL_S = 0.5
    CONNECT_S = 2  # the least that libpq takes; closing waits for no longer
    FIRST_WAIT_S, MAX_WAIT_S = 0.1, 5.0

    def __init__(self, parameters: dict[str, Any], own: str, heard: Heard) -> None:
        self._parameters = {**parameters, "connect_timeout": self.CONNECT_S, "autocommit": True}
        self._own, self._heard = own, heard
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join(self.CONNECT_S)

    def _run(self) -> None:
        import psycopg

        wait_s = self.FIRST_WAIT_S
        while not self._closed.is_set():
            try:
                with psycopg.connect(**self._parameters) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._tell("", True)
                    wait_s = self.FIRST_WAIT_S
                    self._listen(connection)
            except Exception as error:
                expected = isinstance(error, psycopg.Error)
                said = str(error).partition("\n")[0]
                log.warning("store_watch_lost", error=said, retry_s=wait_s, exc_info=not expected)
                self._closed.wait(wait_s)
                wait_s = min(2 * wait_s, self.MAX_WAIT_S)

    def _listen(self, connection: Any) -> None:
        while not self._closed.is_set():
            for note in connection.notifies(timeout=self.POLL_S):
                who, _, said = note.payload.partition(" ")
                news, separator, federation = said.partition(" ")
                if not separator or news not in ("0", "1"):
                    self._tell("", True)
                elif who != self._own:
                    self._tell(federation, news == "1")

    def _tell(self, federation: str, news: bool) -> None:
        if not self._closed.is_set():
            self._heard(federation, news)


def _refusal(error: sa.exc.SQLAlchemyError) -> str:
    """Return what to do about a server that answers and refuses; empty if it says nothing that we know."""
    said = str(getattr(error, "orig", error))
    return next((advice for text, advice in ADVICE.items() if text in said), "")


def _parsed(url: str) -> sa.URL:
    """Return the URL; errors do not repeat it, for it may hold a password."""
    try:
        parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
    except (sa.exc.ArgumentError, ValueError):
        raise InputError(
            "the URL of the PostgreSQL store is not understood; write postgresql://user@host:5432/database"
        ) from None
    if not parsed.database:
        raise InputError(
            "the URL of the PostgreSQL store names no database; write postgresql://user@host:5432/database"
        )
    if "password" in parsed.query:
        raise InputError("give a password before the @, postgresql://user:password@host/database, or in ~/.pgpass")
    return parsed


def _parameters(url: sa.URL) -> dict[str, Any]:
    own = url.query.get("options", "")
    settings = [f"-c {name}={value}" for name, value in LIMITS.items()]
    settings += [own] if isinstance(own, str) else own
    parameters: dict[str, Any] = {key: value for key, value in CLIENT.items() if key not in url.query}
    parameters["options"] = " ".join([*settings, DURABLE])
    return parameters

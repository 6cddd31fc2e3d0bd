"""A real PostgreSQL server of the tests' own: an unprivileged user's, in a temporary folder, on a random port of 127.0.0.1.

One per pytest process, so each xdist worker has its own and a test may stop it. It ends with the process that started it, even
one that is killed. It runs with fsync=off: its crashes are crashes of processes, which the kernel's cache survives; what a power
cut leaves is not tested with it. Databases are made for English (ICU), as a hospital's are for its language, so that code that
counts on the order of names is found out.
"""

import atexit
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

USER = "tests"
START_S, STOP_S = 60.0, 20.0
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "log_min_messages": "warning",
}
PASSWORD_ROLE = "guarded"
ACCESS = f"""
host all {PASSWORD_ROLE} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
local all all trust
"""
"""One role that needs a password, if a test makes it; everybody else is let in."""


class PostgresServer:
    """A server that can be stopped, crashed and started again; what was committed stays."""

    def __init__(self) -> None:
        self._binaries = _binaries()
        self._as_owner = _drop_privileges()
        self.folder = Path(tempfile.mkdtemp(prefix="med-pg-"))  # a short path: a socket's has at most 107 bytes
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        if os.geteuid() == 0:
            shutil.chown(self.folder, _owner().pw_uid, _owner().pw_gid)
        self._run(
            self._binaries / "initdb", "-D", self.data, "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8",
            "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US",
        )  # fmt: skip
        (self.data / "pg_hba.conf").write_text(ACCESS)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start it on the port it had before and return when it answers.

        Call it from the main thread: the kernel stops the server when the thread that started it ends.
        """
        for _ in range(5):  # somebody else may take the free port first
            self.port = self.port or _free_port()
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(self._command(), stdout=log, stderr=log, cwd=self.folder)
            if self._answers():
                return
            self.port = 0
        pytest.fail(f"PostgreSQL does not start: {(self.folder / 'log').read_text()[-2000:]}")

    def _command(self) -> list[str]:
        settings = {**SETTINGS, "unix_socket_directories": self.folder, "port": self.port}
        given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        postgres = [self._binaries / "postgres", "-D", self.data, "-h", "127.0.0.1", *given]
        return [*self._as_owner, "--pdeathsig", "QUIT", *map(str, postgres)]

    def _answers(self) -> bool:
        end = time.monotonic() + START_S
        while self._process is not None and self._process.poll() is None and time.monotonic() < end:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=2).close()
                return True
            except psycopg.OperationalError:
                time.sleep(0.05)
        return False

    def stop(self) -> None:
        """Stop it as an operator does: connections are cut off, what is open is rolled back."""
        self._end("INT")

    def crash(self) -> None:
        """Stop it at once, as if killed; the next start recovers."""
        self._end("QUIT")

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    @property
    def running(self) -> bool:
        return self._process is not None

    def _end(self, signal: str) -> None:
        if self._process is None:
            return
        subprocess.run(["kill", f"-{signal}", str(self._process.pid)], check=False)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def close(self) -> None:
        """Stop it and remove everything."""
        self.crash()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    def url(self, database: str, user: str = USER) -> str:
        """The URL of a database, by TCP."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def socket_url(self, database: str) -> str:
        """The URL of a database, by the socket in the server's folder."""
        return f"postgresql://{USER}@/{database}?host={self.folder}&port={self.port}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the superuser outside any transaction; return the rows if it has any."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def fresh_database(self) -> str:
        """Return the URL of a new empty database. It stays until the server goes: 8 MB each; see `database`."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Yield the URL of a new empty database and remove it afterwards, whoever is still connected."""
        url = self.fresh_database()
        try:
            yield url
        finally:
            if self.running:
                self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def _run(self, *command: object) -> None:
        result = subprocess.run(
            [*self._as_owner, *map(str, command)], cwd=self.folder, capture_output=True, text=True, check=False
        )
        if result.returncode:
            pytest.fail(f"{command[0]} failed: {result.stderr[-2000:]}")


def _binaries() -> Path:
    """The folder of the newest installed server; Debian keeps it off the PATH."""
    found = shutil.which("postgres")
    if found is not None and shutil.which("initdb") is not None:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4]))
    if not versions:
        pytest.fail(
            "the tests start a real PostgreSQL 15 or newer, and there is none; install it: apt install postgresql"
        )
    return versions[-1].parent


def _owner() -> pwd.struct_passwd:
    """Whom the server runs as under root, which it refuses."""
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _drop_privileges() -> list[str]:
    """The beginning of a command line (`setpriv` is part of every Debian)."""
    if os.geteuid() != 0:
        return ["setpriv"]
    return ["setpriv", f"--reuid={_owner().pw_uid}", f"--regid={_owner().pw_gid}", "--clear-groups"]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])

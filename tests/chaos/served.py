"""`aggregator serve` as a process of its own, and what can be read about it from outside: memory and the store's size."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from aggregator import setup
from aggregator.store import engine, federations
from aggregator.store import rounds as round_rows
from shared.tls import TlsFiles
from tests.chaos import simulated_site

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "GRPC_VERBOSITY": "NONE"}
STOP_S = 30.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a process in bytes, from /proc. `peak`: the largest `resident` since `forget_peak`."""

    resident: int
    proportional: int
    """Resident, shared pages divided among those who share them."""
    anonymous: int
    """What the process itself wrote: no files, no libraries."""
    peak: int


def memory_of(pid: int) -> Memory:
    """Read a process's memory."""
    rollup = _kilobytes(Path(f"/proc/{pid}/smaps_rollup"))
    status = _kilobytes(Path(f"/proc/{pid}/status"))
    return Memory(status["VmRSS"], rollup["Pss"], rollup["Anonymous"], status["VmHWM"])


def forget_peak(pid: int) -> None:
    """Let the peak begin anew. Source: proc(5), /proc/pid/clear_refs, value 5."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _kilobytes(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): 1024 * int(row[1]) for row in rows if len(row) == 3 and row[2] == "kB"}


@dataclass(frozen=True)
class Served:
    """A serving process."""

    pid: int
    address: str
    store: str

    def memory(self) -> Memory:
        """Read its memory now."""
        return memory_of(self.pid)

    def processor_s(self) -> float:
        """Seconds of processor time it has used. Source: proc(5), fields utime and stime of /proc/pid/stat."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_store(url: str, folder: Path, sites: dict[str, int | None], scalars: int, rounds: int) -> None:
    """Make a federation of simulated sites, quorum = all, in a new store at `url`; its adapter's file goes to `folder`."""
    adapter = folder / "v0.safetensors"
    simulated_site.make_adapter(scalars).write(adapter)
    plan = setup.FederationPlan(name="crowd", adapter=adapter, sites=sites, rounds=rounds, quorum=len(sites))
    setup.create(url, plan, time.time())


@contextmanager
def serve(store: str, log: Path, tls: TlsFiles | None = None, *options: str) -> Iterator[Served]:
    """Run `aggregator serve` on a free port of 127.0.0.1 until the block ends; fails unless it then ends with status 0."""
    command = [str(Path(sys.executable).with_name("aggregator")), "serve", "--store", store, "--listen", "127.0.0.1:0"]
    command += ["--log", str(log), *options]
    if tls is None:
        command += ["--plain"]
    else:
        command += ["--tls-ca", str(tls.ca), "--tls-cert", str(tls.certificate), "--tls-key", str(tls.key)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "listening on " not in line:
                raise RuntimeError(f"the aggregator did not start: {process.wait(STOP_S)}")
            yield Served(process.pid, line.split("listening on ")[1].split()[0], store)
        finally:
            process.terminate()
            code = process.wait(STOP_S)
    if code != 0:
        raise RuntimeError(f"the aggregator ended with status {code}; see {log}")


def database_bytes(store: str) -> int:
    """Return what a store takes: its files, write-ahead log included, or what the database server says."""
    if "://" not in store:
        return sum(path.stat().st_size for path in Path(store).parent.glob(Path(store).name + "*"))
    engine = sa.create_engine(store.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        with engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
    finally:
        engine.dispose()


def closed_rounds(store: str) -> int:
    """Return how many rounds of the store's federation are closed."""
    opened = engine.open_store(store)
    try:
        records = opened.read(round_rows.records, opened.read(federations.only_name))
        return sum(record.state.phase == "closed" for record in records)
    finally:
        opened.close()

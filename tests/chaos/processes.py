"""Starting aggregators and agents in milliseconds, as real processes with files of their own, and hearing how they end."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.chaos.points import Fault

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "GRPC_VERBOSITY": "NONE",
    "MED_DUALLORA_TRACEBACK": "1",
}
START_LIMIT_S = 120.0
ANSWER_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One process that may be started again and again. `state` is an agent's folder, empty for an aggregator."""

    name: str
    role: str
    program: str
    arguments: tuple[str, ...]
    logs: Path
    points: Path
    faults: tuple[Fault, ...] = ()
    state: str = ""
    chunk_bytes: int = 0

    @property
    def out(self) -> Path:
        """Standard output of all its lives."""
        return self.logs / f"{self.name}.out"

    @property
    def err(self) -> Path:
        """Standard error of all its lives."""
        return self.logs / f"{self.name}.err"


@dataclass
class Child:
    """A started process. `ended` becomes its exit code, or minus the signal that ended it."""

    pid: int
    ended: "Future[int]" = field(default_factory=Future)

    async def end(self) -> int:
        """Wait for its end and return how it ended. Who gives up waiting leaves it to others to wait on."""
        return await asyncio.shield(asyncio.wrap_future(self.ended))


class ForkServer:
    """The process that forks; orders go to it from any thread and any event loop."""

    def __init__(self, popen: "subprocess.Popen[bytes]", has_disks: bool) -> None:
        self._popen, self.has_disks = popen, has_disks
        self._lock = threading.Lock()
        self._answers: dict[int, Future[Any]] = {}
        self._children: dict[int, Child] = {}
        """Those that live; the reading thread alone touches it."""
        self._number = 0
        self._ready: Future[Any] = Future()
        self._reader = threading.Thread(target=self._read, name="fork-server", daemon=True)
        self._reader.start()

    def start(self, program: Program) -> Child:
        """Start a process."""
        child: Child = self._order(
            "start",
            program=program.program,
            arguments=list(program.arguments),
            role=program.role,
            out=str(program.logs / program.name),
            points=str(program.points),
            faults=[asdict(fault) for fault in program.faults],
            state=program.state,
            chunk_bytes=program.chunk_bytes,
        )
        return child

    def signal(self, child: Child, number: signal.Signals) -> None:
        """Send a signal to a process that has not ended."""
        if not child.ended.done():
            self._order("signal", pid=child.pid, signal=int(number))

    def mount(self, at: Path, size: int) -> None:
        """Put an empty disk of `size` bytes there, which only the children see."""
        self._order("mount", at=str(at), size=size)

    def empty(self, at: Path) -> bool:
        """Make room on a disk that was filled. Returns whether it had been."""
        return bool(self._order("empty", at=str(at)))

    def unmount(self, at: Path) -> None:
        """Take the disk away and leave its files in its place."""
        self._order("unmount", at=str(at))

    def wait_ready(self) -> None:
        """Return once it has loaded everything. Raises RuntimeError if it cannot."""
        self._ready.result(START_LIMIT_S)

    def close(self) -> None:
        """End it, and with it every process it started."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()
        self._popen.wait(ANSWER_LIMIT_S)
        self._reader.join()

    def _order(self, verb: str, **told: Any) -> Any:
        answer: Future[Any] = Future()
        assert self._popen.stdin is not None
        with self._lock:
            self._number += 1
            self._answers[self._number] = answer
            line = json.dumps({"number": self._number, "verb": verb, **told}).encode() + b"\n"
            self._popen.stdin.write(line)
            self._popen.stdin.flush()
        return answer.result(ANSWER_LIMIT_S)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            said = json.loads(line)
            if "ready" in said:
                self._ready.set_result(True)
            elif "started" in said:
                self._children[said["started"]] = Child(said["started"])
                self._answers.pop(said["number"]).set_result(self._children[said["started"]])
            elif "ended" in said:
                self._children.pop(said["ended"]).ended.set_result(said["code"])
            elif "error" in said:
                self._answers.pop(said["number"]).set_exception(RuntimeError(said["error"]))
            else:
                self._answers.pop(said["number"]).set_result(said["result"])
        gone = RuntimeError("the process that starts the others has ended; see what it wrote on standard error")
        for waiting in (self._ready, *self._answers.values()):
            if not waiting.done():
                waiting.set_exception(gone)


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    """Run a fork server as long as the block lasts."""
    wrapper = disk_wrapper()
    command = [*(wrapper or ()), sys.executable, "-m", "tests.chaos.fork_server"]
    popen = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    server = ForkServer(popen, wrapper is not None)
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@cache
def disk_wrapper() -> Sequence[str] | None:
    """Return the command in front of one that may mount disks of its own; None where the system lets nobody."""
    for wrapper in (["unshare", "--mount", "--propagation", "private"], ["unshare", "-Urm"]):
        probe = [*wrapper, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
        with contextlib.suppress(OSError):
            if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
                return wrapper
    return None

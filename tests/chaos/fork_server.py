"""A process that has loaded everything an aggregator or an agent needs and then only forks: `python -m tests.chaos.fork_server`.

Loading torch and scikit-learn takes seconds, a fork takes milliseconds. It reads orders from standard input, one JSON object a
line, and writes what happened to standard output. It has one thread and never makes a gRPC object, so a fork of it is whole.
A child goes on as the main program: it runs the real command line to its natural end.

Started in a mount namespace of its own it can also give a child a small disk that nobody else sees.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tests.chaos import doors
from tests.chaos.points import BALLAST, Fault, Points

PRELOADED = (
    "torch",
    "torch._dynamo",  # an optimiser loads it
    "sklearn.metrics",
    "pydantic",
    "grpc.aio",
    "psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "sqlalchemy.dialects.postgresql.psycopg",
    "aggregator.cli",
    "aggregator.server",
    "aggregator.closing",
    "site_agent.cli",
    "site_agent.agent",
    "site_agent.view",
    "site_agent.training.arms",
    "shared.logs",
)
PR_SET_PDEATHSIG = 1
IN, OUT = 0, 1


@dataclass
class Order:
    """What a child is to be."""

    program: str
    arguments: list[str]
    role: str
    out: str
    points: str
    faults: list[dict[str, Any]]
    state: str = ""
    """The folder whose files are watched; empty for an aggregator."""
    chunk_bytes: int = 0


@dataclass
class Server:
    """The loop: orders in, events out."""

    alive: set[int] = field(default_factory=set)
    rest: bytes = b""

    def run(self) -> Order | None:
        """Serve until standard input ends; in a child, return what it is to be."""
        waked, wake = os.pipe()
        for end in (waked, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._say(ready=True)
        while True:
            ready, _, _ = select.select([IN, waked], [], [])
            if waked in ready:
                os.read(waked, 4096)
                self._reap()
            if IN in ready:
                data = os.read(IN, 1 << 16)
                if not data:
                    return None
                *lines, self.rest = (self.rest + data).split(b"\n")
                for line in lines:
                    order = self._obey(json.loads(line))
                    if order is not None:
                        signal.set_wakeup_fd(-1)
                        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                        os.close(waked)
                        os.close(wake)
                        return order

    def _obey(self, told: dict[str, Any]) -> Order | None:
        number, verb = told.pop("number"), told.pop("verb")
        try:
            if verb == "start":
                order = Order(**told)
                pid = os.fork()
                if pid == 0:
                    return order
                self.alive.add(pid)
                self._say(number=number, started=pid)
            elif verb == "signal":
                if told["pid"] in self.alive:
                    os.kill(told["pid"], told["signal"])
                self._say(number=number, result=None)
            else:
                self._say(number=number, result=DISKS[verb](**told))
        except OSError as error:
            self._say(number=number, error=f"{verb}: {error}")
        return None

    def _reap(self) -> None:
        while self.alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self.alive.discard(pid)
            self._say(ended=pid, code=os.waitstatus_to_exitcode(status))

    def _say(self, **facts: Any) -> None:
        os.write(OUT, json.dumps(facts).encode() + b"\n")


# --- disks ----------------------------------------------------------------------------------------------------------


def _mount(at: str, size: int) -> None:
    """Put a disk of `size` bytes in a folder's place, with the folder's files on it."""
    covered = Path(f"{at}.covered")
    Path(at).mkdir(exist_ok=True)
    shutil.copytree(at, covered)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", at.encode(), b"tmpfs", 0, f"size={size},mode=0700".encode()):
        raise OSError(ctypes.get_errno(), f"cannot mount a small disk at {at}")
    shutil.copytree(covered, at, dirs_exist_ok=True)
    shutil.rmtree(covered)


def _empty(at: str) -> bool:
    """Make room on a disk that was filled. Returns whether it had been."""
    was_full = (Path(at) / BALLAST).exists()
    (Path(at) / BALLAST).unlink(missing_ok=True)
    return was_full


def _unmount(at: str) -> None:
    """Take a disk away and leave what was on it in its place, for everybody to see."""
    _empty(at)
    kept = Path(f"{at}.kept")
    shutil.copytree(at, kept)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(at.encode(), 2):  # MNT_DETACH
        raise OSError(ctypes.get_errno(), f"cannot take the disk at {at} away")
    shutil.rmtree(at)
    kept.rename(at)


DISKS: dict[str, Callable[..., Any]] = {"mount": _mount, "empty": _empty, "unmount": _unmount}


# --- child ----------------------------------------------------------------------------------------------------------


def be(order: Order) -> NoReturn:
    """Become the program: its own standard streams, its doors watched, ended with whoever started it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, IN)
    for number, suffix in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{order.out}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.close(null)
    points = Points(Path(order.points), order.role, [Fault(**fault) for fault in order.faults])
    if order.chunk_bytes:
        doors.send_in_pieces(order.chunk_bytes)
    if order.state:
        doors.watch_files(points, Path(order.state))
        doors.watch_calls(points)
        doors.watch_steps(points)
    else:
        doors.watch_store(points)
    sys.argv = [order.program, *order.arguments]
    main = importlib.import_module(f"{order.program.replace('-', '_')}.cli").main
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    _end(code if isinstance(code, int) else int(code is not None))


def _end(code: int) -> NoReturn:
    """End as an interpreter does, without taking apart what was inherited: that costs a second of processor time a process."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def preload() -> None:
    """Load what children need. Raises ImportError, and RuntimeError if something has begun a thread."""
    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(
            f"{threads} threads run in the process that is to be forked; only one would live on in a child"
        )
    gc.freeze()  # what is shared stays shared


if __name__ == "__main__":
    preload()
    wanted = Server().run()
    if wanted is not None:
        be(wanted)

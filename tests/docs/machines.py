"""The machines that the pages speak of: folders in which their commands run, in network namespaces of their own where they can be.

As root a machine is a namespace in which `fed.example.org` is another one, so that commands run as they stand on the page. Without
root all machines are this one, and addresses are written anew.
"""

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import parents
from tests.docs.pages import ROOT

PROGRAMS = Path(sys.executable).parent
"""Where `aggregator` and `site-agent` are installed."""
HOST = "fed.example.org"
PRELOADED = (
    "torch",
    "torch._dynamo",
    "sklearn.metrics",
    "nibabel",
    "einops",
    "grpc.aio",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "aggregator.cli",
    "aggregator.server",
    "aggregator.closing",
    "site_agent.cli",
    "site_agent.agent",
    "site_agent.view",
    "site_agent.training.arms",
    "tests.docs.machines",
)
"""What takes seconds to load: once for all commands that run in a fork."""
CLONE_NEWNS, CLONE_NEWNET = 0x0002_0000, 0x4000_0000
MS_BIND, MS_PRIVATE_RECURSIVE = 0x1000, 0x4_4000
COLUMNS = "200"
_NUMBERS = itertools.count()


@dataclass(frozen=True, eq=False)
class Machine:
    """Where a command runs. `namespace`: of the network, if it has one; `address`: what stands for HOST:443 there."""

    folder: Path
    namespace: str = ""
    hosts: Path | None = None
    instead: Mapping[str, str] = field(default_factory=dict)

    def written(self, text: str) -> str:
        """Return a command as it runs here."""
        for page, here in self.instead.items():
            text = text.replace(page, here)
        return text

    def at(self, folder: Path) -> "Machine":
        """Return the same machine, in another folder."""
        return Machine(folder, self.namespace, self.hosts, self.instead)


@dataclass
class Running:
    """A command that was started."""

    text: str
    process: Any
    """subprocess.Popen or a multiprocessing process."""
    log: Path
    events: Path | None = None
    """The log that it writes itself, if it has one."""

    @property
    def said(self) -> str:
        files = [path for path in (self.log, self.events) if path is not None and path.exists()]
        return "".join(path.read_text(errors="replace") for path in files)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return (
            self.process.poll() is None if isinstance(self.process, subprocess.Popen) else bool(self.process.is_alive())
        )

    def ended(self, timeout_s: float = 120.0) -> int:
        """Return its exit status when it has ended."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.wait(timeout_s)
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"{self.text} still ran after {timeout_s} s:\n{self.said}")
        return int(self.process.exitcode)

    def stop(self, timeout_s: float = 60.0) -> int:
        """Ask it to leave, as a service manager would; return its exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGTERM)
        return self.ended(timeout_s)

    def wait_for(self, text: str, timeout_s: float = 120.0) -> None:
        """Return when it has said this; raise AssertionError if it ends before, or too late."""
        end = time.monotonic() + timeout_s
        while text not in self.said:
            assert self.alive, f"{self.text} ended before it said '{text}':\n{self.said}"
            assert time.monotonic() < end, f"{self.text} did not say '{text}':\n{self.said}"
            time.sleep(0.05)


# --- as a person would: through a shell, with the installed programs ----------------------------------------------------


def start(machine: Machine, text: str) -> Running:
    """Start a command in a shell on a machine."""
    inside: list[str] = []
    if machine.namespace:
        hosts = 'mount --bind "$0" /etc/hosts && exec "$@"'
        inside = ["ip", "netns", "exec", machine.namespace, "unshare", "-m", "sh", "-c", hosts, str(machine.hosts)]
    log = _log(machine.folder)
    with log.open("wb") as out:
        process = subprocess.Popen(
            parents.ending_with(os.getpid(), [*inside, "bash", "-c", f"exec {machine.written(text)}"]),
            cwd=machine.folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return Running(text, process, log)


# --- the same in a fork of a process that has loaded everything -----------------------------------------------------------


def fork(machine: Machine, words: Sequence[str], out: Path | None = None) -> Running:
    """Start a program of ours in a fork: the same main, without the seconds that loading its libraries takes."""
    log = _log(machine.folder)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_be, args=(list(words), machine, log, out), name=" ".join(words[:2]))
    process.start()
    return Running(" ".join(words), process, log)


def _be(words: list[str], machine: Machine, log: Path, out: Path | None) -> None:
    """Become the program: main of `aggregator`, `site-agent`, or of a module. It ends with the process it was forked from."""
    ctypes.CDLL(None).prctl(parents.SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    os.environ |= _environment()
    _enter(machine)
    os.chdir(machine.folder)
    sys.stdout.flush()
    for number, path in ((1, out or log), (2, log)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = words
    if words[0] in ("aggregator", "site-agent"):
        from importlib import import_module

        import_module(f"{words[0].replace('-', '_')}.cli").main()
        return
    import runpy

    sys.path.insert(0, str(ROOT))
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def _enter(machine: Machine) -> None:
    """Go into the machine's network, with its own names of hosts."""
    if not machine.namespace:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", machine.namespace).open() as network:
        _check(libc.setns(network.fileno(), CLONE_NEWNET))
    _check(libc.unshare(CLONE_NEWNS))
    _check(libc.mount(b"none", b"/", None, MS_PRIVATE_RECURSIVE, None))
    _check(libc.mount(str(machine.hosts).encode(), b"/etc/hosts", None, MS_BIND, None))


def _check(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _environment() -> dict[str, str]:
    hidden = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
    own = {name: value for name, value in os.environ.items() if name.lower() not in hidden}
    path = f"{PROGRAMS}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return {**own, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": COLUMNS, "PYTHONUNBUFFERED": "1"}


def _log(folder: Path) -> Path:
    """Return a new file beside a machine's folder for what a command says."""
    logs = folder.parent / f"{folder.name}.said"
    logs.mkdir(exist_ok=True)
    return logs / f"{next(_NUMBERS):03}.txt"


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])

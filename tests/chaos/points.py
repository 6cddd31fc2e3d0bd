"""Named points that a process passes on its way, counted on disk, and what is to happen at one of them.

A role (an aggregator, however many replicas of it there are, or one site's agent) counts in files that outlive its processes:
so the third passing is the third of the federation's life, and a fault happens once however often its process is restarted.
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn

FIRED = "fired.jsonl"
BALLAST = "ballast"
STEP = "optimiser step"
"""The point after every step of a round's training."""
Action = Literal["kill", "fill"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens when a role passes a point for the `nth` time: its process gets SIGKILL, or its disk is full."""

    role: str
    point: str
    nth: int
    action: Action = "kill"
    disk: str = ""
    """The folder to fill up; a small file system of its own."""

    @property
    def plain(self) -> "Fault":
        """The fault wherever its disk is."""
        return replace(self, disk="")

    def __str__(self) -> str:
        what = "SIGKILL" if self.action == "kill" else "its disk is full"
        return f"{self.role}: {what} at '{self.point}', passed for the {self.nth}. time"


class Points:
    """Counts what one process passes, together with every other process of its role."""

    def __init__(self, folder: Path, role: str, faults: Sequence[Fault]) -> None:
        self._folder, self._role = folder, role
        self._faults = {(fault.point, fault.nth): fault for fault in faults if fault.role == role}
        self._counts = folder / role
        self._counts.mkdir(parents=True, exist_ok=True)

    def passed(self, point: str) -> None:
        """Count one passing of `point`; if a fault waits for it, it happens here and now."""
        descriptor = os.open(self._counts / _file_name(point), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, b".")
            nth = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        fault = self._faults.get((point, nth))
        if fault is None:
            return
        _append(self._folder / FIRED, {**asdict(fault), "at": time.time()})
        if fault.action == "fill":
            fill(Path(fault.disk))
        else:
            _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable: nothing runs after SIGKILL")


def fill(disk: Path) -> None:
    """Write a file until the file system has no byte left."""
    with contextlib.suppress(FileExistsError), (disk / BALLAST).open("xb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            block = bytes(size)
            try:
                while file.write(block):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def counted(folder: Path) -> dict[str, dict[str, int]]:
    """Return how often every point was passed, by role."""
    return {
        role.name: {_point(path.name): path.stat().st_size for path in sorted(role.iterdir())}
        for role in sorted(folder.iterdir())
        if role.is_dir()
    }


def fired(folder: Path) -> list[Fault]:
    """Return the faults that have happened, in their order."""
    return [fault for fault, _ in fired_at(folder)]


def fired_at(folder: Path) -> list[tuple[Fault, float]]:
    """Return the faults that have happened, in their order, each with when it did, in seconds since 1970."""
    path = folder / FIRED
    lines = path.read_text().splitlines() if path.exists() else []
    facts = [json.loads(line) for line in lines]
    return [(Fault(**{key: value for key, value in fact.items() if key != "at"}), fact["at"]) for fact in facts]


def _append(path: Path, fact: dict[str, object]) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(fact).encode() + b"\n")


def _file_name(point: str) -> str:
    return point.replace("/", "|")


def _point(file_name: str) -> str:
    return file_name.replace("|", "/")

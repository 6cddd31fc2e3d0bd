"""Child processes of one run: each in its own group, watched together, none left behind.

Everything happens in one loop without threads: a signal only leaves a note, which the loop reads between two looks at the
children. So no child can be started and forgotten, and stopping is never itself interrupted.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from experiments import parents
from shared.errors import MedDualLoRAError

POLL_S = 0.05
GRACE_S = 5.0
"""From asking a child to end to ending it."""
TAIL_LINES = 12
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ChildFailed(MedDualLoRAError):
    """A child ended badly, ended too early, or never ended. The message has its last words."""


class Interrupted(MedDualLoRAError):
    """A signal asked the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; everything it had started is stopped too")
        self.exit_code = 128 + number


@dataclass
class Child:
    """One process. Its output goes to files, so that it can neither block on a pipe nor disturb a screen."""

    name: str
    popen: subprocess.Popen[bytes]
    out: Path
    err: Path
    goes_on: bool
    """A server: its end is a failure unless it was asked to end."""
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    exit_code: int | None = None
    """Negative: the signal that ended it."""
    cpu_s: float = 0.0
    """User and system time, with that of its own children; known when it has ended."""

    @property
    def wall_s(self) -> float:
        """Seconds from start to end, or until now."""
        return (self.ended or time.monotonic()) - self.started

    def last_words(self) -> str:
        """The last lines of standard error, or of standard output if it said nothing there."""
        for path in (self.err, self.out):
            lines = path.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
            if lines:
                return "\n".join(f"  {line[:500]}" for line in lines[-TAIL_LINES:])
        return "  (it wrote nothing)"

    def look(self) -> bool:
        """Return whether it has ended. If so, end what is left of its group before its number can be given away."""
        if self.exit_code is not None:
            return True
        if os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        self.signal(signal.SIGKILL)
        _, status, usage = os.wait4(self.popen.pid, 0)
        self.exit_code = self.popen.returncode = os.waitstatus_to_exitcode(status)
        self.ended, self.cpu_s = time.monotonic(), usage.ru_utime + usage.ru_stime
        return True

    def signal(self, number: int) -> None:
        """Send a signal to it and to whatever it started."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where only a zombie is left
                os.killpg(self.popen.pid, number)


class Processes:
    """Starts and watches children. Leaving the `with` block, however it is left, ends all of them."""

    def __init__(self, folder: Path, on_poll: Callable[[], None] = lambda: None, grace_s: float = GRACE_S) -> None:
        self._folder, self._on_poll, self._grace_s = folder, on_poll, grace_s
        self._children: list[Child] = []
        self._signal = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Processes":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._previous = {number: signal.signal(number, self._note) for number in HANDLED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end([child for child in self._children if not child.look()])
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        del frame
        self._signal = self._signal or number

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        *,
        goes_on: bool = False,
    ) -> Child:
        """Start a child. Its output goes to FOLDER/name.out and FOLDER/name.err."""
        out, err = self._folder / f"{name}.out", self._folder / f"{name}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            popen = subprocess.Popen(
                parents.ending_with(os.getpid(), command),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        child = Child(name, popen, out, err, goes_on)
        self._children.append(child)
        return child

    def until(
        self, done: Callable[[], bool], limit_s: float, what: str, suspects: Callable[[], Sequence[Child]] = lambda: ()
    ) -> None:
        """Look at all children until `done`. Raises ChildFailed as soon as any of them fails, and after `limit_s`.

        `what` begins the sentence that says so; `suspects` are the children whose last words are shown with it.
        """
        end = time.monotonic() + limit_s
        while True:
            self._check()
            self._on_poll()
            if done():
                return
            if time.monotonic() > end:
                words = "".join(f"\nlast lines of {child.name}:\n{child.last_words()}" for child in suspects())
                raise ChildFailed(f"{what} within {limit_s:.0f} s; see {self._folder}{words}")
            time.sleep(POLL_S)

    def wait(self, child: Child, limit_s: float) -> None:
        """Wait for one child to end well; the others are watched meanwhile."""
        self.until(child.look, limit_s, f"{child.name} did not end", lambda: [child])

    def stop(self, child: Child, limit_s: float) -> None:
        """Ask a child that goes on to end, and wait for it to end well."""
        child.goes_on = False
        child.signal(signal.SIGTERM)
        self.wait(child, limit_s)

    def _check(self) -> None:
        if self._signal:
            raise Interrupted(self._signal)
        for child in self._children:
            if child.look() and (child.exit_code or child.goes_on):
                raise ChildFailed(
                    f"{child.name} {_how_it_ended(child)} after {child.wall_s:.1f} s; its last lines:\n{child.last_words()}"
                )

    def _end(self, children: Sequence[Child]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in children:
                child.signal(number)
            end = time.monotonic() + self._grace_s
            while not all(child.look() for child in children) and time.monotonic() < end:
                time.sleep(POLL_S)


def _how_it_ended(child: Child) -> str:
    assert child.exit_code is not None
    if child.exit_code < 0:
        return f"was ended by {signal.Signals(-child.exit_code).name}"
    return f"ended with exit code {child.exit_code}" + (", too early" if child.exit_code == 0 else "")

"""Child processes of a benchmark: told on standard input, heard on standard output, and gone when the block ends."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import parents
from shared.errors import MedDualLoRAError

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "GRPC_VERBOSITY": "NONE",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}
ANSWER_S = 120.0
STOP_S = 20.0
TAIL_LINES = 12


class ChildFailed(MedDualLoRAError):
    """A child ended too early or never answered. The message has its last words."""


@dataclass
class Child:
    """One process. What it says on standard error goes to a file."""

    name: str
    process: asyncio.subprocess.Process
    errors: Path

    async def line(self) -> str:
        """Return the next line it prints. Raises ChildFailed if there is none."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(ANSWER_S):
                said = await self.process.stdout.readline()
        except TimeoutError:
            raise ChildFailed(f"{self.name} said nothing for {ANSWER_S:.0f} s; {self._last_words()}") from None
        if not said:
            raise ChildFailed(f"{self.name} ended too early; {self._last_words()}")
        return said.decode().rstrip()

    async def facts(self) -> dict[str, Any]:
        """Return the JSON object on the next line it prints."""
        value: dict[str, Any] = json.loads(await self.line())
        return value

    def go(self) -> None:
        """Let it go on: an empty line on its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    def _last_words(self) -> str:
        lines = self.errors.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
        return "\n".join(["its last lines:", *lines[-TAIL_LINES:]]) if lines else "it wrote no error"


@asynccontextmanager
async def started(name: str, command: Sequence[object], folder: Path) -> AsyncIterator[Child]:
    """Run a command until the block ends; then it is asked to end, and ended if it does not."""
    errors = folder / f"{name}.err"
    with errors.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *parents.ending_with(os.getpid(), command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=sink,
            env=ENVIRONMENT,
        )
    try:
        yield Child(name, process, errors)
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(
                    process.pid, number
                )  # `send_signal` would look whether it has ended, and take the end from asyncio
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await process.wait()

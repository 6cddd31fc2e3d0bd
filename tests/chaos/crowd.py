"""Simulated sites spread over a few processes, so that the aggregator's memory and processor time are its own."""

import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.chaos.served import ENVIRONMENT
from tests.chaos.simulated_site import SitesPlan, Tally

ROOT = Path(__file__).resolve().parents[2]
LINE_LIMIT = 16 << 20


class Crowd:
    """Started processes of sites."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes
        self._reports: Counter[str] = Counter()
        self._reached: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._readers = [asyncio.create_task(self._read(process)) for process in processes]

    async def reached(self, what: str) -> float:
        """Return, with the time (time.monotonic), once every site has "joined", or is "waiting" in AwaitRound.

        Raises RuntimeError if a process of sites ends before.
        """
        mark = asyncio.create_task(self._reached[what].wait())
        pending: set[asyncio.Task[Any]] = {mark, *self._readers}
        while not mark.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        return time.monotonic()

    def go(self) -> None:
        """Let sites that hold go on."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")

    async def finished(self) -> Tally:
        """Return what all sites did once the last has ended. Raises RuntimeError if a process of sites failed."""
        total = Tally()
        for tally in await asyncio.gather(*self._readers):
            total.add(tally)
        return total

    async def _read(self, process: asyncio.subprocess.Process) -> Tally:
        assert process.stdout is not None
        async for line in process.stdout:
            said = json.loads(line)
            if "tally" in said:
                return Tally.from_jsonable(said["tally"])
            self._reports[said["reached"]] += 1
            if self._reports[said["reached"]] == len(self._processes):
                self._reached[said["reached"]].set()
        raise RuntimeError(f"a process of simulated sites ended early with status {await process.wait()}")


@asynccontextmanager
async def start(plan: SitesPlan, processes: int) -> AsyncIterator[Crowd]:
    """Start the plan's sites, dealt out over this many processes, which end with the block at the latest."""
    started = []
    try:
        for index in range(processes):
            share = replace(plan, names=plan.names[index::processes])
            started.append(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "tests.chaos.simulated_site",
                    json.dumps(asdict(share)),
                    cwd=ROOT,
                    env=ENVIRONMENT,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=LINE_LIMIT,
                )
            )
        yield Crowd(started)
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.wait()

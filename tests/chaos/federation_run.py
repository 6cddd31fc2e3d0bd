"""One federation as processes that are started again whenever they end badly, until every agent has ended well."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import checks, materials, points, scenario
from tests.chaos.checks import Findings, Reference
from tests.chaos.materials import Parts
from tests.chaos.network import Network, between
from tests.chaos.points import Fault
from tests.chaos.processes import Child, ForkServer, Program
from tests.chaos.scenario import AGGREGATOR, SOFT, FaultKind, Passed, Scenario, Trouble
from tests.integration.federation import SITES

LIMIT_S = 120.0
MAX_RESTARTS = 12
POLL_S = 0.05
DISK_BYTES = 16 << 20
NO_SPACE = ("No space left on device", "disk is full", "disk fails or is full")
"""What a process says that gives up because its disk is full: the system's words, and the store's."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ended although its work was not done; `words` is all that this life of it wrote on standard error.

    `at`: when it was heard of, in seconds since 1970.
    """

    role: str
    name: str
    code: int
    words: str
    at: float

    def __str__(self) -> str:
        if self.code < 0:
            return f"{self.name} was ended by {signal.Signals(-self.code).name}"
        last = (self.words.splitlines() or ["it said nothing"])[-1]
        return f"{self.name} ended with exit code {self.code}: {last[:300]}"


@dataclass(kw_only=True)
class Outcome:
    """What one run showed. `problems` is empty if it kept every promise."""

    scenario: Scenario
    logs: Path
    fired: tuple[Fault | Trouble, ...] = ()
    ended: tuple[Ended, ...] = ()
    finished: bool = False
    findings: Findings = field(default_factory=Findings)
    problems: list[str] = field(default_factory=list)
    equal_global: bool = False
    equal_local: bool = False
    duration_s: float = 0.0
    passed: Passed = field(default_factory=lambda: Passed({}, {}))

    @property
    def happened(self) -> set[FaultKind]:
        """The kinds of the faults that happened."""
        return {scenario.kind_of(fault) for fault in self.fired}

    @property
    def is_hard(self) -> bool:
        """Whether a process was killed or the network failed: a disk that was full, or a slow line, is not enough."""
        return bool(self.happened - SOFT)

    @property
    def is_idle(self) -> bool:
        """Whether too little happened for the run to count, and everything held."""
        return not self.is_hard and not self.problems

    def lines(self) -> list[str]:
        """Say to a reader what was to happen, what happened and what came of it."""
        happened = [f"  happened: {fault}" for fault in self.fired] or ["  no fault happened"]
        ended = [f"  {one}" for one in self.ended]
        result = [f"  FAILED: {problem}" for problem in self.problems] or ["  everything held"]
        found = self.findings
        counts = f"  {found.counted} updates counted, receipts held for {found.accepted}; took {self.duration_s:.1f} s"
        logs = [f"  logs: {self.logs}"] if self.problems else []
        return [*self.scenario.lines(), *happened, *ended, *result, counts, *logs]


class Run:
    """One run: its folder, its processes, and what has become of them. `database`: an empty one, or "" for SQLite."""

    def __init__(
        self, server: ForkServer, parts: Parts, folder: Path, scenario: Scenario, ports: Iterator[int], database: str
    ) -> None:
        self._server, self._parts, self._folder, self._scenario = server, parts, folder, scenario
        self._ports, self._database = ports, database
        self._ended: list[Ended] = []
        self._alive: dict[str, Child] = {}
        self._network: Network | None = None
        self._stopping = False

    async def go(self, reference: Reference | None = None) -> Outcome:
        """Run to the end or to the limit, then check what is left behind against the undisturbed run."""
        outcome, began = Outcome(scenario=self._scenario, logs=self._folder), time.monotonic()
        (self._folder / "points").mkdir(parents=True)
        codec = self._scenario.setting.codec
        store = await asyncio.to_thread(materials.create_store, self._parts, self._folder, self._database, codec)
        with self._disks():
            try:
                outcome.problems += await self._bounded(store)
            finally:
                await self._kill_all()
        outcome.finished = not outcome.problems
        outcome.duration_s = time.monotonic() - began
        self._say_what_happened(outcome)
        outcome.findings = await asyncio.to_thread(checks.find, store, self._folder)
        if outcome.finished:
            outcome.problems += outcome.findings.problems
        if reference is not None:
            outcome.equal_global = outcome.findings.digest == reference.digest
            outcome.equal_local = outcome.findings.local == reference.local
            outcome.problems += checks.differences(outcome.findings, reference) if outcome.finished else []
        return outcome

    def _say_what_happened(self, outcome: Outcome) -> None:
        fired = points.fired_at(self._folder / "points")
        outcome.ended = tuple(self._ended)
        outcome.problems += [f"{one}, and no fault says why" for one in unexplained(self._ended, fired)]
        troubles, carried = (self._network.happened(), self._network.carried()) if self._network else ((), {})
        outcome.fired = (*(fault for fault, _ in fired), *troubles)
        outcome.passed = Passed(points.counted(self._folder / "points"), carried)

    async def _bounded(self, store: str) -> list[str]:
        """Return why it did not come to its end; nothing if it did."""
        try:
            async with asyncio.timeout(LIMIT_S):
                await self._to_the_end(store)
        except TimeoutError:
            return [f"not finished within {LIMIT_S:.0f} s"]
        except ExceptionGroup as group:
            return [str(error) for error in group.exceptions]
        return []

    @contextmanager
    def _disks(self) -> Iterator[None]:
        places = [materials.disk(self._folder, role) for role in self._scenario.disks]
        for place in places:
            self._server.mount(place, DISK_BYTES)
        try:
            yield
        finally:
            for place in places:
                self._server.unmount(place)

    async def _to_the_end(self, store: str) -> None:
        parts, folder, scenario = self._parts, self._folder, self._scenario
        addresses = {name: f"127.0.0.1:{next(self._ports)}" for name in scenario.setting.replicas}
        serving = [materials.aggregator(parts, folder, store, *place, scenario) for place in addresses.items()]
        async with between(list(addresses.values()), scenario) as self._network, asyncio.TaskGroup() as group:
            relays = self._network.relays
            agents = [materials.agent(parts, folder, relays[site].address, site, scenario) for site in SITES]
            for program in serving:
                group.create_task(self._keep(program))
            room = group.create_task(self._make_room())
            await asyncio.wait([group.create_task(self._keep(program)) for program in agents])
            room.cancel()
            self._stopping = True
            for program in serving:
                if program.name in self._alive:
                    self._server.signal(self._alive[program.name], signal.SIGTERM)

    async def _keep(self, program: Program) -> None:
        """Start a process again, after a pause, until it has ended well. Raises RuntimeError if that is too often."""
        while not self._stopping:
            said = program.err.stat().st_size if program.err.exists() else 0
            child = self._alive[program.name] = self._server.start(program)
            code = await child.end()
            del self._alive[program.name]
            if code == 0 and (self._stopping or program.role != AGGREGATOR):
                return
            if code == -signal.SIGTERM and self._stopping:
                return  # it had only just been started
            words = program.err.read_bytes()[said:].decode(errors="replace")
            self._ended.append(Ended(program.role, program.name, code, words, time.time()))
            if len(self._ended) > MAX_RESTARTS:
                raise RuntimeError(f"more than {MAX_RESTARTS} processes ended badly; the last: {self._ended[-1]}")
            await asyncio.sleep(self._scenario.pauses[len(self._ended) % len(self._scenario.pauses)])

    async def _make_room(self) -> None:
        """Empty every disk some time after it was filled."""
        waiting = {fault for fault in self._scenario.faults if fault.action == "fill"}
        while waiting:
            await asyncio.sleep(POLL_S)
            for fault in points.fired(self._folder / "points"):
                if fault.action == "fill" and fault.plain in waiting:
                    waiting.discard(fault.plain)
                    await asyncio.sleep(self._scenario.full_for_s)
                    self._server.empty(Path(fault.disk))

    async def _kill_all(self) -> None:
        for child in list(self._alive.values()):
            self._server.signal(child, signal.SIGKILL)
            await child.end()


def unexplained(ended: Sequence[Ended], fired: Sequence[tuple[Fault, float]]) -> list[Ended]:
    """Return the ends that no fault says why of. `fired`: what happened, and when, in seconds since 1970.

    Every kill is the reason of one end by SIGKILL; a disk that was filled before, of an end that names it as the reason.
    """
    kills = Counter(fault.role for fault, _ in fired if fault.action == "kill")
    without = []
    for one in ended:
        if one.code == -signal.SIGKILL:
            kills[one.role] -= 1
            explained = kills[one.role] >= 0
        else:
            was_full = any(fault.action == "fill" and fault.role == one.role and at <= one.at for fault, at in fired)
            explained = was_full and any(words in one.words for words in NO_SPACE)
        if not explained:
            without.append(one)
    return without

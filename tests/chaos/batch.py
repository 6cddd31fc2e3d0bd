"""Many runs from consecutive seeds, a few at a time; what is the same for all of them is made once."""

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import materials, processes, scenario
from tests.chaos.checks import Reference
from tests.chaos.federation_run import Outcome, Run
from tests.chaos.materials import Parts
from tests.chaos.processes import ForkServer
from tests.chaos.scenario import SETTINGS, SOFT, FaultKind, Scenario, Setting
from tests.support.postgres import PostgresServer


@dataclass(frozen=True)
class Bench:
    """What runs need: processes, a database server, materials, and what undisturbed runs passed and ended with."""

    server: ForkServer
    postgres: PostgresServer
    parts: Parts
    folder: Path
    ports: Iterator[int]
    undisturbed: dict[Setting, Outcome] = field(default_factory=dict)

    def reference(self, setting: Setting) -> Reference | None:
        """Return what undisturbed runs with the setting's codec ended with; they have been compared."""
        for other, one in self.undisturbed.items():
            if other.codec == setting.codec:
                return Reference(one.findings.digest, one.findings.local)
        return None

    def draw(self, seed: int) -> Scenario:
        """Return the scenario of a seed."""
        passed = {setting: one.passed for setting, one in self.undisturbed.items()}
        return scenario.draw(seed, passed, self.server.has_disks)

    async def run(self, drawn: Scenario, keep: Path | None = None) -> Outcome:
        """Run a scenario. Its logs stay in `keep`, or, if something did not hold, in this bench's folder."""
        folder = (keep or self.folder) / f"seed-{drawn.seed}"
        with self._database(drawn.setting) as database:
            run = Run(self.server, self.parts, folder, drawn, self.ports, database)
            outcome = await run.go(self.reference(drawn.setting))
        if keep is None and not outcome.problems:
            await asyncio.to_thread(shutil.rmtree, folder)
        return outcome

    def kinds(self) -> list[FaultKind]:
        """Return the kinds of fault that can happen on this machine."""
        return [kind for kind in scenario.LIKELY if self.server.has_disks or not kind.startswith("fill")]

    def learn(self) -> None:
        """Let a federation run undisturbed in every setting. Raises RuntimeError if one fails or ends differently."""
        for number, setting in enumerate(SETTINGS):
            outcome = asyncio.run(self.run(Scenario(seed=-1 - number, setting=setting)))
            if outcome.problems:
                raise RuntimeError("\n".join(outcome.lines()))
            self.undisturbed[setting] = outcome

    @contextmanager
    def _database(self, setting: Setting) -> Iterator[str]:
        """Yield the URL of an empty database, or "" for a SQLite file."""
        if setting.store == "SQLite":
            yield ""
        else:
            with self.postgres.database() as url:
                yield url


@contextmanager
def bench(folder: Path | None = None) -> Iterator[Bench]:
    """Make everything in a folder (a temporary one, removed at the end unless a run failed, if none is given)."""
    place = folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    parts = materials.make(place / "materials")
    postgres = PostgresServer()
    try:
        postgres.start()
        with processes.fork_server() as server:
            made = Bench(server, postgres, parts, place, materials.free_ports())
            made.learn()
            yield made
    finally:
        postgres.close()
    if folder is None and not list(place.glob("seed-*")):
        shutil.rmtree(place)


async def many(
    made: Bench, runs: int, seed: int, jobs: int, heard: Callable[[Outcome], None], keep: Path | None = None
) -> list[Outcome]:
    """Run the first `runs` seeds from `seed` on in which a process was killed or the network failed; return all outcomes, the
    idle ones too."""
    seeds, outcomes, begun = itertools.count(seed), list[Outcome](), 0

    async def work() -> None:
        nonlocal begun
        while begun < runs:
            begun += 1
            outcome = await made.run(made.draw(next(seeds)), keep)
            outcomes.append(outcome)
            heard(outcome)
            begun -= outcome.is_idle  # the next seed takes its place

    async with asyncio.TaskGroup() as group:
        for _ in range(jobs):
            group.create_task(work())
    return sorted(outcomes, key=lambda outcome: outcome.scenario.seed)


async def of_each_kind(made: Bench, jobs: int) -> dict[FaultKind, list[Outcome]]:
    """For each kind of fault run seeds that draw it, with no more beside it than it needs, until it happened in one of them; no
    seed is run twice."""
    taken: set[int] = set()
    outcomes: dict[FaultKind, list[Outcome]] = {kind: [] for kind in made.kinds()}
    waiting = list(outcomes)

    async def work() -> None:
        while waiting:
            kind = waiting.pop(0)
            for drawn in map(made.draw, itertools.count()):
                if drawn.kinds[0] == kind and len(drawn.kinds) == 1 + (kind in SOFT) and drawn.seed not in taken:
                    taken.add(drawn.seed)
                    outcomes[kind].append(await made.run(drawn))
                    if outcomes[kind][-1].problems or kind in outcomes[kind][-1].happened:
                        break

    async with asyncio.TaskGroup() as group:
        for _ in range(jobs):
            group.create_task(work())
    return outcomes

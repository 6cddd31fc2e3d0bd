"""Agents killed in the middle of an epoch, one to three times in a run: they must end with the bytes of one that never was.

Every kill strikes after an optimiser step that is neither the first of its round nor the last of its epoch. The step was made
and not noted: training goes on from the checkpoint before it.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import batch, materials
from tests.chaos.batch import Bench
from tests.chaos.federation_run import Outcome
from tests.chaos.points import STEP, Fault
from tests.chaos.scenario import SETTINGS, Passed, Scenario, Setting
from tests.integration.federation import SITES

MOST_KILLS = 3
REPLAY = "python -m tests.chaos midepoch --runs 1 --seed {seed} --keep DIR"


@dataclass(frozen=True, slots=True)
class Plan:
    """A run with its kills, all of one site's agent, and the checkpoints it must go on from, as round and step."""

    scenario: Scenario
    site: str
    resumes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """One run's plan, and what came of it."""

    plan: Plan
    outcome: Outcome

    @property
    def resumed(self) -> list[tuple[int, int]]:
        """Round and step of every checkpoint that the killed agent went on from."""
        return self.outcome.findings.resumed.get(self.plan.site, [])

    @property
    def is_equal(self) -> bool:
        """Whether the last version and every local adapter are those of the undisturbed run."""
        return self.outcome.equal_global and self.outcome.equal_local

    def problems(self) -> list[str]:
        """Return what was not as it must be."""
        found = list(self.outcome.problems)
        if len(self.outcome.fired) != len(self.plan.resumes):
            found.append(f"{len(self.outcome.fired)} of {len(self.plan.resumes)} kills came")
        if self.resumed != list(self.plan.resumes):
            found.append(f"training went on from {_said(self.resumed)}, expected {_said(self.plan.resumes)}")
        if not self.is_equal and not found:
            found.append("the end is not that of the undisturbed run")
        return found


@dataclass(frozen=True, slots=True)
class Figures:
    """What all runs showed."""

    runs: Sequence[Kept]

    def lines(self) -> list[str]:
        """Return the figures to print."""
        resumes = [where for run in self.runs for where in run.resumed]
        steps = Counter(step for _, step in resumes)
        facts = {
            "runs": len(self.runs),
            "SIGKILLs of an agent in the middle of an epoch": sum(len(run.outcome.fired) for run in self.runs),
            "training resumed from a checkpoint": len(resumes),
            "ends equal, global and every local adapter": sum(run.is_equal for run in self.runs),
            "ends unequal": sum(not run.is_equal for run in self.runs),
        }
        resumed = ", ".join(f"{step} ({count}x)" for step, count in sorted(steps.items()))
        return [*(f"{name:<52}{value:>9}" for name, value in facts.items()), f"resumed before step: {resumed}"]

    def problems(self) -> list[str]:
        """Return what was not as it must be, with the command that repeats it."""
        return [
            f"seed {run.plan.scenario.seed}: {problem} (replay: {REPLAY.format(seed=run.plan.scenario.seed)})"
            for run in self.runs
            for problem in run.problems()
        ]


def run(runs: int, seed: int, jobs: int, keep: Path | None = None) -> Figures:
    """Run so many federations, from consecutive seeds."""
    with batch.bench() as made:
        return asyncio.run(many(made, range(seed, seed + runs), jobs, keep))


async def many(made: Bench, seeds: Sequence[int], jobs: int, keep: Path | None = None) -> Figures:
    """Run the seeds, `jobs` side by side."""
    waiting, kept = list(seeds), list[Kept]()
    passed = {setting: one.passed for setting, one in made.undisturbed.items()}

    async def work() -> None:
        while waiting:
            plan = draw(waiting.pop(0), passed)
            kept.append(Kept(plan, await made.run(plan.scenario, keep)))

    async with asyncio.TaskGroup() as group:
        for _ in range(jobs):
            group.create_task(work())
    return Figures(sorted(kept, key=lambda one: one.plan.scenario.seed))


def draw(seed: int, passed: Mapping[Setting, Passed]) -> Plan:
    """Return the plan of a seed. `passed`: what undisturbed runs passed; an agent's steps are those of all its rounds."""
    rng = random.Random(f"midepoch {seed}")
    setting, site = rng.choice(SETTINGS), rng.choice(SITES)
    a_round = passed[setting].points[site][STEP] // materials.ROUNDS
    an_epoch = a_round // materials.EPOCHS
    inside = [step for step in range(2, a_round) if step % an_epoch]
    every = [(number, step) for number in range(1, materials.ROUNDS + 1) for step in inside]
    chosen = sorted(rng.sample(every, rng.randint(1, MOST_KILLS)))
    # every kill before cost one step that was made again, and so was counted again
    passings = [(number - 1) * a_round + step + before for before, (number, step) in enumerate(chosen)]
    return Plan(
        Scenario(
            seed=seed,
            setting=setting,
            faults=tuple(Fault(site, STEP, nth) for nth in passings),
            pauses=(round(rng.uniform(0.0, 0.3), 3),),
        ),
        site,
        tuple((number, step - 1) for number, step in chosen),
    )


def _said(resumes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"step {step} of round {number}" for number, step in resumes) or "no checkpoint"

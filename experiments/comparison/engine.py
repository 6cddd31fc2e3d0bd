"""Runs the cells that are missing, some at a time, each in a process with one thread. A finished one is never run again."""

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from experiments.comparison import records, tuning
from experiments.comparison.extensions import SWITCHES, everyone
from experiments.comparison.plan import REAL, Plan, Planned
from experiments.comparison.scenarios import SCENARIOS, SHIFTED
from experiments.comparison.unseen import BASES, SHOTS, UNSEEN, key
from experiments.training import quiet
from shared.errors import InputError, MedDualLoRAError

CELLS = "cells"
ONE_FRAME_SWITCHES = tuple(name for name, switch in SWITCHES.items() if switch.one_frame)
COSTS = {
    UNSEEN: 3.5,
    "full": 9.0,
    "med-duallora-all": 2.5,
    "fdlora": 1.6,
    "local-only": 1.1,
    "first": 6.0,
    "repeated-first": 6.0,
}
"""Times a usual cell, measured; 1 where nothing is said."""
USUAL_S = 30.0
ONE_FRAME_EPOCHS, ONE_FRAME_PAIRS = 15, 6000
"""Two frames a pair: as many images as the demo's network saw in 30."""
COHORT_S = 25.0


@dataclass(frozen=True, slots=True)
class Task:
    """A cell and where its files go. `tuning`: the cell's method names a setting that is tried."""

    planned: Planned
    folder: Path
    tuning: bool = False

    @property
    def record(self) -> Path:
        method = self.planned.method
        if self.planned.scenario == UNSEEN:  # of one federation several are made, in this order
            method = key(method, SHOTS[-1])
        return self.folder / f"{records.stem(method, self.planned.run)}.json"

    @property
    def done(self) -> bool:
        return self.record.exists()


def tuning_tasks(plan: Plan) -> list[Task]:
    """Return the cells that settings are chosen by."""
    return [Task(Planned(tuning.SCENARIO, 0, one.key), plan.out / tuning.FOLDER, True) for one in tuning.candidates()]


def tasks(plan: Plan, cells: Iterable[Planned]) -> list[Task]:
    """Return where the cells of the comparison go."""
    return [Task(one, plan.out / CELLS / one.scenario) for one in cells]


def estimate_s(plan: Plan, missing: Sequence[Task], jobs: int) -> float:
    """Return about how long the missing cells take: what cells of their method took here, or else what they usually do."""
    took: dict[str, list[float]] = {}
    for path in (plan.out / CELLS).glob("*/*.json"):
        cell = records.read(path)
        took.setdefault(cell.method, []).append(cell.seconds)
    known = {method: sum(values) / len(values) for method, values in took.items()}
    cohorts = len({(task.planned.scenario, task.planned.run) for task in missing}) if plan.synthetic else 0
    each = (known.get(t.planned.method, USUAL_S * plan.scale * _cost(t.planned)) for t in missing)
    return (sum(each) + COHORT_S * cohorts * plan.scale) / jobs


def _cost(planned: Planned) -> float:
    base, _, switch = planned.method.partition("+")
    return max(COSTS.get(name, 1.0) for name in (planned.scenario, switch, base.partition(tuning.MARK)[0]))


def make_backbone(plan: Plan, wanted: Sequence[Task]) -> None:
    """Pre-train the one-frame network, if one of the missing cells is about it and it is not there: about 20 minutes."""
    needed = [
        task
        for task in wanted
        if not task.done and any(f"+{name}" in task.planned.method for name in ONE_FRAME_SWITCHES)
    ]
    if not needed or (plan.one_frame / "finished").exists():
        return
    minutes = 20 * plan.scale
    print(
        f"pre-training a one-frame network on SYNTHETIC frames for {len(needed)} cells: about {minutes:.0f} minutes",
        flush=True,
    )
    pairs = max(64, round(ONE_FRAME_PAIRS * plan.scale))
    words = ("--out", str(plan.one_frame), "--epochs", str(ONE_FRAME_EPOCHS), "--pairs", str(pairs), "--one-frame")
    subprocess.run([sys.executable, "-m", "experiments.demo_backbone", *words], check=True)
    (plan.one_frame / "finished").touch()


def run(plan: Plan, wanted: Sequence[Task], jobs: int) -> list[str]:
    """Run what is missing of `wanted`; return what went wrong, a line a cell. The others are not held up by it."""
    missing = [task for task in wanted if not task.done]
    if not missing:
        return []
    print(
        f"{len(missing)} of {len(wanted)} cells to run, {jobs} at a time: about "
        f"{estimate_s(plan, missing, jobs) / 60:.0f} minutes. Stopped, the same command goes on.",
        flush=True,
    )
    failed, began = [], time.monotonic()
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=quiet.process, max_tasks_per_child=40
    ) as pool:
        running = {pool.submit(run_one, plan, task): task for task in missing}
        for number, done in enumerate(as_completed(running), 1):
            task = running[done]
            try:
                line = done.result()
            except MedDualLoRAError as error:
                line = f"FAILED: {error}"
                failed.append(f"{task.planned}: {error}")
            left = (time.monotonic() - began) / number * (len(missing) - number)
            print(f"[{number}/{len(missing)}, {left / 60:.0f} min left] {task.planned}  {line}", flush=True)
    return failed


def run_one(plan: Plan, task: Task) -> str:
    """Run one cell in this process and write it; return a line about it."""
    import torch

    from experiments.comparison import cells, contenders, metrics, unseen
    from site_agent.training.site import load_base

    torch.set_num_threads(1)
    if task.done:
        return "is there already"
    planned, source = task.planned, plan.source
    if task.tuning:
        contender = contenders.find(planned.method, tuple(tuning.candidates()))
        sites = source.tuning_sites()
    else:
        contender = tuning.tuned(plan.out, planned.method)
        scenario = SHIFTED if planned.scenario == UNSEEN else planned.scenario
        sites = source.sites(scenario, planned.run)
    network = load_base(plan.weights, plan.weights_size, plan.frames).model  # type: ignore[arg-type]
    bench = plan.bench(len(network.blocks), network.embed_dim)
    if planned.scenario == UNSEEN:
        for cell, predictions in unseen.run(bench, contender, sites, planned.run):
            records.write(task.folder, cell, predictions)
    else:
        cell, predictions = cells.run(bench, contender, sites, planned.scenario, planned.run)
        records.write(task.folder, cell, predictions)
    figures = {name: metrics.over_runs(predictions, metrics.FIGURES[name]) for name in tuning.FIGURES_USED}
    found = ", ".join(f"{value:.3f}" for value in figures.values())
    return f"AUC, balanced accuracy {found}; {cell.seconds:.0f} s"


def check_method(plan: Plan, planned: Planned) -> None:
    """Raise InputError for a cell that is none of this comparison's."""
    scenarios = (*(SCENARIOS if plan.synthetic else (REAL,)), UNSEEN)
    if planned.scenario not in scenarios:
        raise InputError(f"no scenario is called '{planned.scenario}'; there are: {', '.join(scenarios)}")
    if planned.method not in (BASES if planned.scenario == UNSEEN else {one.key for one in everyone()}):
        raise InputError(f"no method is called '{planned.method}'; `python -m experiments.comparison list` names them")

"""Runs the cells that are missing, some at a time, each in a process with one thread. A finished one is never run again."""

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from experiments.comparison import config, tuning
from experiments.comparison.extensions import PLUS, SWITCHES
from experiments.comparison.plan import Plan
from experiments.comparison.scenarios import SHIFTED, locked
from experiments.comparison.shots import UNSEEN
from experiments.comparison.tasks import Task
from experiments.comparison.workers import Workers

ONE_FRAME_SWITCHES = frozenset(name for name, switch in SWITCHES.items() if switch.one_frame)
ONE_FRAME_EPOCHS, ONE_FRAME_PAIRS = 15, 6000
"""Two frames a pair: as many images as the demo's network saw in 30."""
ONE_FRAME_MINUTES = 20


def needs_one_frame(plan: Plan, wanted: Sequence[Task]) -> int:
    """Return how many missing cells are about a one-frame network that is not there yet."""
    if (plan.one_frame / "finished").exists() or not plan.synthetic:
        return 0
    return sum(not ONE_FRAME_SWITCHES.isdisjoint(task.planned.method.split(PLUS)) and not task.done for task in wanted)


def make_backbone(plan: Plan, wanted: Sequence[Task]) -> None:
    """Pre-train the one-frame network, if one of the missing cells is about it and it is not there. One process at a time does.

    Where it cannot be made, the cells about it fail by themselves, and say so.
    """
    if not needs_one_frame(plan, wanted):
        return
    with locked(plan.one_frame) as lock:
        if not (count := needs_one_frame(plan, wanted)):
            return
        print(
            f"pre-training a one-frame network on SYNTHETIC frames for {count} cells: about "
            f"{max(1, round(ONE_FRAME_MINUTES * plan.scale))} min",
            flush=True,
        )
        pairs = max(64, round(ONE_FRAME_PAIRS * plan.scale))
        words = ("--out", str(plan.one_frame), "--epochs", str(ONE_FRAME_EPOCHS), "--pairs", str(pairs), "--one-frame")
        # a child that outlives this process keeps the lock
        made = subprocess.run([sys.executable, "-m", "experiments.demo_backbone", *words], check=False, pass_fds=[lock])
        if made.returncode == 0:
            (plan.one_frame / "finished").touch()


def run(plan: Plan, wanted: Sequence[Task], jobs: int, phase: str) -> list[str]:
    """Run what is missing of `wanted`; return what went wrong, a line a cell. The others are not held up by it.

    `phase`: what `wanted` is called. Lines count all of it, finished ones too; the time left is of what is missing, by what cells
    took after the first ones, which may have made cohorts.
    """
    missing = [task for task in wanted if not task.done]
    failed, first_ended = [], 0.0
    with closing(Workers(partial(run_one, plan), missing, jobs).outcomes()) as outcomes:
        for number, (task, line, error) in enumerate(outcomes, 1):
            if error is not None:
                failed.append(f"{task.planned}: {error}")
            now = time.monotonic()
            if number <= jobs:
                first_ended, left = now, ""
            else:
                left_s = (now - first_ended) / (number - jobs) * (len(missing) - number)
                left = f", {left_s / 60:.0f} min of it left"
            said = line if error is None else f"FAILED: {error}"
            place = f"{len(wanted) - len(missing) + number}/{len(wanted)} of {phase}"
            print(f"[{place}{left}] {task.planned}  {said}", flush=True)
    return failed


@cache
def commit() -> str:
    """Return the commit of this checkout, as it was when the process first asked; empty if this is none."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout else "")


def run_one(plan: Plan, task: Task) -> str:
    """Run one cell in this process and write it; return a line about it."""
    import torch

    from experiments.comparison import cells, contenders, metrics, records, unseen
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
    computed_by = partial(replace, code=commit(), versions=dict(config.versions()))
    network = load_base(plan.weights, plan.weights_size, plan.frames).model
    bench = plan.bench(len(network.blocks), network.embed_dim)
    if planned.scenario == UNSEEN:
        for cell, predictions in unseen.run(bench, contender, sites, planned.run):
            records.write(task.folder, computed_by(cell), predictions)
    else:
        cell, predictions = cells.run(bench, contender, sites, planned.scenario, planned.run)
        records.write(task.folder, computed_by(cell), predictions)
    area, accuracy = (metrics.over_runs(predictions, metrics.FIGURES[name]) for name in tuning.FIGURES_USED)
    return f"AUC {area:.3f}, balanced accuracy {accuracy:.3f}; {cell.seconds:.0f} s"

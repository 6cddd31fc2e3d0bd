"""What the choice of random views does to accuracy, and what it costs: federations on the demo's SYNTHETIC phantom cohort.

A cell is one choice on one cohort: the project's own sites and rule in one process, all rounds, from an empty cache. A pass is one
image through the frozen blocks for training; those for held-out cases are the same for every choice and not counted.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments import output, simulation
from experiments.demo.commands import SITES
from experiments.simulation import Setting
from experiments.training import phantom, quiet, timing, views_table
from experiments.training.views_table import Cell, Choice
from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.training import evaluate, schedule
from site_agent.training.schedule import Position
from site_agent.training.views import View

CELL_S = 65.0
"""About what a cell takes on one core, mean over the choices: for the estimate."""


def run(seeds: Sequence[int], rounds: int, scale: float, jobs: int, out: Path) -> bool:
    """Measure what has not been yet, and show."""
    machine, began = timing.machine(), time.monotonic()
    cells = list(_cells(seeds, rounds, scale, jobs, out))
    note = f"{len(seeds)} cohorts, {rounds} rounds, {len(SITES)} sites; {time.monotonic() - began:.0f} s"
    lines = [timing.heading(f"views: SYNTHETIC phantom cohort, {note}", machine), *views_table.lines(cells)]
    facts = {"machine": machine, "synthetic": True, "rounds": rounds, "scale": scale}
    return output.show("views", lines, [], facts | {"cells": [asdict(cell) for cell in cells]}, out)


def _cells(seeds: Sequence[int], rounds: int, scale: float, jobs: int, out: Path) -> Iterator[Cell]:
    """Yield all cells in order, after those that are missing have been run."""
    folder = out / "views" / f"rounds{rounds}-scale{scale:g}"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [
        (seed, choice, folder / f"seed{seed}-{choice.key}.json") for seed in seeds for choice in views_table.CHOICES
    ]
    missing = [one for one in wanted if not one[2].exists()]
    if missing:
        minutes = len(missing) * CELL_S * scale / jobs / 60
        print(f"views: {len(missing)} of {len(wanted)} federations to run, about {minutes:.0f} minutes", flush=True)
    prepared = {seed: phantom.cohort(out, seed, scale) for seed in dict.fromkeys(seed for seed, *_ in missing)}
    with ProcessPoolExecutor(jobs) as pool:
        running = [pool.submit(_run, prepared[seed], seed, rounds, choice, path) for seed, choice, path in missing]
        for number, done in enumerate(as_completed(running), 1):
            print(f"{number} of {len(missing)}: {done.result()}", flush=True)
    for *_, path in wanted:
        values = json.loads(path.read_text(encoding="utf-8"))
        yield Cell(**{**values, "choice": Choice(**values["choice"])})


def _run(prepared: Path, seed: int, rounds: int, choice: Choice, path: Path) -> str:
    """Run one cell, write it, and return a line about it."""
    quiet.process()
    torch.set_num_threads(1)
    cell = _cell(prepared, seed, rounds, choice, path.parent)
    path.with_suffix(".part").write_text(json.dumps(asdict(cell)), encoding="utf-8")
    path.with_suffix(".part").rename(path)
    return f"seed {seed}, {choice.name}: AUC {cell.auc:.3f}, {cell.passes:,} passes, {cell.seconds:.0f} s"


def _cell(prepared: Path, seed: int, rounds: int, choice: Choice, scratch: Path) -> Cell:
    recipe = choice.recipe()
    with tempfile.TemporaryDirectory(dir=scratch, prefix="activations-") as folder:
        setting = Setting(prepared, phantom.WEIGHTS, seed, rounds, recipe, cache=Path(folder), cache_dtype="float16")
        made = phantom.federate(setting)
        figures: list[dict[str, Any]] = []
        for site, trainer in made.trainers.items():
            validation, test = (
                trainer.score(made.version, made.private[site], cases)
                for cases in (trainer.validation_cases, trainer.cohort.test())
            )
            figures.append(evaluate.figures(validation, test))
    passed = sum(passes(one.train_cases, recipe, rounds, one.seed) for one in made.trainers.values())
    return Cell(seed=seed, choice=choice, passes=passed, seconds=made.seconds, **simulation.mean_of(figures))


def passes(cases: Sequence[Case], recipe: Recipe, rounds: int, seed: int) -> int:
    """Return how many images go through the frozen blocks in a site's training, if everything that can be kept is kept."""
    kept: set[View] = set()
    fresh = 0
    for number in range(1, rounds + 1):
        for batch in schedule.batches(cases, recipe, Position(number, rounds, seed)):
            kept.update(view for view in batch.views if view.kept)
            fresh += sum(not view.kept for view in batch.views)
    return len(kept) + fresh

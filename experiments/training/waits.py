"""How long training and evaluation wait for their data: entries found in the cache, against the same ones already on the device.

Both are the project's own round of training and evaluation of four arms, on the same cases in the same order, in turns.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from experiments import output
from experiments.output import Target
from experiments.training import synthetic, timing
from experiments.training.synthetic import BASE
from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.backbone import Prefix
from site_agent.models.classifier import CineClassifier
from site_agent.training import compute, evaluate, local
from site_agent.training.activations import Activations, Looked
from site_agent.training.arms import ARMS
from site_agent.training.compute import Compute
from site_agent.training.micro_batch import MicroBatch
from site_agent.training.schedule import Position
from site_agent.training.views import View

RATIO = 1.05
OWNED = Ownership("global+local-bias")
BATCHES = {"cpu": (1,), "cuda": (1, 8)}
CASES = {"cpu": 3, "cuda": 64}
EVALUATION = f"evaluation of {len(ARMS)} arms"


@dataclass
class Resident(Activations):
    """Activations that lie on the device as they are used: nothing is left to wait for."""

    there: dict[View, Prefix] = field(default_factory=dict)

    def look(self, view: View) -> Looked:
        """Look for nothing."""
        return Looked(view, (), None)

    def finish(self, looked: Sequence[Looked]) -> Prefix:
        """Put side by side what is there."""
        parts = [self.there[one.view] for one in looked]
        return Prefix(*(torch.cat([getattr(part, name) for part in parts]) for name in Prefix._fields))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="waits")(main)


def main(
    repetitions: Annotated[int, typer.Option(min=1, help="Counted turns, after one that is not.")] = 5,
    device: timing.DeviceOption = "all",
    out: Annotated[Path, typer.Option(help="Folder for waits.json, and on whose disk entries lie.")] = Path(
        "runs/training"
    ),
) -> None:
    """Time training and evaluation from the cache against the same with everything on the device already.

    Example: python -m experiments.training waits --repetitions 9
    """
    sys.exit(not run(repetitions, out, device))


def run(repetitions: int, out: Path, which: timing.Which = "all") -> bool:
    """Measure, show, and return whether every target was met."""
    machine, lines, targets, facts = timing.machine(), list[str](), list[Target](), dict[str, Any]()
    for device in timing.devices(which):
        taken = _measure(repetitions, device, out)
        lines += [f"{device.type}, {CASES[device.type]} cases:", *table(taken)]
        targets += judged(taken, device)
        facts[device.type] = {f"{what}, {how}": one for (what, how), one in timing.spreads(taken).items()}
    what = f"waits: SYNTHETIC CineMA-base, precision as auto picks it; medians of {repetitions} turns"
    lines = [timing.heading(what, machine), *lines, *timing.not_run("the same rows", which)]
    return output.show("waits", lines, targets, {"machine": machine, "synthetic": True, "measured": facts}, out)


Taken = Mapping[tuple[str, str], Sequence[float]]
"""Seconds by what is done, and whether activations were "found" or "there"."""


def _measure(repetitions: int, device: torch.device, out: Path) -> Taken:
    out.mkdir(parents=True, exist_ok=True)
    how = compute.pick("cuda" if device.type == "cuda" else "cpu", "auto", BASE.enc_embed_dim)
    with tempfile.TemporaryDirectory(dir=out, prefix="waits-") as name:
        cases = synthetic.cohort(Path(name), CASES[device.type])
        model = synthetic.dual(BASE).to(device)
        found = synthetic.activations(model, Path(name) / "activations", how)
        views = [View(case, kind) for case in cases for kind in ("plain", "window")]
        found.fill(views)
        there = _resident(model, found, views, how)
        works: dict[tuple[str, str], timing.Work] = {}
        for batch in BATCHES[device.type]:
            for which, activations in (("found", found), ("there", there)):
                works[f"training, batch {batch}", which] = _epoch(model, activations, cases, batch)
        for which, activations in (("found", found), ("there", there)):
            works[EVALUATION, which] = _evaluation(model, activations, cases)
        return timing.interleaved(works, repetitions, device)


def _resident(model: CineClassifier, found: Activations, views: Sequence[View], how: Compute) -> Resident:
    return Resident(model, found.image_size, found.seed, how, there={view: found.prefixes([view]) for view in views})


def _epoch(model: CineClassifier, activations: Activations, cases: Sequence[Case], batch: int) -> timing.Work:
    recipe = Recipe(augmentation="none", batch_size=batch, local_epochs=1)
    position = Position(1, 1, seed=0)
    return lambda: local.train_round(
        model, activations, cases, recipe, OWNED, position, micro_batch=MicroBatch(recipe.batch_size)
    )


def _evaluation(model: CineClassifier, activations: Activations, cases: Sequence[Case]) -> timing.Work:
    return lambda: evaluate.scores(model, activations, cases, [lambda: None] * len(ARMS))


def table(taken: Taken) -> list[str]:
    """Return a row for each kind of work."""
    rows = []
    for what in dict.fromkeys(what for what, _ in taken):
        found, there = (output.median(taken[what, which]) for which in ("found", "there"))
        rows.append([what, 1e3 * found, 1e3 * there, ratio(taken, what)])
    return output.table(["", "from the cache, ms", "on the device, ms", "ratio"], rows)


def ratio(taken: Taken, what: str) -> float:
    """Return the median over turns, each of which did both."""
    return output.median([a / b for a, b in zip(taken[what, "found"], taken[what, "there"], strict=True)])


def judged(taken: Taken, device: torch.device) -> list[Target]:
    """Return what must hold of each kind of work."""
    return [
        Target(
            f"{device.type}, {what}: from the cache, in times of activations on the device", ratio(taken, what), RATIO
        )
        for what in dict.fromkeys(what for what, _ in taken)
    ]

"""How long training and evaluation wait for their data: entries of the cache, against the same ones in a batch's form already.

Both are the project's own round of training and evaluation of four arms, on the same cases in the same order, in turns.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from experiments import output
from experiments.output import Target
from experiments.training import devices, synthetic, timing
from experiments.training.synthetic import BASE
from shared.contract import ARMS
from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.backbone import Prefix
from site_agent.models.classifier import CineClassifier
from site_agent.training import compute, evaluate, local
from site_agent.training.activations import Activations, Looked
from site_agent.training.compute import Compute
from site_agent.training.micro_batch import MicroBatch
from site_agent.training.resident import Resident
from site_agent.training.schedule import Position
from site_agent.training.views import View

RATIO = 1.05
OWNED = Ownership("global+local-bias")
BATCHES = {"cpu": (1,), "cuda": (1, 8)}
CASES = {"cpu": 3, "cuda": 64}
EVALUATION = f"evaluation of {len(ARMS)} arms"


@dataclass
class InForm(Activations):
    """Activations that lie on the device, float32, as they are used: nothing is left to wait for."""

    there: dict[View, Prefix] = field(default_factory=dict)

    def look(self, view: View) -> Looked:
        """Look for nothing."""
        return Looked(view, (), None)

    def finish(self, looked: Sequence[Looked]) -> Prefix:
        """Put side by side what is there."""
        parts = [self.there[one.view] for one in looked]
        return Prefix(*(torch.cat([getattr(part, name) for part in parts]) for name in Prefix._fields))


def run(repetitions: int, out: Path, which: devices.Which = "all") -> bool:
    """Measure, show, and return whether every target was met."""
    machine, lines, targets, facts = timing.machine(), list[str](), list[Target](), dict[str, Any]()
    for device in devices.there(which):
        taken = _measure(repetitions, device, out)
        lines += [f"{device.type}, {CASES[device.type]} cases:", *table(taken)]
        targets += judged(taken, device)
        facts[device.type] = {f"{what}, {way}": one for (what, way), one in timing.spreads(taken).items()}
    what = f"waits: SYNTHETIC CineMA-base, precision as auto picks it; medians of {repetitions} turns"
    lines = [timing.heading(what, machine), *lines, *devices.not_run("the same rows", which)]
    return output.show("waits", lines, targets, {"machine": machine, "synthetic": True, "measured": facts}, out)


Taken = Mapping[tuple[str, str], Sequence[float]]
"""Seconds by what is done, and where its activations come from."""

FILES, STAY, THERE = "from the files", "kept on the GPU", "in the batch's form"


def _measure(repetitions: int, device: torch.device, out: Path) -> Taken:
    out.mkdir(parents=True, exist_ok=True)
    how = compute.pick("cuda" if device.type == "cuda" else "cpu", "auto", BASE.enc_embed_dim)
    with tempfile.TemporaryDirectory(dir=out, prefix="waits-") as name:
        cases = synthetic.cohort(Path(name), CASES[device.type])
        model = synthetic.dual(BASE).to(device)
        found = synthetic.activations(model, Path(name) / "activations", how)
        views = [View(case, kind) for case in cases for kind in ("plain", "window")]
        found.fill(views)
        ways = {FILES: found, THERE: _in_form(model, found, views, how)}
        if (resident := Resident.on(how)) is not None:
            ways[STAY] = replace(found, resident=resident)
        works: dict[tuple[str, str], timing.Work] = {}
        for batch in BATCHES[device.type]:
            for way, activations in ways.items():
                works[f"training, batch {batch}", way] = _epoch(model, activations, cases, batch)
        for way, activations in ways.items():
            works[EVALUATION, way] = _evaluation(model, activations, cases)
        return timing.interleaved(works, repetitions, device)


def _in_form(model: CineClassifier, found: Activations, views: Sequence[View], how: Compute) -> InForm:
    return InForm(model, found.image_size, found.seed, how, there={view: found.prefixes([view]) for view in views})


def _epoch(model: CineClassifier, activations: Activations, cases: Sequence[Case], batch: int) -> timing.Work:
    recipe = Recipe(augmentation="none", batch_size=batch, local_epochs=1)
    position = Position(1, 1, seed=0)
    return lambda: local.train_round(
        model, activations, cases, recipe, OWNED, position, micro_batch=MicroBatch(recipe.batch_size)
    )


def _evaluation(model: CineClassifier, activations: Activations, cases: Sequence[Case]) -> timing.Work:
    return lambda: evaluate.scores(model, activations, cases, [lambda: None] * len(ARMS))


def table(taken: Taken) -> list[str]:
    """Return a row for each kind of work and way."""
    rows = [[what, way, 1e3 * output.median(values), ratio(taken, what, way)] for (what, way), values in taken.items()]
    return output.table(["", "activations", "median, ms", "ratio"], rows)


def ratio(taken: Taken, what: str, way: str) -> float:
    """Return how long it takes, in times of activations that need nothing done: the median over turns, each of which did both."""
    return output.median([a / b for a, b in zip(taken[what, way], taken[what, THERE], strict=True)])


def judged(taken: Taken, device: torch.device) -> list[Target]:
    """Return what must hold of each kind of work: on a CPU from the files, on a GPU of what it keeps."""
    way = STAY if device.type == "cuda" else FILES
    return [
        Target(
            f"{device.type}, {what}, activations {way}: slower than without looking any up",
            ratio(taken, what, way),
            RATIO,
            "x",
        )
        for what in dict.fromkeys(what for what, _ in taken)
    ]

"""Whole local epochs of CineMA-base from an empty cache, against epochs without one: when filling it has paid.

Both are the project's own round of training, random views included, on the same few cases in the same order; epochs take turns.
What a larger site and more epochs would take is worked out from the seconds of single steps.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import torch

from experiments import output
from experiments.output import Target
from experiments.training import break_even, synthetic, timing
from experiments.training.break_even import Pieces
from experiments.training.synthetic import BASE
from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.models.adapter_tensors import Ownership
from site_agent.training import local, schedule
from site_agent.training.activations import Activations
from site_agent.training.compute import Compute
from site_agent.training.micro_batch import MicroBatch
from site_agent.training.schedule import Position
from site_agent.training.views import View

RECIPE = Recipe(batch_size=1, local_epochs=1)
OWNED = Ownership("global+local-bias")
FEDERATION_EPOCHS = 40
"""Twenty rounds of two epochs."""


@dataclass
class Course:
    """Epochs of one way to train: seconds of each step, and which view it showed."""

    activations: Activations
    steps: list[list[float]] = field(default_factory=list)
    views: list[list[View]] = field(default_factory=list)

    def train(self, cases: Sequence[Case], position: Position) -> None:
        """Train the next epoch."""
        at = [time.perf_counter()]
        hooks = local.Hooks(on_step=lambda step, steps, optimiser: at.append(time.perf_counter()))
        model, fitting = self.activations.model, MicroBatch(RECIPE.batch_size)
        local.train_round(model, self.activations, cases, RECIPE, OWNED, position, hooks=hooks, micro_batch=fitting)
        self.steps.append([after - before for before, after in pairwise(at)])
        batches = schedule.batches(cases, RECIPE, position)
        self.views.append([view for batch in batches for view in batch.views])

    @property
    def epochs(self) -> list[float]:
        """Seconds of each epoch."""
        return [sum(steps) for steps in self.steps]

    def by_novelty(self) -> tuple[list[float], list[float]]:
        """Return the seconds of steps whose view came for the first time, and of the others."""
        known: set[View] = set()
        new, seen = list[float](), list[float]()
        for steps, views in zip(self.steps, self.views, strict=True):
            for seconds, view in zip(steps, views, strict=True):
                (seen if view in known else new).append(seconds)
                known.add(view)
        return new, seen


def run(count: int, epochs: int, out: Path) -> bool:
    """Measure, show, and return whether every target was met."""
    machine = timing.machine()
    ours, without = _measure(count, epochs, out)
    found = pieces(ours, without)
    what = f"epoch: SYNTHETIC CineMA-base, {count} cases, batch 1, {RECIPE.views} random views and the plain one a case"
    lines = [timing.heading(what, machine), *table(ours, without), "", *extrapolated(found)]
    facts = {
        "machine": machine,
        "synthetic": True,
        "cases": count,
        "pieces": asdict(found),
        "cached_steps_s": ours.steps,
        "uncached_steps_s": without.steps,
    }
    return output.show("epoch", lines, judged(ours, without), facts, out)


def _measure(count: int, epochs: int, out: Path) -> tuple[Course, Course]:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix="epoch-") as name:
        cases = synthetic.cohort(Path(name), count)
        model, compute = synthetic.dual(BASE), Compute(torch.device("cpu"))
        ours = Course(synthetic.activations(model, Path(name) / "activations", compute))
        without = Course(synthetic.activations(model, None, compute))
        without.activations.prefixes([View(cases[0], "random", 1 << 20, kept=False)])  # MONAI is imported
        for number in range(1, epochs + 1):
            position = Position(number, epochs, seed=0)
            for course in (ours, without):
                course.activations.begin_round()
                course.train(cases, position)
    return ours, without


def pieces(ours: Course, without: Course) -> Pieces:
    """Return the median seconds of each kind of step.

    A step with a new view does what one without the cache does, and writes: if it seems quicker, that was the machine.
    """
    new, seen = ours.by_novelty()
    uncached = output.median([seconds for steps in without.steps for seconds in steps])
    return Pieces(new=max(output.median(new), uncached), seen=output.median(seen), uncached=uncached)


def table(ours: Course, without: Course) -> list[str]:
    """Return a row for each epoch."""
    known: set[View] = set()
    rows: list[list[object]] = []
    for epoch, (a, b) in enumerate(zip(ours.epochs, without.epochs, strict=True), 1):
        views = ours.views[epoch - 1]
        new = sum(view not in known for view in views)
        known.update(views)
        sums = sum(ours.epochs[:epoch]), sum(without.epochs[:epoch])
        rows.append([epoch, f"{new} of {len(views)}", a, b, a / b, sums[0] / sums[1]])
    head = ["epoch", "views computed", "with the cache, s", "without, s", "ratio", "ratio so far"]
    return output.table(head, rows)


def extrapolated(found: Pieces) -> list[str]:
    """Return what the pieces say of longer federations, for plain images and for the recipe's views."""
    lines = [
        f"a step, medians: {1e3 * found.new:,.0f} ms with a view to compute, {1e3 * found.seen:,.0f} ms with one that is "
        f"there, {1e3 * found.uncached:,.0f} ms without the cache"
    ]
    for what, slots in (("plain images", 1), (f"{RECIPE.views} random views and the plain one", RECIPE.views + 1)):
        with_cache = break_even.cached(found, slots, FEDERATION_EPOCHS)
        first = break_even.first_cheaper(with_cache, [found.uncached] * FEDERATION_EPOCHS)
        times = break_even.saving(found, slots, FEDERATION_EPOCHS)
        lines.append(
            f"expected, {what}: paid for by the end of epoch {first}; {FEDERATION_EPOCHS} epochs take {times:.2f} times less"
        )
    return lines


def judged(ours: Course, without: Course) -> list[Target]:
    """Return what must hold: the second epoch is cheaper, and with it both together."""
    both = sum(ours.epochs[:2]) / sum(without.epochs[:2])
    return [
        Target("the second epoch, in epochs without the cache", ours.epochs[1] / without.epochs[1], 1.0),
        Target("the first two epochs, in epochs without the cache", both, 1.0),
    ]

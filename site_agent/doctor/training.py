"""One training step on this site's own model, images and device, and what a round takes by it."""

import contextlib
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from shared.adapter import Adapter
from shared.certificates import holder_in
from shared.contract import Contract
from shared.errors import MedDualLoRAError
from site_agent import starting
from site_agent.doctor.finding import Examined, Finding, failed, passed, warned
from site_agent.models.backbone import Prefix
from site_agent.privacy import budget
from site_agent.privacy.stream import Stream
from site_agent.training import local, schedule
from site_agent.training.activations import Activations, Looked
from site_agent.training.schedule import Position
from site_agent.training.site import SiteTrainer
from site_agent.training.views import View

STEPS, ENOUGH_S = 3, 6.0
"""So many steps, and as many views, are timed, or as many as there are after these seconds. What comes first warms up and is left
out, however long it takes: kernels are chosen and memory is fetched in it."""
MARGIN_S = 1.0
"""Left to the end of the check."""
LONG_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds: of the frozen part for one view, and of a step whose views are cached. `steps`: of a round."""

    view_s: float
    step_s: float
    steps: int
    first_views: int
    """Views whose frozen part round 1 computes."""
    later_views: int
    """Of them those that are never kept, and computed in every round."""
    at_most: bool = False
    """There was time for the warming up alone, so that a round takes less."""

    @property
    def first_round_s(self) -> float:
        """With nothing cached."""
        return self.steps * self.step_s + self.first_views * self.view_s

    @property
    def later_round_s(self) -> float:
        """With everything cached that can be."""
        return self.steps * self.step_s + self.later_views * self.view_s


def one_step(examined: Examined) -> Finding:
    """Train a few steps as round 1 would, keep nothing, and compare the round's time with its deadline."""
    contract, cohort = examined.contract, examined.cohort
    assert contract is not None
    assert cohort is not None
    config = replace(examined.config, cache_mb=0)  # nothing is written
    site = config.plain_site
    if config.tls:  # without a certificate by the name that was asked for: no time depends on it
        site = config.tls.certificate.stem if examined.not_enrolled else holder_in(config.tls.certificate).site
    torch.set_num_threads(config.threads)
    try:
        budget.check_ready(contract)
        trainer = SiteTrainer.load(config, site, contract, cohort)
        budget.check_offer(contract, trainer.training_patients)
        timed = measure(trainer, contract, examined.ends_at)
    except MedDualLoRAError as error:
        return failed("training cannot begin", "do what the line below says", str(error))
    return judged(timed, contract, trainer.activations.compute.device.type)


def judged(timed: Timed, contract: Contract, device: str) -> Finding:
    """Compare a round's time with its deadline."""
    facts: dict[str, Any] = {
        "step_s": round(timed.step_s, 4),
        "frozen_view_s": round(timed.view_s, 4),
        "steps": timed.steps,
        "batch_size": contract.recipe.batch_size,
        "first_round_s": round(timed.first_round_s, 3),
        "later_round_s": round(timed.later_round_s, 3),
        "deadline_s": contract.policy.deadline_s,
        "at_most": timed.at_most,
        "device": device,
    }
    words = (
        f"{_time(timed.step_s)} on {device}, {_time(timed.view_s)} for the frozen part of a view; a round of {timed.steps} steps "
        f"trains for {'at most' if timed.at_most else 'about'} {_time(timed.later_round_s)}, the first one, with nothing cached, "
        f"{_time(timed.first_round_s)}"
    )
    remedy = 'set device = "cuda" or more threads in site.toml, or ask the coordinator for a longer deadline or fewer local_epochs'
    deadline_s = contract.policy.deadline_s
    if timed.at_most and timed.first_round_s > deadline_s:
        return warned(
            f"{words}: of {_time(deadline_s)} that a round has",
            "only the first, slow passes could be timed: run this again on an idle machine",
            **facts,
        )
    if timed.later_round_s > deadline_s:
        return failed(f"{words}: longer than the {_time(deadline_s)} that a round has", remedy, **facts)
    if max(timed.first_round_s, timed.later_round_s / LONG_SHARE) > deadline_s:
        return warned(
            f"{words}: of {_time(deadline_s)} that a round has",
            f"{remedy}; an agent that is started before the first round computes its activations while it waits",
            **facts,
        )
    return passed(f"{words}, of {_time(deadline_s)}", **facts)


def measure(trainer: SiteTrainer, contract: Contract, ends_at: float = math.inf) -> Timed:
    """Time the frozen part on a few images, and steps of round 1 with what comes out of one standing for every image's.

    A step takes the same time whatever its numbers are, so no more images need pass the frozen part, which may take seconds each.
    `ends_at`: when all of it must be over, by time.monotonic(). Raises as `SiteTrainer.train`.
    """
    recipe, activations = trainer.recipe, trainer.activations
    position = Position(1, contract.policy.rounds, trainer.seed)
    views = {view for batch in schedule.batches(trainer.train_cases, recipe, position) for view in batch.views}
    seen = sorted(views, key=lambda view: (view.case.key, view.kind, view.index))[: 1 + STEPS]
    began = time.monotonic()
    prefix = activations.prefixes(seen[:1])
    warming_s = time.monotonic() - began
    views_by = ends_at - warming_s - MARGIN_S
    trainer.activations = OneView(
        activations.model,
        activations.image_size,
        activations.seed,
        activations.compute,
        stored=activations.stored,
        ranges=activations.ranges,
        prefix=prefix,
    )
    received = starting.version_0(trainer, contract) or _zeros(contract)
    watch = Watch(views_by)
    hooks = local.Hooks(on_step=lambda step, steps, optimiser: watch.ended(steps), should_stop=watch.begins)
    stream = Stream.fresh() if recipe.dp_noise else None  # of a key that is thrown away: nothing is debited
    with contextlib.suppress(local.Stopped):
        trainer.train(1, received, trainer.initial_local(), hooks, stream=stream)
    view_s = _frozen(activations, seen[1:] or seen, views_by)
    return Timed(
        view_s=warming_s if view_s is None else view_s,
        step_s=statistics.median(watch.took[1:] or watch.took),
        steps=watch.steps,
        first_views=len(views),
        later_views=sum(not view.kept for view in views),
        at_most=view_s is None or len(watch.took) == 1 < watch.steps,
    )


@dataclass
class OneView(Activations):
    """Hands out the frozen part of one view for every view."""

    prefix: Prefix | None = None

    def look(self, view: View) -> Looked:
        """Nothing needs to be read."""
        return Looked(view, (), None)

    def finish(self, looked: Sequence[Looked]) -> Prefix:
        """Return (n * entries, ...) as the views' own would be."""
        assert self.prefix is not None
        return Prefix(*(value.repeat(len(looked), 1, 1) for value in self.prefix))


@dataclass
class Watch:
    """Times steps, and says when there are enough: two at least, unless the second would end after `ends_at`."""

    ends_at: float = math.inf
    took: list[float] = field(default_factory=list)
    steps: int = 0
    _began: float = 0.0
    _all: float = field(default_factory=time.monotonic)

    def begins(self) -> bool:
        """A step is about to begin; return whether to leave off instead."""
        self._began = time.monotonic()
        if len(self.took) < 2:
            return bool(self.took) and self._began + self.took[0] > self.ends_at
        return len(self.took) >= STEPS or self._began - self._all > ENOUGH_S

    def ended(self, steps: int) -> None:
        """A step is over."""
        self.took.append(time.monotonic() - self._began)
        self.steps = steps


def _frozen(activations: Activations, views: Sequence[View], begin_by: float) -> float | None:
    """Return the seconds that the frozen part of a view takes once all is warm; None if it is later than `begin_by`."""
    took: list[float] = []
    for view in views:
        began = time.monotonic()
        if began > begin_by or sum(took) > ENOUGH_S / 2:
            break
        activations.prefixes([view])
        took.append(time.monotonic() - began)
    return statistics.median(took) if took else None


def _zeros(contract: Contract) -> Adapter:
    """An adapter of the right shapes, where version 0 cannot be drawn here: times do not depend on its numbers."""
    tensors = {spec.name: np.zeros(spec.shape, np.float32) for spec in contract.manifest.layout.tensors}
    return Adapter(contract.manifest, 0, "", tensors)


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:,.0f} ms"
    return f"{seconds:,.1f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"

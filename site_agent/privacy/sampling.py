"""Which patients a step of the private pass sees: each by itself with probability q, whoever else is in it (Poisson sampling).

That, not a shuffled order with batches of one size, is what the accountant's amplification is proved for. How many steps there are,
and what is divided by, are fixed by the contract's numbers and n_k, which is public; not by who was drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from shared.methods import GLOBAL_ALONE
from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.privacy.accountant import Release
from site_agent.privacy.stream import SAMPLING, Stream
from site_agent.training import schedule, views
from site_agent.training.schedule import Batch, Position


def release(patients: int, recipe: Recipe) -> Release:
    """Return what one round of a site with so many training patients releases."""
    steps = schedule.steps_of(patients, recipe) // len(recipe.passes())
    return Release(q=min(1.0, recipe.batch_size / patients), sigma=recipe.dp_noise, steps=steps)


def expected(patients: int, recipe: Recipe) -> float:
    """Return q n_k: how many patients a step sees on average."""
    return float(min(recipe.batch_size, patients))


def batches(cases: Sequence[Case], recipe: Recipe, position: Position, stream: Stream) -> Iterator[Batch]:
    """Yield the round's batches: those of the private pass drawn anew, maybe empty; those of other passes as the schedule has them.

    A drawn patient is there with all views that it has at a time, one after the other: as many for each.
    """
    q = release(len(cases), recipe).q
    for step, batch in enumerate(schedule.batches(cases, recipe, position)):
        if batch.phase != GLOBAL_ALONE:
            yield batch
            continue
        since_start = (position.round - 1) * recipe.local_epochs + batch.epoch
        drawn = np.flatnonzero(stream.uniforms(SAMPLING, step, len(cases)) <= q).tolist()
        shown = [
            (cases[i], view) for i in drawn for view in views.at_a_time(cases[i], recipe, position.seed, since_start)
        ]
        labels = np.array([case.label for case, _ in shown], dtype=np.int64)
        yield replace(batch, views=tuple(view for _, view in shown), labels=labels)

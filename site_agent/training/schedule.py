"""A round's batches and learning rates: pure functions of (seed, round, epoch, step).

So a round that is trained again from the same start, or goes on from a checkpoint, ends with the same bytes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.training import views
from site_agent.training.views import View


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the federation a round stands: `round` from 1 to `rounds`."""

    round: int
    rounds: int
    seed: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimiser step: which views of which cases, and where in the round (0 to 1)."""

    views: tuple[View, ...]
    labels: np.ndarray
    at: float
    epoch: int


def steps_of(cases: int, recipe: Recipe) -> int:
    """Optimiser steps of one round."""
    return recipe.local_epochs * math.ceil(cases / recipe.batch_size)


def batches(cases: Sequence[Case], recipe: Recipe, position: Position) -> Iterator[Batch]:
    """Yield the round's batches: every case once per epoch, in a seeded order, each as one of its views."""
    total, step = steps_of(len(cases), recipe), 0
    for epoch in range(recipe.local_epochs):
        rng = np.random.default_rng([position.seed, position.round, epoch])
        order = rng.permutation(len(cases))
        slots = rng.integers(0, recipe.views + 1, len(cases))
        since_start = (position.round - 1) * recipe.local_epochs + epoch
        for start in range(0, len(cases), recipe.batch_size):
            indices = order[start : start + recipe.batch_size]
            shown = tuple(views.of_epoch(cases[i], int(slots[i]), recipe, position.seed, since_start) for i in indices)
            yield Batch(shown, np.array([cases[i].label for i in indices]), step / total, epoch)
            step += 1


def learning_rate_factor(recipe: Recipe, position: Position, at: float) -> float:
    """Half a cosine over the whole federation from 1 to `lr_floor`; `at` is the share of the round that is done."""
    done = (position.round - 1 + at) / position.rounds
    return recipe.lr_floor + (1 - recipe.lr_floor) * 0.5 * (1 + math.cos(math.pi * done))

"""A round's batches and learning rates: pure functions of (seed, round, epoch, step).

So a round that is trained again from the same start, or goes on from a checkpoint, ends with the same bytes.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shared.methods import Phase
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
    """One optimiser step: which views of which cases, where in its pass through the epochs (0 to 1), and what is trained."""

    views: tuple[View, ...]
    labels: np.ndarray
    at: float
    epoch: int
    phase: Phase


def steps_of(cases: int, recipe: Recipe) -> int:
    """Optimiser steps of one round."""
    return len(recipe.passes()) * _steps_of_pass(cases, recipe)


def _steps_of_pass(cases: int, recipe: Recipe) -> int:
    return recipe.local_epochs * math.ceil(cases / recipe.batch_size)


def batches(cases: Sequence[Case], recipe: Recipe, position: Position) -> Iterator[Batch]:
    """Yield the round's batches: every case once per epoch, in a seeded order, each as one of its views.

    Every pass goes through the same batches at the same learning rates, so what one trains does not depend on the others.
    """
    for phases in recipe.passes():
        yield from _batches_of_pass(cases, recipe, position, phases)


def _batches_of_pass(
    cases: Sequence[Case], recipe: Recipe, position: Position, phases: Sequence[Phase]
) -> Iterator[Batch]:
    total, step = _steps_of_pass(len(cases), recipe), 0
    for epoch in range(recipe.local_epochs):
        rng = np.random.default_rng([position.seed, position.round, epoch])
        order = rng.permutation(len(cases))
        slots = rng.integers(0, recipe.views + 1, len(cases))
        since_start = (position.round - 1) * recipe.local_epochs + epoch
        for start in range(0, len(cases), recipe.batch_size):
            indices = order[start : start + recipe.batch_size]
            shown = tuple(views.of_epoch(cases[i], int(slots[i]), recipe, position.seed, since_start) for i in indices)
            phase = phases[len(phases) * step // total]
            yield Batch(shown, np.array([cases[i].label for i in indices]), step / total, epoch, phase)
            step += 1


def learning_rate_factor(recipe: Recipe, position: Position, at: float) -> float:
    """Half a cosine over the whole federation from 1 to `lr_floor`; `at` is the share of the round that is done."""
    done = (position.round - 1 + at) / position.rounds
    return recipe.lr_floor + (1 - recipe.lr_floor) * 0.5 * (1 + math.cos(math.pi * done))

"""How the server applies a round's weighted mean of deltas D to the global adapter x. Element by element, float64, pure.

sgd       x + eta D
momentum  m = beta1 m + D, x + eta m                                        (FedAvgM, Hsu et al. 2019, arXiv:1909.06335)
adam      m = beta1 m + (1 - beta1) D, v = beta2 v + (1 - beta2) D^2, x + eta m / (sqrt(v) + tau)
yogi      the same with v = v - (1 - beta2) D^2 sign(v - D^2)               (Reddi et al. 2021, arXiv:2003.00295, algorithm 2)

In the beginning m = 0 and v = tau^2, the least that algorithm 2 allows. Nothing corrects for that: there, too, nothing does.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shared.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Moments:
    """What an optimiser keeps of one tensor, float64 of its shape: m, and v where it has one."""

    first: np.ndarray
    second: np.ndarray | None = None


State = Mapping[str, Moments]
"""By tensor. Of one that never travelled there are none; one that does not travel in a round keeps its own."""


def keeps_moments(recipe: Recipe) -> bool:
    """Return whether a version's successor depends on more than the version."""
    return recipe.server_optimiser != "sgd"


def moments(recipe: Recipe, before: Moments | None, mean: np.ndarray) -> Moments:
    """Return the moments after a round; `before` is None in the first one that moves the tensor."""
    beta1, beta2 = recipe.server_beta1, recipe.server_beta2
    first = np.zeros_like(mean) if before is None else before.first
    if recipe.server_optimiser == "momentum":
        return Moments(beta1 * first + mean)
    squared = mean * mean
    second = before.second if before is not None else None
    if second is None:
        second = np.full_like(mean, recipe.server_tau**2)
    if recipe.server_optimiser == "yogi":
        second = second - (1.0 - beta2) * squared * np.sign(second - squared)
    else:
        second = beta2 * second + (1.0 - beta2) * squared
    return Moments(beta1 * first + (1.0 - beta1) * mean, second)


def step(recipe: Recipe, held: Moments) -> np.ndarray:
    """Return what is added to the tensor."""
    if held.second is None:
        return recipe.server_lr * held.first
    change: np.ndarray = recipe.server_lr * held.first / (np.sqrt(held.second) + recipe.server_tau)
    return change

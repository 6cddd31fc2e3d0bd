"""What a round makes of its updates: the next version, figures about it, and what the round after it needs besides. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from aggregator import aggregation, optimisers, robust
from aggregator.aggregation import Tensors
from aggregator.optimisers import Moments, State
from shared import codecs, feedback, forms
from shared.adapter import Adapter
from shared.canonical import canonical_json
from shared.compatibility import PRODUCT_RULES
from shared.contract import Contract
from shared.feedback import Sent
from shared.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Result:
    """What a round made.

    change: where the broadcast codec is lossy, what leads from the parent to the version, and what it still owes. moments: where
    the server optimiser keeps any, those that go with the version.
    """

    version: Adapter
    figures: dict[str, float]
    change: Sent | None = None
    moments: State = field(default_factory=dict)


def make(
    contract: Contract,
    number: int,
    version: int,
    parent: Adapter,
    deltas: Callable[[], Mapping[str, Tensors]],
    weight: Mapping[str, float],
    owed: Mapping[str, np.ndarray],
    moments: State,
) -> Result:
    """Return what round `number` makes of the parent version and the deltas (by site, as they were decoded).

    A robust rule on products reads the deltas twice, each call giving them anew: once for the weights, which take the place of
    `weight` and are among the figures, and once to add up.

    Where the broadcast codec is lossy, the change is written by it first, with what the parent's change still `owed`, and the
    version is made of what can be read from that: whoever has the parent and the change has the version. `moments` are those
    that go with the parent; none for version 0.
    """
    recipe = contract.recipe
    lossy, after = codecs.is_lossy(recipe.broadcast_codec), dict(moments)

    def finish(name: str, mean: np.ndarray) -> np.ndarray:
        step = _step(recipe, name, mean, after)
        return step if lossy else forms.moved(parent.tensors[name], step)

    weighed = _weighed(recipe, parent.tensors, deltas, weight)
    cut = robust.cut(recipe, len(weight))
    made, figures = aggregation.aggregate(parent.tensors, deltas(), weighed, finish, recipe.rule, cut)
    if weighed is not weight:
        figures |= {f"weight/{site}": value for site, value in weighed.items()}
    if not lossy:
        return Result(parent.successor({**parent.tensors, **made}, version), figures, moments=after)
    layout = recipe.change_layout(contract.manifest, number)
    change = feedback.send(layout, made, owed, canonical_json([contract.federation, number, parent.digest]))
    moved = {name: forms.moved(parent.tensors[name], step) for name, step in change.values.items()}
    return Result(parent.successor({**parent.tensors, **moved}, version), figures, change, after)


def _weighed(
    recipe: Recipe,
    base: Mapping[str, np.ndarray],
    deltas: Callable[[], Mapping[str, Tensors]],
    weight: Mapping[str, float],
) -> Mapping[str, float]:
    """Return the weights by the recipe's robust rule, if it is one on products; else those that there are."""
    if recipe.robust not in PRODUCT_RULES:
        return weight
    sites = sorted(weight)
    found = robust.weights(recipe, robust.geometry(base, deltas()), [weight[site] for site in sites])
    return dict(zip(sites, map(float, found), strict=True))


def _step(recipe: Recipe, name: str, mean: np.ndarray, moments: dict[str, Moments]) -> np.ndarray:
    """Return what a tensor moves by; its new moments take the place of the old."""
    if not optimisers.keeps_moments(recipe):
        return recipe.server_lr * mean
    moments[name] = optimisers.moments(recipe, moments.get(name), mean)
    return optimisers.step(recipe, moments[name])

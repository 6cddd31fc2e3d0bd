"""What a round makes of its updates: the next version, figures about it, and the change that is broadcast. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aggregator import aggregation
from aggregator.aggregation import Tensors
from shared import codecs, feedback, forms
from shared.adapter import Adapter
from shared.canonical import canonical_json
from shared.contract import Contract
from shared.feedback import Sent


@dataclass(frozen=True, slots=True)
class Result:
    """`change`: where the broadcast codec is lossy, what leads from the parent to the version, and what it still owes."""

    version: Adapter
    figures: dict[str, float]
    change: Sent | None = None


def make(
    contract: Contract,
    number: int,
    version: int,
    parent: Adapter,
    deltas: Mapping[str, Tensors],
    weight: Mapping[str, float],
    owed: Mapping[str, np.ndarray],
) -> Result:
    """Return what round `number` makes: parent + eta * weighted mean of the deltas (by site, as they were decoded).

    Where the broadcast codec is lossy, the change is written by it first, with what the parent's change still `owed`, and the
    version is made of what can be read from that: whoever has the parent and the change has the version.
    """
    recipe = contract.recipe
    lossy = codecs.is_lossy(recipe.broadcast_codec)

    def finish(base: np.ndarray, mean: np.ndarray) -> np.ndarray:
        step = recipe.server_lr * mean
        return step if lossy else forms.moved(base, step)

    made, figures = aggregation.aggregate(parent.tensors, deltas, weight, finish)
    if not lossy:
        return Result(parent.successor({**parent.tensors, **made}, version), figures)
    layout = recipe.change_layout(contract.manifest, number)
    change = feedback.send(layout, made, owed, canonical_json([contract.federation, number, parent.digest]))
    moved = {name: forms.moved(parent.tensors[name], step) for name, step in change.values.items()}
    return Result(parent.successor({**parent.tensors, **moved}, version), figures, change)

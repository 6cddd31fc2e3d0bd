"""With what each installed method can be trained: the recipe's numbers and what must be said of the adapter."""

from dataclasses import replace
from typing import Any

from shared.adapter import HEAD_POLICIES
from shared.codecs import CODECS, is_lossy
from shared.methods import LOCAL, METHODS
from shared.recipe import INSTALLED, Recipe

RANK = 2
"""Of the adapters that tests make, and of a local part beside them; alphas are the defaults of both, which are equal."""
RESIDUAL_RANK = 12
"""The width of the networks that tests make (`tests.support.tiny_site`): nothing is lost."""


def ranks_local(name: str, rank: int = RANK) -> tuple[int, ...]:
    """Ranks of the local part with which a method runs, out of `rank` and 0."""
    method = METHODS[name]
    if not method.low_rank:
        return (0,)
    return (rank,) if any(phase.trained == LOCAL for phase in method.passes) else (rank, 0)


def recipe(name: str, base: Recipe = Recipe(), rank_local: int | None = None, rank: int = RANK) -> Recipe:
    """Return `base` as that method can run it; with as large a local part as tests have, unless another is named."""
    return replace(base, name=name, rank_local=ranks_local(name, rank)[0] if rank_local is None else rank_local)


def choices(name: str, residual_rank: int = RESIDUAL_RANK) -> dict[str, Any]:
    """Return what an adapter for this method must have, by the names of metadata and `AdapterChoices`."""
    method = METHODS[name]
    if method.dense:
        return {"rank": 0, "dense": ("",)}
    if method.rule == "exact":
        return {"residual_rank": residual_rank}
    return {"head_policy": "global+local"} if _anchored(name) else {}


def heads(name: str) -> tuple[str, ...]:
    """Head policies with which a method runs."""
    return ("global+local",) if _anchored(name) else HEAD_POLICIES


def broadcast(name: str, codec: str) -> str:
    """Return the codec, or one that loses nothing where a method takes no other for its versions."""
    return "f32" if METHODS[name].rule != "factors" and is_lossy(codec) else codec


def _anchored(name: str) -> bool:
    return any(phase.anchored for phase in METHODS[name].passes)


WITH_RANKS = [(name, rank) for name in INSTALLED for rank in ranks_local(name)]
WITH_HEADS = [(name, head) for name in INSTALLED for head in heads(name)]
WITH_CODECS = [
    (name, codec) for codec in CODECS for name in INSTALLED if name == "med-duallora" or codec == "int8+zstd"
]
"""Every codec, and every method with one whose tensors have no fixed size."""
PRIVATE = {
    "name": "ffa-lora",
    "mode": "non-interference",
    "class_balanced": False,
    "dp_noise": 1.5,
    "dp_epsilon": 4.0,
}
"""A recipe with differential privacy needs all of these."""

"""Contracts that differ in one field: one pair for every field there is, found from the dataclasses, so that none is forgotten."""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from shared.adapter import AdapterManifest, AdapterMetadata
from shared.contract import Contract, RoundPolicy
from shared.layout import Layout
from shared.methods import METHODS
from shared.recipe import Recipe
from tests.support import adapters, methods

ADAPTER = adapters.adapter()
CONTRACT = Contract(
    federation="heart",
    adapter_digest=ADAPTER.digest,
    manifest=ADAPTER.manifest,
    recipe=Recipe(),
    policy=RoundPolicy(rounds=8, invited=9, quorum=7),
)
EXACT = next(name for name, method in METHODS.items() if method.rule == "exact")
BESIDE: dict[str, dict[str, Any]] = {
    "attackers": {"robust": "krum", "attackers": 1},
    "cosine_least": {"robust": "cosine-gate"},
    "norm_gate": {"norm_gate": 4.0},
    "dp_noise": methods.PRIVATE,
    "dp_epsilon": methods.PRIVATE,
}
"""What a recipe parameter needs beside it."""
CHOICES: dict[str, Any] = {
    "mode": "alternating", "weighting": "uniform", "augmentation": "none", "server_optimiser": "adam", "codec": "bf16",
    "broadcast_codec": "f32+zstd", "name": "fdlora", "rank_local": 4, "lr_floor": 0.5, "topk_share": 0.5,
    "robust": "geometric-median", "dp_delta": 0.5, "beta1": 0.5, "beta2": 0.5, "server_beta1": 0.5, "server_beta2": 0.5,
    "head_policy": "global", "frames": "siamese", "base_model_sha256": "cd" * 32, "dense": ("x",), "task": "other",
}  # fmt: skip
"""Other values of what is no free number. What is neither here nor one fails: choose a value."""


def different(name: str, value: Any) -> Any:
    """Return another value of a field that a contract may have."""
    if name in CHOICES:
        return CHOICES[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return value[1:]
    return 99 if value is None else value + 1


def pairs() -> Iterator[tuple[str, Contract, Contract]]:
    """Yield the name by which a site is told of a field, a contract, and one that differs from it in that field alone."""
    for field in fields(Recipe):
        before = replace(CONTRACT, recipe=replace(CONTRACT.recipe, **BESIDE.get(field.name, {})))
        other = different(field.name, getattr(before.recipe, field.name))
        name = "recipe" if field.name == "name" else f"recipe parameter {field.name}"
        yield name, before, replace(before, recipe=replace(before.recipe, **{field.name: other}))
    for field in fields(RoundPolicy):
        other = different(field.name, getattr(CONTRACT.policy, field.name))
        yield field.name, CONTRACT, replace(CONTRACT, policy=replace(CONTRACT.policy, **{field.name: other}))
    for field in fields(AdapterMetadata):
        before = CONTRACT
        if field.name == "residual_rank":
            manifest = adapters.adapter(residual=adapters.RESIDUAL_RANK).manifest
            before = replace(CONTRACT, manifest=manifest, recipe=Recipe(name=EXACT))
        other = different(field.name, getattr(before.manifest.metadata, field.name))
        metadata = replace(before.manifest.metadata, **{field.name: other})
        yield f"adapter {field.name}", before, replace(before, manifest=replace(before.manifest, metadata=metadata))
    first, *rest = ADAPTER.manifest.layout.tensors
    less = AdapterManifest(Layout(tuple(rest)), ADAPTER.manifest.metadata)
    yield f"tensor {first.name}", CONTRACT, replace(CONTRACT, manifest=less)
    yield "adapter", CONTRACT, replace(CONTRACT, adapter_digest="0" * 64)
    yield "federation", CONTRACT, replace(CONTRACT, federation="lung")


FIELDS = {
    Contract: {"federation", "adapter_digest", "manifest", "recipe", "policy"},
    AdapterManifest: {"layout", "metadata"},
}
"""Of what `pairs` does not go through field by field: a new one needs a pair."""


def check_complete() -> None:
    """Fail for a part of a contract that `pairs` has never heard of."""
    assert {kind: {field.name for field in fields(kind)} for kind in FIELDS} == FIELDS

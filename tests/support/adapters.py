"""Small adapters and deltas made of numpy arrays with PEFT names."""

from dataclasses import replace

import numpy as np

from shared.adapter import Adapter, AdapterManifest, AdapterMetadata
from shared.layout import Layout
from shared.methods import METHODS

BASE_MODEL = "ab" * 32
PREFIX = "base_model.model."
RESIDUAL_RANK = 5
"""The rank of any matrix of the small adapters: nothing is lost."""


def tensors(seed: int = 0, rank: int = 2, width: int = 6, blocks: int = 2, residual: int = 0) -> dict[str, np.ndarray]:
    """Return A factors from a seed, B factors zero, a residual of zeros if it has a rank, and a shared head weight."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for block in range(blocks):
        for module in ("attn.q", "attn.kv"):
            name = f"{PREFIX}encoder.blocks.{block}.{module}"
            found[f"{name}.lora_A.weight"] = rng.standard_normal((rank, width)).astype(np.float32)
            found[f"{name}.lora_B.weight"] = np.zeros((width - 1, rank), np.float32)
            if residual:
                found[f"{name}.lora_residual_A.weight"] = np.zeros((residual, width), np.float32)
                found[f"{name}.lora_residual_B.weight"] = np.zeros((width - 1, residual), np.float32)
    found[f"{PREFIX}pred_head_dict.cls.weight"] = rng.standard_normal((2, width)).astype(np.float32)
    return found


def adapter(seed: int = 0, rank: int = 2, width: int = 6, blocks: int = 2, residual: int = 0) -> Adapter:
    """Return version 0 of a small adapter."""
    made = tensors(seed, rank, width, blocks, residual)
    metadata = AdapterMetadata(
        base_model_sha256=BASE_MODEL,
        rank=rank,
        alpha=4.0,
        target_modules=("q", "kv"),
        blocks=tuple(range(blocks)),
        head_policy="global+local-bias",
        frames="stacked",
        task="disease detection",
        class_names=("normal", "disease"),
        residual_rank=residual or None,
    )
    return Adapter(AdapterManifest(Layout.of(made), metadata), 0, "", made)


def fitting(recipe: str) -> tuple[Adapter, dict[str, str]]:
    """Return an adapter that a recipe can train, and parameters with which it can."""
    made = adapter(residual=RESIDUAL_RANK if METHODS[recipe].rule == "exact" else 0)
    metadata = made.manifest.metadata
    parameters: dict[str, str] = {}
    if any(phase.anchored for phase in METHODS[recipe].passes):
        metadata = replace(metadata, head_policy="global+local")
        parameters = {"rank_local": str(metadata.rank), "alpha_local": str(metadata.alpha)}
    if METHODS[recipe].dense:
        names = {name: array for name, array in made.tensors.items() if ".lora_" not in name}
        dense = {**names, f"{PREFIX}encoder.norm.weight": np.ones(6, np.float32)}
        metadata = replace(metadata, rank=0, dense=("encoder.",))
        made = replace(made, tensors=dense, manifest=AdapterManifest(Layout.of(dense), metadata))
    if not METHODS[recipe].low_rank:
        parameters = {"rank_local": "0"}
    return replace(made, manifest=replace(made.manifest, metadata=metadata)), parameters


def delta(layout: Layout, seed: int, scale: float = 0.01) -> bytes:
    """Return the payload of a random update with this layout."""
    rng = np.random.default_rng(seed)
    return layout.join(
        {spec.name: (scale * rng.standard_normal(spec.shape)).astype(np.float32) for spec in layout.tensors}
    )

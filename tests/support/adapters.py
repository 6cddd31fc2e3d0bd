"""Small adapters and deltas made of numpy arrays with PEFT names."""

import numpy as np

from shared.adapter import Adapter, AdapterManifest, AdapterMetadata
from shared.layout import Layout

BASE_MODEL = "ab" * 32
PREFIX = "base_model.model."


def tensors(seed: int = 0, rank: int = 2, width: int = 6, blocks: int = 2) -> dict[str, np.ndarray]:
    """Return A factors from a seed, B factors zero, and a shared head weight."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for block in range(blocks):
        for module in ("attn.q", "attn.kv"):
            name = f"{PREFIX}encoder.blocks.{block}.{module}"
            found[f"{name}.lora_A.weight"] = rng.standard_normal((rank, width)).astype(np.float32)
            found[f"{name}.lora_B.weight"] = np.zeros((width - 1, rank), np.float32)
    found[f"{PREFIX}pred_head_dict.cls.weight"] = rng.standard_normal((2, width)).astype(np.float32)
    return found


def adapter(seed: int = 0, rank: int = 2, width: int = 6, blocks: int = 2) -> Adapter:
    """Return version 0 of a small adapter."""
    made = tensors(seed, rank, width, blocks)
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
    )
    return Adapter(AdapterManifest(Layout.of(made), metadata), 0, "", made)


def delta(layout: Layout, seed: int, scale: float = 0.01) -> bytes:
    """Return the payload of a random update with this layout."""
    rng = np.random.default_rng(seed)
    return layout.join(
        {spec.name: (scale * rng.standard_normal(spec.shape)).astype(np.float32) for spec in layout.tensors}
    )

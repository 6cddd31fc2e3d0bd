"""The adapter that the paper's claim is about: the last two blocks of CineMA-base, q + kv + proj, rank 8, a two-class head."""

from shared.adapter import Adapter, AdapterMetadata

BASE_MODEL = "cd" * 32
FULL_MODEL_BYTES = 358.0e6
"""Of CineMA-base in float32: what full fine-tuning sends."""
RANK, ALPHA = 8, 16.0


def make(frames: str = "stacked") -> Adapter:
    """Return version 0, drawn from a seed for CineMA-base's shapes; nobody has to have its weights."""
    from site_agent import new_adapter
    from site_agent.models.config import ConvViTConfig

    network = ConvViTConfig.of_size("base")
    depth = network.enc_depth
    metadata = AdapterMetadata(
        base_model_sha256=BASE_MODEL,
        rank=RANK,
        alpha=ALPHA,
        target_modules=("q", "kv", "proj"),
        blocks=(depth - 2, depth - 1),
        head_policy="global+local-bias",
        frames=frames,
        task="disease-detection",
        class_names=("normal", "disease"),
        seed=0,
    )
    return new_adapter.draw(network, metadata)

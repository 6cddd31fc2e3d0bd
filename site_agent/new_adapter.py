"""Version 0 of a federation's global adapter: drawn from a seed for a base model, before any site has trained.

What is drawn depends on the adapter's metadata and the shapes of the network alone, so a site that has the base model can draw
it too, with the same digest, instead of downloading it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from shared.adapter import MAX_RANK, Adapter, AdapterManifest, AdapterMetadata
from shared.errors import InputError
from shared.layout import Layout
from site_agent.models import adapter_tensors, lora, networks, weights
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.backbone import Backbone, NetworkConfig
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import Frames
from site_agent.models.head import HeadPolicy
from site_agent.models.lora import DualLoRAConfig
from site_agent.training.site import load_base

MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChoices:
    """What the coordinator decides once. Of the defaults, the paper's abstract fixes the two blocks; the rest is this
    project's choice."""

    frames: Frames = "stacked"
    blocks: tuple[int, ...] | None = None
    """None: the last two."""
    targets: tuple[str, ...] | None = None
    """None: the layers of the backbone's attention."""
    rank: int = 8
    alpha: float = 16.0
    head_policy: HeadPolicy = "global+local-bias"
    task: str = "disease-detection"
    class_names: tuple[str, ...] = ("normal", "disease")
    seed: int = 0
    residual_rank: int = 0
    """Of what fedex-lora keeps beside the factors. (sites - 1) x rank x rounds are enough, and never more than a layer's width."""
    dense: tuple[str, ...] = ()
    """What of the base model itself is trained: everything whose name begins with one of these; "" for all of it."""

    def __post_init__(self) -> None:
        if len(self.class_names) != 2:
            raise InputError(
                f"an adapter needs two class names, normal then disease (cohorts have labels 0 and 1), "
                f"got {len(self.class_names)}"
            )
        if max(self.rank, self.residual_rank) > MAX_RANK:
            raise InputError(f"rank must be at most {MAX_RANK}, got {max(self.rank, self.residual_rank)}")
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"seed must be 0 to 2^63 - 1, got {self.seed}")


def init_adapter(source: Path, size: str, choices: AdapterChoices) -> Adapter:
    """Return version 0 for the base model that lies at `source`.

    Raises InputError for weights that cannot be read, or blocks and targets that the model does not have.
    """
    loaded = load_base(source, size, choices.frames)
    config = DualLoRAConfig(blocks=choices.blocks, targets=choices.targets, rank_local=0)
    metadata = AdapterMetadata(
        base_model_sha256=weights.base_model_sha256(loaded.model),
        rank=choices.rank,
        alpha=choices.alpha,
        target_modules=lora.chosen_targets(loaded.model, config),
        blocks=lora.chosen_blocks(loaded.model, config),
        head_policy=choices.head_policy,
        frames=choices.frames,
        task=choices.task,
        class_names=choices.class_names,
        seed=None if choices.dense else choices.seed,
        base_parameters=sum(value.numel() for value in loaded.model.state_dict().values()),
        base_blocks=len(loaded.model.blocks),
        residual_rank=choices.residual_rank or None,
        dense=choices.dense or None,
    )
    return _drawn(loaded.model, metadata, choices.seed) if choices.dense else draw(loaded.model.config, metadata)


def draw(network: NetworkConfig, metadata: AdapterMetadata) -> Adapter:
    """Return version 0 as the metadata say: A Kaiming-uniform, B and residual zero, head weights uniform in +-1/sqrt(features),
    biases zero.

    `network`: the base model's, for the metadata's frames. Raises InputError if the metadata name no seed, or blocks and
    targets that such a network does not have.
    """
    if metadata.seed is None or metadata.seed > MAX_SEED:
        raise InputError(f"an adapter is drawn from a seed of 0 to 2^63 - 1, got {metadata.seed}")
    # Shapes are enough: nobody reads the base model's numbers here, so CineMA-base takes milliseconds and no memory.
    backbone = networks.build(network, "meta").to_empty(device="cpu")
    return _drawn(backbone, metadata, metadata.seed)


def _drawn(backbone: Backbone, metadata: AdapterMetadata, seed: int) -> Adapter:
    """Return version 0 on this backbone; its own weights are in it where they are trained."""
    generator = torch.Generator().manual_seed(seed)
    frames, policy = cast(Frames, metadata.frames), cast(HeadPolicy, metadata.head_policy)
    model = CineClassifier(backbone, frames, len(metadata.class_names), generator)
    config = DualLoRAConfig(
        blocks=metadata.blocks,
        targets=metadata.target_modules,
        rank_global=metadata.rank,
        rank_local=0,
        alpha_global=metadata.alpha,
        head=policy,
        rank_residual=metadata.residual_rank or 0,
        dense=metadata.dense or (),
    )
    lora.attach(model, config, generator)
    tensors = adapter_tensors.global_tensors(model, Ownership(policy, dense=metadata.dense or ()))
    return Adapter(AdapterManifest(Layout.of(tensors), metadata), 0, "", tensors)

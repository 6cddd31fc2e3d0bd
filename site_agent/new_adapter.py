"""Version 0 of a federation's global adapter: drawn from a seed on a base model, before any site has trained."""

from dataclasses import dataclass
from pathlib import Path

import torch

from shared.adapter import MAX_RANK, Adapter, AdapterManifest, AdapterMetadata
from shared.errors import InputError
from shared.layout import Layout
from site_agent.models import adapter_tensors, lora, weights
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import Frames
from site_agent.models.lora import DualLoRAConfig, HeadPolicy
from site_agent.training.site import load_base


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterChoices:
    """What the coordinator decides once. Of the defaults, the paper's abstract fixes the two blocks; the rest is this
    project's choice."""

    frames: Frames = "stacked"
    blocks: tuple[int, ...] | None = None
    """None: the last two."""
    targets: tuple[str, ...] = ("q", "kv", "proj")
    rank: int = 8
    alpha: float = 16.0
    head_policy: HeadPolicy = "global+local-bias"
    task: str = "disease-detection"
    class_names: tuple[str, ...] = ("normal", "disease")
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.class_names) != 2:
            raise InputError(
                f"an adapter needs two class names, normal then disease (cohorts have labels 0 and 1), "
                f"got {len(self.class_names)}"
            )
        if self.rank > MAX_RANK:
            raise InputError(f"rank must be at most {MAX_RANK}, got {self.rank}")


def init_adapter(source: Path, size: str, choices: AdapterChoices) -> Adapter:
    """Return version 0: A Kaiming-uniform from the seed, B zero, head weights uniform in +-1/sqrt(features).

    Raises InputError for weights that cannot be read, or blocks and targets that the model does not have.
    """
    loaded = load_base(source, size, choices.frames)
    generator = torch.Generator().manual_seed(choices.seed)
    model = CineClassifier(loaded.model, loaded.frames, len(choices.class_names), generator)
    config = DualLoRAConfig(
        blocks=choices.blocks,
        targets=choices.targets,
        rank_global=choices.rank,
        rank_local=0,
        alpha_global=choices.alpha,
        head=choices.head_policy,
    )
    blocks = tuple(sorted({int(p.split(".")[2]) for p in lora.layer_paths(model, config)}))
    base_model = weights.base_model_sha256(loaded.model)
    lora.attach(model, config, generator)
    tensors = adapter_tensors.global_tensors(model, choices.head_policy)
    metadata = AdapterMetadata(
        base_model_sha256=base_model,
        rank=choices.rank,
        alpha=choices.alpha,
        target_modules=choices.targets,
        blocks=blocks,
        head_policy=choices.head_policy,
        frames=choices.frames,
        task=choices.task,
        class_names=choices.class_names,
    )
    return Adapter(AdapterManifest(Layout.of(tensors), metadata), 0, "", tensors)

"""A site's state folder as after a round, without a federation: contract, a version, a local adapter, all filled with noise."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from shared.adapter import Adapter
from shared.contract import Contract
from shared.recipe import Recipe
from site_agent import round_files
from site_agent.models import adapter_tensors, networks, weights
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.monai_config import MonaiViTConfig
from site_agent.state import State
from site_agent.training.site import build, load_base
from tests.support import tiny_site

VIT = MonaiViTConfig(
    in_channels=1, img_size=tiny_site.SIZE, patch_size=(8, 8, 2), hidden_size=16, mlp_dim=32, num_layers=3, num_heads=2
)


def write_vit(folder: Path) -> Path:
    """Write a random MONAI ViT of one frame as weights that an agent can load."""
    torch.manual_seed(5)
    weights.save_backbone(folder, VIT, networks.build(VIT).state_dict())
    return folder


def write(folder: Path, backbone: Path, recipe: Recipe, **choices: Any) -> tuple[Contract, Adapter]:
    """Write a state folder; every number of the adapters is drawn, so that a part that is lost would show."""
    contract, initial = tiny_site.contract(backbone, recipe, **choices)
    rng = np.random.default_rng(7)
    version = Adapter(initial.manifest, 0, "", noisy(initial.tensors, rng))
    metadata = contract.manifest.metadata
    model = build(load_base(backbone, "", metadata.frames, warn=False), contract, 0)  # type: ignore[arg-type]
    local = noisy(adapter_tensors.local_tensors(model, Ownership.of(metadata, recipe)), rng)
    state = State(folder)
    state.bind(contract)
    state.store_global(version)
    state.close()
    first = round_files.folder_of(folder / round_files.ROUNDS, 0)
    first.mkdir(parents=True)
    save_file(local, first / round_files.LOCAL)
    return contract, version


def noisy(tensors: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the tensors with noise added."""
    return {name: (value + rng.normal(0, 0.2, value.shape)).astype(np.float32) for name, value in tensors.items()}

"""SYNTHETIC networks and prepared cases of CineMA's size: random weights, images of noise."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from site_agent.cache.activations import Cache
from site_agent.cache.folder import CacheFolder
from site_agent.data import cases as table
from site_agent.data import nifti
from site_agent.data.cases import CASES, Case
from site_agent.data.cohort import PREPARATION
from site_agent.data.folds import FOLDS
from site_agent.models import lora
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import ConvViTConfig
from site_agent.models.convvit import ConvViT
from site_agent.models.lora import DualLoRAConfig
from site_agent.training.activations import Activations
from site_agent.training.compute import Compute

BASE = ConvViTConfig.base()
SHAPE = BASE.image_size
SPACING_MM = (1.0, 1.0, 10.0)
CACHE_BYTES = 16_000_000_000
BACKGROUND_SHARE = 0.6
"""Of a prepared image, which compresses as well as real ones do."""


def of_width(width: int, depth: int) -> ConvViTConfig:
    """Return CineMA-base, narrower and less deep, with heads of 64 as it has."""
    return replace(BASE, enc_embed_dim=width, enc_n_heads=width // 64, enc_depth=depth)


def classifier(config: ConvViTConfig, seed: int = 0) -> CineClassifier:
    """Return a frozen random network under heads that are trained."""
    generator = torch.Generator().manual_seed(seed)
    backbone = ConvViT(config, heads=False, generator=generator).requires_grad_(False).eval()
    return CineClassifier(backbone, "stacked", 2, generator)


def dual(config: ConvViTConfig, blocks: tuple[int, ...] | None = None, seed: int = 0) -> CineClassifier:
    """Return a classifier with dual adapters, on the last two blocks if none are named. B is drawn too: no gradient is zero."""
    model = classifier(config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    lora.attach(model, DualLoRAConfig(blocks=blocks), generator)
    for layer in lora.adapted_layers(model).values():
        for part in layer.scales:
            nn.init.uniform_(layer.lora_B[part], -0.01, 0.01, generator=generator)
    return model.eval()


def images(count: int, config: ConvViTConfig = BASE, seed: int = 0) -> torch.Tensor:
    """(count, 2, x, y, z) in [0, 1]"""
    return torch.rand((count, 2, *config.image_size), generator=torch.Generator().manual_seed(seed))


def activations(
    model: CineClassifier, folder: Path | None, compute: Compute, stored: torch.dtype = torch.float16
) -> Activations:
    """Return a model's activations, kept in a folder if one is given."""
    facts = {"synthetic": True, "first_block": model.first_block, "stored": str(stored), "device": str(compute.device)}
    cache = Cache.of(CacheFolder(folder, CACHE_BYTES), facts) if folder else None
    return Activations(model, SHAPE, 0, compute, cache, stored)


def cohort(folder: Path, training: int, test: int = 0) -> tuple[Case, ...]:
    """Write a prepared cohort that a site can train on; every other case is normal."""
    rng = np.random.default_rng(0)
    written = tuple(_case(folder, number, number < training, rng) for number in range(training + test))
    table.write(folder / CASES, written)
    preparation = {"spacing_mm": SPACING_MM, "size": SHAPE[:2], "preprocessing_hash": "synthetic"}
    (folder / PREPARATION).write_text(json.dumps(preparation), encoding="utf-8")
    return written


def _case(folder: Path, number: int, trained_on: bool, rng: np.random.Generator) -> Case:
    label = number % 2
    case = Case(
        case_id=f"S{number:03d}",
        dataset="synthetic",
        vendor="synthetic",
        centre="1",
        diagnosis="DCM" if label else "NOR",
        label=label,
        split="train" if trained_on else "test",
        fold=number // 2 % FOLDS if trained_on else None,
        n_slices=SHAPE[2],
        ed=0,
        es=1,
        crop="centre",
        folder=folder / "synthetic" / f"S{number:03d}",
    )
    case.folder.mkdir(parents=True)
    for path in (case.ed_path, case.es_path):
        voxels = rng.integers(1, 255, SHAPE, dtype=np.uint8) * (rng.random(SHAPE) > BACKGROUND_SHARE)
        nifti.write_uint8(path, nifti.Volume(voxels.astype(np.uint8), SPACING_MM, np.eye(3), np.zeros(3)))
    return case

"""One site without a network: a few cases of noise on disk and a classifier of a few thousand numbers with dual adapters."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from site_agent.data.cases import Case
from site_agent.models import lora
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import ConvViTConfig, Frames
from site_agent.models.convvit import ConvViT
from site_agent.models.lora import DualLoRAConfig, HeadPolicy
from site_agent.training.activations import Activations

SIZE = (32, 32, 4)
CONFIG = ConvViTConfig(
    image_size=SIZE, enc_conv_chans=(4, 8), enc_conv_n_blocks=1, enc_embed_dim=12, enc_depth=3, enc_n_heads=2
)


def write_cases(folder: Path, count: int, seed: int = 0, slices: int = 4) -> tuple[Case, ...]:
    """Write prepared cases of noise, brighter where the label is 1; every third is normal."""
    rng = np.random.default_rng(seed)
    cases = []
    for index in range(count):
        label = int(index % 3 != 0)
        case = Case(
            case_id=f"P{index:03d}",
            dataset="mnms",
            vendor="ge",
            centre="1",
            diagnosis="DCM" if label else "NOR",
            label=label,
            split="train",
            fold=index % 5,
            n_slices=slices,
            ed=0,
            es=1,
            crop="mask",
            folder=folder / "mnms" / f"P{index:03d}",
        )
        case.folder.mkdir(parents=True)
        for path in (case.ed_path, case.es_path):
            voxels = rng.integers(0, 128, (32, 32, slices)) + 100 * label
            nib.save(nib.Nifti1Image(voxels.astype(np.uint8), np.diag([4.0, 4.0, 20.0, 1.0])), path)
        cases.append(case)
    return tuple(cases)


def classifier(
    frames: Frames = "stacked", head: HeadPolicy = "global+local-bias", seed: int = 0, kind: type = CineClassifier
) -> CineClassifier:
    """Return a random classifier with rank 2 + 2 adapters on its last two blocks; B drawn too, so that no gradient is zero."""
    generator = torch.Generator().manual_seed(seed)
    backbone = ConvViT(CONFIG.for_frames(frames), heads=False, generator=generator)
    model: CineClassifier = kind(backbone, frames, 2, generator)
    lora.attach(model, DualLoRAConfig(rank_global=2, rank_local=2, head=head), generator)
    for layer in lora.adapted_layers(model).values():
        for part in lora.PARTS:
            torch.nn.init.uniform_(layer.lora_B[part], -0.1, 0.1, generator=generator)
    return model.eval()


def activations(model: CineClassifier, limit_bytes: int = 1 << 30, seed: int = 0) -> Activations:
    """Return a cache for the model's prefixes."""
    return Activations(model, SIZE, seed, torch.device("cpu"), limit_bytes)

"""One site without a network: a few cases of noise on disk and a classifier of a few thousand numbers with dual adapters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from shared.adapter import Adapter, AdapterManifest, AdapterMetadata
from shared.contract import Contract, RoundPolicy
from shared.layout import Layout
from shared.recipe import Recipe
from site_agent.cache.activations import Cache
from site_agent.cache.folder import CacheFolder
from site_agent.config import SiteConfig
from site_agent.data.cases import Case
from site_agent.data.cohort import Cohort, Preparation
from site_agent.models import lora, weights
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import ConvViTConfig, Frames
from site_agent.models.convvit import ConvViT
from site_agent.models.loading import LoadReport
from site_agent.models.weights import LoadedBackbone
from site_agent.new_adapter import AdapterChoices, init_adapter
from site_agent.training.activations import Activations
from site_agent.training.compute import Compute
from site_agent.training.site import SiteTrainer, build, load_base
from tests.support import methods

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


def metadata(recipe: Recipe, **choices: Any) -> AdapterMetadata:
    """Return what is said of an adapter that this recipe can train: rank 2, the network's last two blocks."""
    said: dict[str, Any] = {
        "base_model_sha256": "ab" * 32,
        "rank": methods.RANK,
        "alpha": 16.0,
        "target_modules": ConvViT.attention_linears,
        "blocks": (1, 2),
        "head_policy": "global+local-bias",
        "frames": "stacked",
        "task": "disease-detection",
        "class_names": ("normal", "disease"),
    }
    return AdapterMetadata(**{**said, **methods.choices(recipe.name), **choices})


def classifier(
    frames: Frames = "stacked", seed: int = 0, rank_local: int = 2, recipe: Recipe | None = None, **choices: Any
) -> CineClassifier:
    """Return a random classifier as a site builds it for a recipe and an adapter; B is drawn too, so that no gradient is zero."""
    recipe = recipe or Recipe(rank_local=rank_local)
    generator = torch.Generator().manual_seed(seed)
    network = ConvViT(CONFIG.for_frames(frames), heads=False, generator=generator).eval()
    report = LoadReport(
        kind="encoder", loaded=(), rebuilt=(), ignored=(), kernel_repeated=False, frames_see_same_kernel=False
    )
    manifest = AdapterManifest(Layout(()), metadata(recipe, frames=frames, **choices))
    policy = RoundPolicy(invited=1, quorum=1)
    agreed = Contract(federation="hearts", adapter_digest="", manifest=manifest, recipe=recipe, policy=policy)
    model = build(LoadedBackbone(model=network, heads={}, frames=frames, report=report), agreed, seed)
    for layer in lora.adapted_layers(model).values():
        for component in layer.scales:
            drawn = [layer.lora_B[component]] + [layer.lora_A[component]] * (component == "residual")
            for factor in drawn:
                torch.nn.init.uniform_(factor, -0.1, 0.1, generator=generator)
    return model


def activations(
    model: CineClassifier, folder: CacheFolder | None = None, seed: int = 0, device: str = "cpu", **options: Any
) -> Activations:
    """Return the model's frozen activations, kept in a folder if one is given. Brings the model to the device."""
    facts = {"model": "tiny", "first_block": model.first_block, "device": device}
    cache = Cache.of(folder, facts) if folder else None
    compute = Compute(torch.device(device))
    return Activations(model.to(compute.device), SIZE, seed, compute, cache, **options)


def write_backbone(folder: Path, seed: int = 1) -> Path:
    """Write a random backbone of the same network as weights that an agent can load."""
    network = ConvViT(CONFIG, heads=False, generator=torch.Generator().manual_seed(seed))
    weights.save_backbone(folder, CONFIG, network.state_dict())
    return folder


def contract(backbone: Path, recipe: Recipe, rounds: int = 4, **choices: Any) -> tuple[Contract, Adapter]:
    """Return a contract on this base model, with adapters of rank 2 that the recipe can train, and version 0."""
    chosen = {"rank": methods.RANK, "seed": 3, **methods.choices(recipe.name), **choices}
    initial = init_adapter(backbone, "", AdapterChoices(**chosen))
    policy = RoundPolicy(rounds=rounds, invited=2, quorum=2)
    made = Contract(
        federation="hearts",
        adapter_digest=initial.digest,
        manifest=initial.manifest,
        recipe=recipe,
        policy=policy,
    )
    return made, initial


def trainer(
    folder: Path, backbone: Path, contract: Contract, site: str = "ge", cases: int = 12, **settings: Any
) -> SiteTrainer:
    """Return a site's trainer on cases of its own, written to `folder`: every fifth is for validation, two are held out."""
    written = write_cases(folder, cases + 2, seed=len(site))
    held_out = tuple(replace(case, split="test", fold=None) for case in written[cases:])
    preparation = Preparation((4.0, 4.0, 20.0), SIZE[:2], "none")
    cohort = Cohort(folder, "ge", (*written[:cases], *held_out), preparation)
    config = SiteConfig(
        aggregator="127.0.0.1:1",
        plain_site=site,
        cohort=folder,
        weights=backbone,
        **{"cache": folder / "activations", "cache_dtype": "float32", **settings},
    )
    return SiteTrainer(config, site, contract, load_base(backbone, "", "stacked"), cohort)

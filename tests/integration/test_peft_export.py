"""What `aggregator export` and `site-agent export` write is loaded by the real peft package, with the same logits."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from shared import peft
from shared.adapter import Adapter
from shared.contract import Contract, RoundPolicy
from shared.errors import InputError
from shared.methods import GLOBAL
from shared.recipe import Recipe
from site_agent import new_adapter
from site_agent.models import adapter_tensors, lora, weights
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import ConvViTConfig
from site_agent.models.convvit import ConvViT
from site_agent.training.site import build, load_base

CONFIG = ConvViTConfig(
    image_size=(32, 32, 4),
    enc_patch_size=(4, 4, 1),
    enc_conv_chans=(4, 8),
    enc_conv_n_blocks=1,
    enc_embed_dim=24,
    enc_depth=3,
    enc_n_heads=2,
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    model = ConvViT(CONFIG, heads=False, generator=torch.Generator().manual_seed(3))
    weights.save_backbone(folder, CONFIG, model.state_dict())
    return folder


def noisy_version(backbone: Path, **choices: Any) -> Adapter:
    """Version 0 with B and a residual filled too, so that a lost factor would show."""
    adapter = new_adapter.init_adapter(backbone, "", new_adapter.AdapterChoices(rank=3, alpha=5.0, **choices))
    rng = np.random.default_rng(7)
    tensors = {n: (t + rng.normal(0, 0.1, t.shape)).astype(np.float32) for n, t in adapter.tensors.items()}
    return Adapter(adapter.manifest, 0, "", tensors)


def classifier(backbone: Path, adapter: Adapter, **parameters: Any) -> CineClassifier:
    policy = RoundPolicy(rounds=1, invited=1, quorum=1)
    recipe = Recipe(rank_local=2, alpha_local=6.0, **parameters)
    contract = Contract(
        federation="t", adapter_digest=adapter.digest, manifest=adapter.manifest, recipe=recipe, policy=policy
    )
    model = build(load_base(backbone, "", "stacked"), contract, seed=1)
    adapter_tensors.load_global(model, Ownership.of(adapter.manifest.metadata, recipe), adapter.tensors)
    return model


def peft_logits(backbone: Path, folder: Path, image: torch.Tensor) -> torch.Tensor:
    base = ConvViT(CONFIG, heads=True)
    base.load_state_dict(weights.read_tensors(backbone / "model.safetensors"), strict=False)
    model = PeftModel.from_pretrained(base.eval(), str(folder))
    with torch.no_grad():
        return model(image)


def aggregator(*arguments: str) -> None:
    command = Path(sys.executable).parent / "aggregator"
    subprocess.run([command, *arguments], check=True, capture_output=True, timeout=60)


def test_global_part_exported_by_the_aggregator_has_our_logits(backbone: Path, tmp_path: Path) -> None:
    adapter = noisy_version(backbone)
    adapter.write(tmp_path / "v0.safetensors")
    store = str(tmp_path / "fed.db")
    adapter_file = str(tmp_path / "v0.safetensors")
    aggregator("init", "--store", store, "--federation", "t", "--adapter", adapter_file, "--site", "a", "--quorum", "1")
    aggregator("export", "--store", store, "--version", "0", "--out", str(tmp_path / "peft"))

    model = classifier(backbone, adapter)
    lora.switch(model, GLOBAL)
    image = torch.rand(3, 2, 32, 32, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(image)
    torch.testing.assert_close(peft_logits(backbone, tmp_path / "peft", image), ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("choices", "parameters", "rank"),
    [
        ({}, {}, 5),
        ({"head_policy": "global+local"}, {"gate": True}, 5),
        ({"residual_rank": 4}, {"name": "fedex-lora"}, 9),
    ],
    ids=["plain", "gates and two heads", "residual"],
)
def test_global_and_local_exported_by_the_site_have_our_logits(
    backbone: Path, tmp_path: Path, choices: dict[str, Any], parameters: dict[str, Any], rank: int
) -> None:
    adapter = noisy_version(backbone, **choices)
    model = classifier(backbone, adapter, **parameters)
    rng, owned = np.random.default_rng(9), Ownership(adapter.manifest.metadata.head_policy)  # type: ignore[arg-type]
    local = adapter_tensors.local_tensors(model, owned)
    local = {n: (t + rng.normal(0, 0.1, t.shape)).astype(np.float32) for n, t in local.items()}
    adapter_tensors.load_local(model, owned, local)
    combined = adapter_tensors.combined_tensors(model)
    peft.write_folder(tmp_path, combined, adapter.manifest.metadata, rank=rank, alpha=float(rank))
    image = torch.rand(3, 2, 32, 32, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(image)
        lora.switch(model, ("global",))
        without_local = model(image)
    assert not torch.allclose(ours, without_local, atol=1e-3)
    torch.testing.assert_close(peft_logits(backbone, tmp_path, image), ours, atol=1e-5, rtol=0)


def test_siamese_adapters_are_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    one_frame = ConvViTConfig.from_mapping(
        {**{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__}, "n_frames": 1}, "test"
    )
    folder = tmp_path / "backbone"
    weights.save_backbone(folder, one_frame, ConvViT(one_frame, heads=False).state_dict())
    adapter = noisy_version(folder, frames="siamese")
    with pytest.raises(InputError, match=r"frames siamese.*site-agent predict"):
        peft.write_folder(tmp_path / "peft", adapter.tensors, adapter.manifest.metadata, rank=3, alpha=5.0)

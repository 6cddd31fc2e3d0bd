"""Version 0: a function of base model, choices and seed; training from it starts at the base model."""

import math

import numpy as np
import pytest
import torch

from shared.adapter import Adapter
from shared.errors import InputError
from site_agent.models import weights
from site_agent.models.convvit import ConvViT
from site_agent.new_adapter import AdapterChoices, init_adapter
from tests.support import tiny_site


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    network = ConvViT(tiny_site.CONFIG, heads=False, generator=torch.Generator().manual_seed(1))
    weights.save_backbone(folder, tiny_site.CONFIG, network.state_dict())
    return folder


def test_it_has_exactly_the_chosen_tensors_under_peft_names(backbone):
    adapter = init_adapter(backbone, "", AdapterChoices(targets=("q", "proj"), rank=3))
    lora = {
        f"base_model.model.encoder.blocks.{block}.attn.{target}.lora_{part}.weight": (3, 12) if part == "A" else (12, 3)
        for block in (1, 2)
        for target in ("q", "proj")
        for part in "AB"
    }
    heads = {f"base_model.model.pred_head_dict.{name}.weight": (2, 12) for name in ("cls", "sax")}
    assert {name: value.shape for name, value in adapter.tensors.items()} == lora | heads


def test_a_is_drawn_from_its_range_and_b_is_zero(backbone):
    adapter = init_adapter(backbone, "", AdapterChoices())
    for name, value in adapter.tensors.items():
        if name.endswith("lora_B.weight"):
            assert not value.any(), name
        else:  # Kaiming-uniform with a = sqrt(5) is uniform within 1 / sqrt(inputs), as are the heads
            bound = 1 / math.sqrt(value.shape[1])
            assert 0.7 * bound < np.abs(value).max() <= bound, name


def test_the_same_seed_has_the_same_digest_and_another_seed_another(backbone):
    digests = [init_adapter(backbone, "", AdapterChoices(seed=seed)).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_it_says_what_it_is_for_and_survives_its_file(backbone, tmp_path):
    adapter = init_adapter(backbone, "", AdapterChoices(rank=3, alpha=6.0, blocks=(2, 0), class_names=("well", "ill")))
    metadata = adapter.manifest.metadata
    assert (adapter.version, adapter.parent_digest) == (0, "")
    assert (metadata.rank, metadata.alpha, metadata.blocks, metadata.class_names) == (3, 6.0, (0, 2), ("well", "ill"))
    assert metadata.base_model_sha256 == weights.base_model_sha256(weights.load_backbone(backbone).model)
    adapter.write(tmp_path / "v0.safetensors")
    assert Adapter.read(tmp_path / "v0.safetensors").digest == adapter.digest


@pytest.mark.parametrize(
    ("policy", "shared"), [("global", {"weight", "bias"}), ("global+local-bias", {"weight"}), ("local", set())]
)
def test_the_head_policy_decides_which_part_of_the_head_travels(backbone, policy, shared):
    adapter = init_adapter(backbone, "", AdapterChoices(head_policy=policy))
    assert {name.rpartition(".")[2] for name in adapter.tensors if "pred_head_dict" in name} == shared


def test_siamese_frames_have_heads_on_mean_and_difference(tmp_path):
    one_frame = tiny_site.CONFIG.for_frames("siamese")
    network = ConvViT(one_frame, heads=False, generator=torch.Generator().manual_seed(1))
    weights.save_backbone(tmp_path, one_frame, network.state_dict())
    siamese, stacked = (init_adapter(tmp_path, "", AdapterChoices(frames=frames)) for frames in ("siamese", "stacked"))
    assert siamese.tensors["base_model.model.pred_head_dict.sax.weight"].shape == (2, 24)
    assert stacked.tensors["base_model.model.pred_head_dict.sax.weight"].shape == (2, 12)
    assert siamese.manifest.metadata.base_model_sha256 == stacked.manifest.metadata.base_model_sha256


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"blocks": (7,)}, "block 7 does not exist; the backbone has blocks 0 to 2"),
        ({"targets": ("qkv",)}, "no layer called 'qkv' to adapt; a block has"),
        ({"rank": 0}, "ranks must not be negative nor both 0"),
        ({"alpha": 0.0}, "alphas must be positive"),
        ({"head_policy": "private"}, "unknown head policy 'private'"),
        ({"frames": "mono"}, "frames must be one of stacked, siamese, got 'mono'"),
    ],
)
def test_a_choice_that_cannot_be_made_is_named(backbone, choices, message):
    with pytest.raises(InputError, match=message):
        init_adapter(backbone, "", AdapterChoices(**choices))


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no weights at .*absent"):
        init_adapter(tmp_path / "absent", "", AdapterChoices())


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"class_names": ("a", "b", "c")}, "two class names, normal then disease .* got 3"),
        ({"rank": 100_000}, "rank must be at most 1024, got 100000"),
    ],
)
def test_numbers_no_site_could_train_are_refused_before_anything_is_loaded(choices, message):
    with pytest.raises(InputError, match=message):
        AdapterChoices(**choices)

"""Version 0: a function of base model, choices and seed; training from it starts at the base model."""

import math
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch

from shared.adapter import Adapter
from shared.errors import InputError
from shared.recipe import Recipe
from site_agent import starting
from site_agent.models import networks, weights
from site_agent.models.config import ConvViTConfig
from site_agent.models.convvit import ConvViT
from site_agent.models.monai_config import MonaiViTConfig
from site_agent.new_adapter import AdapterChoices, draw, init_adapter
from tests.support import tiny_site

MONAI = MonaiViTConfig(
    in_channels=1, img_size=(32, 32, 2), patch_size=(16, 16, 1), hidden_size=12, mlp_dim=24, num_layers=3, num_heads=2
)


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
    ("policy", "shared"),
    [
        ("global", {"weight", "bias"}),
        ("global+local-bias", {"weight"}),
        ("local", set()),
        ("global+local", {"weight", "bias"}),
    ],
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
        ({"rank": -1}, "rank must be 0 to 1024 and alpha positive, got rank=-1"),
        ({"alpha": 0.0}, "rank must be 0 to 1024 and alpha positive, got rank=8, alpha=0"),
        ({"head_policy": "private"}, "head policy 'private' is none of global, local, "),
        ({"residual_rank": -1}, "adapter metadata 'residual_rank' must not be negative, got -1"),
        ({"rank": 0, "residual_rank": 3}, "a residual goes with a global part"),
        ({"dense": ("stem.",)}, "no weight of the base model begins with 'stem.'"),
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
        ({"residual_rank": 100_000}, "rank must be at most 1024, got 100000"),
    ],
)
def test_numbers_no_site_could_train_are_refused_before_anything_is_loaded(choices, message):
    with pytest.raises(InputError, match=message):
        AdapterChoices(**choices)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_torch_cannot_take_is_refused(seed):
    with pytest.raises(InputError, match=r"seed must be 0 to 2\^63 - 1"):
        AdapterChoices(seed=seed)


# --- drawn at a site ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"seed": 2**63 - 1},
        {"blocks": (2, 0), "targets": ("fc1", "proj", "q"), "rank": 3, "alpha": 6.0},
        {"head_policy": "local"},
        {"head_policy": "global", "class_names": ("well", "ill"), "task": "screening"},
        {"head_policy": "global+local"},
        {"rank": 0},
        {"residual_rank": 5},
    ],
)
@pytest.mark.parametrize("frames", ["stacked", "siamese"])
def test_what_a_site_draws_from_the_files_metadata_is_the_file(tmp_path, frames, choices):
    one_frame = tiny_site.CONFIG.for_frames("siamese")
    network = ConvViT(one_frame, heads=False, generator=torch.Generator().manual_seed(1))
    weights.save_backbone(tmp_path, one_frame, network.state_dict())
    init_adapter(tmp_path, "", AdapterChoices(frames=frames, **choices)).write(tmp_path / "v0.safetensors")
    file = Adapter.read(tmp_path / "v0.safetensors")
    drawn = draw(weights.load_backbone(tmp_path, frames=frames).model.config, file.manifest.metadata)
    assert drawn.to_bytes() == file.to_bytes()
    assert drawn.digest == file.digest


@pytest.mark.parametrize("frames", ["stacked", "siamese"])
def test_on_a_monai_vit_the_file_names_its_own_layers_and_a_site_draws_the_same(tmp_path, frames):
    weights.save_backbone(tmp_path, MONAI, networks.build(MONAI).state_dict())
    file = init_adapter(tmp_path, "", AdapterChoices(frames=frames, rank=3))
    metadata = file.manifest.metadata
    assert (metadata.target_modules, metadata.blocks, metadata.base_blocks) == (("qkv", "proj"), (1, 2), 3)
    assert {name: value.shape for name, value in file.tensors.items() if "blocks.2.attn.qkv" in name} == {
        "base_model.model.blocks.2.attn.qkv.lora_A.weight": (3, 12),
        "base_model.model.blocks.2.attn.qkv.lora_B.weight": (36, 3),
    }
    drawn = draw(weights.load_backbone(tmp_path, frames=frames).model.config, metadata)
    assert drawn.to_bytes() == file.to_bytes()


def test_targets_of_another_network_are_refused_with_what_this_one_has(tmp_path):
    weights.save_backbone(tmp_path, MONAI, networks.build(MONAI).state_dict())
    with pytest.raises(InputError, match="no layer called 'kv' to adapt; a block has qkv, proj, fc1, fc2"):
        init_adapter(tmp_path, "", AdapterChoices(targets=("kv",)))


def test_what_is_drawn_does_not_depend_on_torchs_own_generator(backbone):
    metadata = init_adapter(backbone, "", AdapterChoices()).manifest.metadata
    digests = []
    for state in (5, 6):
        torch.manual_seed(state)
        digests.append(draw(tiny_site.CONFIG, metadata).digest)
    assert digests[0] == digests[1]


def test_another_seed_draws_another_version_and_a_missing_one_none(backbone):
    file = init_adapter(backbone, "", AdapterChoices(seed=4))
    metadata = file.manifest.metadata
    other = draw(tiny_site.CONFIG, replace(metadata, seed=5))
    assert other.digest != file.digest
    assert any(not np.array_equal(value, file.tensors[name]) for name, value in other.tensors.items())
    for seed in (None, 2**63):
        with pytest.raises(InputError, match=r"drawn from a seed of 0 to 2\^63 - 1"):
            draw(tiny_site.CONFIG, replace(metadata, seed=seed))


def test_a_site_takes_what_it_draws_only_if_it_is_the_contracts(backbone, tmp_path):
    contract, initial = tiny_site.contract(backbone, Recipe(rank_local=2, augmentation="none"))
    trainer = tiny_site.trainer(tmp_path, backbone, contract)
    drawn = starting.version_0(trainer, contract)
    assert drawn is not None
    assert drawn.to_bytes() == initial.to_bytes()
    for seed in (None, 17, 2**70):
        metadata = replace(contract.manifest.metadata, seed=seed)
        changed = replace(contract, manifest=replace(contract.manifest, metadata=metadata))
        assert starting.version_0(trainer, changed) is None
    trained = initial.successor({name: value + 1 for name, value in initial.tensors.items()}, 0)
    assert starting.version_0(trainer, replace(contract, adapter_digest=trained.digest)) is None


def test_it_says_how_large_the_base_model_is(backbone):
    metadata = init_adapter(backbone, "", AdapterChoices()).manifest.metadata
    tensors = weights.read_tensors(backbone / "model.safetensors")
    assert metadata.base_parameters == sum(value.numel() for value in tensors.values())
    assert (metadata.base_blocks, metadata.seed) == (3, 0)


def test_at_cinemas_size_a_site_draws_version_0_without_the_memory_of_the_model(backbone):
    """Two blocks, q, kv and proj, rank 8, and two heads: 2 (8 (768 + 768) + 8 (768 + 1536) + 8 (768 + 768)) + 2 · 2 · 768."""
    metadata = replace(init_adapter(backbone, "", AdapterChoices()).manifest.metadata, blocks=(10, 11))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    drawn = draw(ConvViTConfig.base(), metadata)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    assert drawn.manifest.layout.parameters == 89_088
    assert grown_mb < 100

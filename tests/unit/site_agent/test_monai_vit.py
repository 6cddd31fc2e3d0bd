"""MONAI's ViT as a backbone: MONAI's own numbers and names, its config, and that nobody else pays for loading MONAI."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from monai.networks.nets.vit import ViT
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from shared import peft
from shared.errors import InputError
from site_agent.cache import entries
from site_agent.models import adapter_tensors, lora, networks, weights
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.backbone import Prefix
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import ConvViTConfig
from site_agent.models.lora import DualLoRAConfig
from site_agent.models.monai_config import MonaiViTConfig
from site_agent.models.monai_vit import FIRST_KERNEL, MonaiViT
from site_agent.new_adapter import AdapterChoices, init_adapter

SMALL = MonaiViTConfig(
    in_channels=2, img_size=(16, 24, 4), patch_size=(8, 8, 2), hidden_size=24, mlp_dim=40, num_layers=3, num_heads=2
)
TOKENS = 2 * 3 * 2
WITH_CLASS_TOKEN = replace(SMALL, classification=True, qkv_bias=True)
BOTH = pytest.mark.parametrize("config", [SMALL, WITH_CLASS_TOKEN], ids=["without", "with"])
"""A class token."""


def original(config: MonaiViTConfig, seed: int = 1) -> ViT:
    """A plain ViT of MONAI's; norms and tokens are drawn too, so that none of them is a one or a zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ViT(
            config.in_channels,
            config.img_size,
            config.patch_size,
            config.hidden_size,
            config.mlp_dim,
            config.num_layers,
            config.num_heads,
            classification=config.classification,
            qkv_bias=config.qkv_bias,
        )
        for name, value in model.named_parameters():
            if "norm" in name or name == "cls_token":
                nn.init.normal_(value, mean=0.5, std=0.5)
    return model.eval().requires_grad_(False)


def written(folder, config=SMALL, tensors=None):
    """The folder that a person makes of a checkpoint: config.json and MONAI's own state_dict."""
    weights.save_backbone(folder, config, original(config).state_dict() if tensors is None else tensors)
    return folder


def loaded(tmp_path, config) -> MonaiViT:
    model = weights.load_backbone(written(tmp_path / "bb", config)).model
    assert isinstance(model, MonaiViT)
    return model


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 2, 16, 24, 4, generator=torch.Generator().manual_seed(2))


# --- numbers and names ----------------------------------------------------------------------------------------------


def test_features_are_the_tokens_that_monais_network_returns(tmp_path, image):
    features = (model := loaded(tmp_path, SMALL)).suffix(model.prefix(image, 1), 1)
    tokens, _ = original(SMALL)(image)
    assert tokens.shape == (2, TOKENS, 24)
    assert torch.equal(features.patch, tokens)


def test_monais_classification_head_gives_its_logits_on_our_class_token(tmp_path, image):
    features = (model := loaded(tmp_path, WITH_CLASS_TOKEN)).suffix(model.prefix(image, 1), 1)
    plain = original(WITH_CLASS_TOKEN)
    logits, hidden = plain(image)
    assert torch.equal(plain.classification_head(features.cls[:, 0]), logits)
    assert torch.equal(features.patch, plain.norm(hidden[-1])[:, 1:])


def test_the_mean_patch_token_stands_in_for_a_class_token(tmp_path, image):
    features = (model := loaded(tmp_path, SMALL)).suffix(model.prefix(image, 0), 0)
    torch.testing.assert_close(features.cls[:, 0], features.patch.mean(dim=1))


@BOTH
def test_the_network_may_be_cut_before_any_block(tmp_path, image, config):
    model = loaded(tmp_path, config)
    whole = model.suffix(model.prefix(image, 0), 0)
    assert (whole.patch.shape, whole.cls.shape) == ((2, TOKENS, 24), (2, 1, 24))
    for first_block in range(1, config.num_layers + 1):
        features = model.suffix(model.prefix(image, first_block), first_block)
        assert torch.equal(features.patch, whole.patch)
        assert torch.equal(features.cls, whole.cls)


@BOTH
def test_tensors_have_monais_names_without_head_and_cross_attention(config):
    ours = {name: value.shape for name, value in networks.build(config).state_dict().items()}
    theirs = {name: value.shape for name, value in original(config).state_dict().items()}
    assert ours == {n: shape for n, shape in theirs.items() if "cross_attn" not in n and "classification_head" not in n}


@BOTH
def test_features_are_the_same_in_training_mode(tmp_path, image, config):
    model = loaded(tmp_path, config)
    expected = model.suffix(model.prefix(image, 1), 1)
    model.train()
    assert torch.equal(model.suffix(model.prefix(image, 1), 1).patch, expected.patch)


def test_a_prefix_has_no_skips_and_is_cached_without_them(tmp_path, image):
    model = loaded(tmp_path, SMALL)
    prefix = model.prefix(image, 1)
    assert prefix.skips.shape == (2, 0, 24)
    (tmp_path / "entry").write_bytes(entries.write(b"{}", Prefix(prefix.tokens[0], prefix.skips[0])))
    found = entries.read(tmp_path / "entry", b"{}")
    assert found is not None
    features = model.suffix(Prefix(found.tokens[None], found.skips[None]), 1)
    torch.testing.assert_close(features.patch, model.suffix(prefix, 1).patch[:1])


def test_a_prefix_kept_in_half_precision_changes_features_by_rounding_only(tmp_path, image):
    model = loaded(tmp_path, SMALL)
    prefix = model.prefix(image, 1)
    halved = model.suffix(Prefix(prefix.tokens.half(), prefix.skips.half()), 1)
    assert halved.patch.dtype == torch.float32
    torch.testing.assert_close(halved.patch, model.suffix(prefix, 1).patch, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("shape", [(1, 1, 16, 24, 4), (1, 2, 16, 24), (1, 2, 24, 16, 4), (1, 2, 32, 24, 4)])
def test_an_image_of_another_shape_is_refused_with_the_shape_seen(shape):
    with pytest.raises(InputError, match=r"expected images of shape \(batch, 2, 16, 24, 4\), got \(1, "):
        networks.build(SMALL).prefix(torch.zeros(shape), 0)


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_monais_loads_and_what_is_not_used_of_it_is_listed(tmp_path):
    old = {f"blocks.{i}.cross_attn.to_q.weight": torch.zeros(24, 24) for i in range(3)}  # MONAI before 1.6 saves them
    tensors = original(WITH_CLASS_TOKEN).state_dict() | old
    found = weights.load_backbone(written(tmp_path, WITH_CLASS_TOKEN, tensors))
    assert {name.split(".")[-2] for name in found.report.ignored} >= {"0", "to_q", "norm_cross_attn"}
    assert set(found.report.loaded) == set(found.model.state_dict())
    assert set(found.report.loaded) | set(found.report.ignored) == set(tensors)
    assert dict(found.heads) == {}
    assert found.model.config == WITH_CLASS_TOKEN


def test_a_one_frame_kernel_is_repeated_over_stacked_frames_and_taken_as_it_is_for_siamese_ones(tmp_path):
    folder = written(tmp_path, replace(SMALL, in_channels=1))
    stacked, siamese = (weights.load_backbone(folder, frames=frames) for frames in ("stacked", "siamese"))
    kernel = siamese.model.state_dict()[FIRST_KERNEL]
    assert torch.equal(stacked.model.state_dict()[FIRST_KERNEL], torch.cat([kernel, kernel], dim=1))
    assert (stacked.report.kernel_repeated, siamese.report.kernel_repeated) == (True, False)
    assert stacked.report.frames_see_same_kernel
    assert weights.base_model_sha256(stacked.model) == weights.base_model_sha256(siamese.model)


def test_siamese_frames_refuse_a_kernel_of_two_frames(tmp_path):
    with pytest.raises(InputError, match=r"takes 2 channels.*siamese frames need a kernel of 1.*--frames stacked"):
        weights.load_backbone(written(tmp_path), frames="siamese")


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (SMALL, lambda t: t.pop("blocks.2.attn.qkv.weight"), "1 missing: blocks.2.attn.qkv.weight"),
        (SMALL, lambda t: t.pop(FIRST_KERNEL), f"1 missing: {FIRST_KERNEL}"),
        (replace(SMALL, num_layers=2), lambda t: None, r"11 unexpected: blocks\.2\.attn\.out_proj\.bias, "),
        (replace(SMALL, classification=True), lambda t: None, "1 missing: cls_token"),
        (
            replace(SMALL, img_size=(16, 16, 4)),
            lambda t: None,
            r"1 reshaped: patch_embedding.position_embeddings is \[1, 12, 24\], expected \[1, 8, 24\].*config.json",
        ),
    ],
)
def test_a_file_of_another_structure_is_refused_naming_the_tensor(tmp_path, config, change, message):
    tensors = original(SMALL).state_dict()
    change(tensors)
    with pytest.raises(InputError, match=message):
        weights.load_backbone(written(tmp_path, config, tensors))


def test_a_size_of_cinemas_is_refused_for_a_folder_that_says_it_is_another_network(tmp_path):
    with pytest.raises(InputError, match=r"has a monai-vit .* not the convvit that --size stands for; leave --size"):
        weights.load_backbone(written(tmp_path), ConvViTConfig.tiny())


# --- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [("global",), ("global", "local")])
def test_an_exported_adapter_gives_monais_own_network_our_features(tmp_path, image, parts):
    """By the real peft package. The heads in the folder are modules that MONAI's network does not have; peft passes them over."""
    folder = written(tmp_path / "bb")
    metadata = init_adapter(folder, "", AdapterChoices(rank=3, alpha=6.0)).manifest.metadata
    model = CineClassifier(weights.load_backbone(folder).model, "stacked")
    config = DualLoRAConfig(rank_global=3, alpha_global=6.0, rank_local=2, alpha_local=1.0)
    lora.attach(model, config, torch.Generator().manual_seed(3))
    for layer in lora.adapted_layers(model).values():
        for part in layer.scales:
            nn.init.normal_(layer.lora_B[part], std=0.2)
    if parts == ("global",):
        tensors, rank, alpha = adapter_tensors.global_tensors(model, Ownership("global+local-bias")), 3, 6.0
    else:
        tensors, rank, alpha = adapter_tensors.combined_tensors(model), 5, 5.0
    peft.write_folder(tmp_path / "peft", tensors, metadata, rank, alpha)

    exported = PeftModel.from_pretrained(original(SMALL), str(tmp_path / "peft"))
    lora.switch(model, parts)
    lora.merge(model)
    with torch.no_grad():
        ours = model.backbone.suffix(model.prefix(image), model.first_block).patch
        assert not torch.allclose(original(SMALL)(image)[0], ours, atol=1e-2)
        torch.testing.assert_close(exported(image)[0], ours, atol=1e-5, rtol=0)


# --- config ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, WITH_CLASS_TOKEN, ConvViTConfig.tiny()])
def test_config_survives_json(tmp_path, config):
    config.to_json(tmp_path / "config.json")
    assert networks.read_config(tmp_path / "config.json") == config


def test_defaults_are_monais_own_and_remarks_change_nothing():
    values = {"in_channels": 1, "img_size": [96, 96, 96], "patch_size": [16, 16, 16]}
    config = MonaiViTConfig.from_mapping(
        {**values, "pos_embed_type": "sincos", "dropout_rate": 0.1, "proj_type": "conv"}
    )
    assert config == MonaiViTConfig.from_mapping(values)
    plain = ViT(in_channels=1, img_size=(96, 96, 96), patch_size=(16, 16, 16))
    ours = networks.build(config, "meta").state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in plain.state_dict().items() if "cross_attn" not in name
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_sizes": 8}, "unknown key 'hidden_sizes'; known keys are classification, hidden_size"),
        ({"proj_type": "perceptron"}, "proj_type = 'perceptron' is not supported; it must be 'conv'"),
        ({"spatial_dims": 2}, "spatial_dims = 2 is not supported; it must be 3"),
        ({"num_heads": 5}, "hidden_size 24 is not a multiple of num_heads 5"),
        ({"img_size": [16, 20, 4]}, r"img_size \[16, 20, 4\] is not a multiple of patch_size \[8, 8, 2\]"),
        ({"img_size": 16}, "img_size must be three whole numbers from 1, got 16"),
        ({"patch_size": [8, 8]}, r"patch_size must be three whole numbers from 1, got \[8, 8\]"),
        ({"num_layers": 0}, "num_layers must be a whole number from 1, got 0"),
        ({"num_layers": "deep"}, "num_layers must be a whole number from 1, got 'deep'"),
        ({"in_channels": 3}, r"in_channels must be 1 \(one frame\) or 2 \(ED and ES\), got 3"),
        ({"classification": "no"}, "classification must be true or false, got 'no'"),
        ({"patch_size": None}, "patch_size is missing; a monai-vit needs in_channels, img_size, patch_size"),
        ({"network": "swin"}, "network 'swin' is not known; it must be convvit or monai-vit"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_name(tmp_path, change, message):
    SMALL.to_json(tmp_path / "config.json")
    values = json.loads((tmp_path / "config.json").read_text()) | change
    described = {key: value for key, value in values.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=message):
        networks.read_config(tmp_path / "config.json")


def test_monai_is_loaded_by_those_who_build_such_a_network_alone(tmp_path):
    SMALL.to_json(tmp_path / "config.json")
    tiny = ConvViTConfig.tiny(image_size=(32, 32, 2))
    save_file(networks.build(tiny).state_dict(), tmp_path / "model.safetensors")
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from site_agent.models import networks, weights\nfrom site_agent.models.config import ConvViTConfig\n"
        f"folder = Path({str(tmp_path)!r})\nconfig = networks.read_config(folder / 'config.json')\n"
        "(folder / 'config.json').unlink()\n"
        "weights.load_backbone(folder, ConvViTConfig.tiny(image_size=(32, 32, 2)))\n"
        "print('monai' in sys.modules)\nnetworks.build(config)\nprint('monai' in sys.modules)\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert finished.stdout.split()[-2:] == ["False", "True"]

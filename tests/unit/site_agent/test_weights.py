"""Loading weights: CineMA's rules, clear refusals, and the digest a federation compares."""

import json
from dataclasses import replace

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file

from shared.errors import InputError
from site_agent.models import cinema_weights, lora, networks, weights
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import ConvViTConfig
from site_agent.models.convvit import ConvViT
from site_agent.models.monai_config import MonaiViTConfig

SMALL = ConvViTConfig(
    image_size=(32, 32, 2), enc_conv_chans=(4, 8), enc_conv_n_blocks=1, enc_embed_dim=12, enc_depth=2, enc_n_heads=2
)
SMALL_DIGEST = "bd35769f1e8ba27787ed5341e42e1a8d6a1a0bf8b88476f8f2c6d8ff7f983bbd"
"""Pinned: a release that computes another one would refuse the sites of a running federation."""
MONAI = MonaiViTConfig(
    in_channels=2, img_size=(16, 16, 2), patch_size=(8, 8, 1), hidden_size=12, mlp_dim=24, num_layers=2, num_heads=2
)
MONAI_DIGEST = "02c9570b3951116275873e205bbbfd1068aa16acf8cc76bfce8f4882a9513e11"
"""Pinned for the same reason; neither MONAI's release nor its way to draw weights is in it."""
WARNING = "frozen_stem_cannot_see_motion"


def random_model(config: ConvViTConfig = SMALL, *, heads: bool = True) -> ConvViT:
    return ConvViT(config, heads=heads, generator=torch.Generator().manual_seed(11))


def written(folder, tensors, config=SMALL):
    weights.save_backbone(folder, config, tensors)
    return folder


@pytest.fixture
def mae_mini(shared_data):
    return shared_data / "golden/cinema/mae_mini"


def test_a_pretraining_checkpoint_is_loaded_by_the_recorded_rules(mae_mini):
    described = json.loads((mae_mini / "config.json").read_text())
    report = weights.load_backbone(mae_mini).report
    assert report.kind == "pretraining"
    assert list(report.loaded) == sorted(described["loaded_keys"])
    # The loader leaves heads out; the recorded list is that of a classifier.
    assert set(report.rebuilt) == {k for k in described["kept_from_model"] if "head" not in k}
    assert set(report.ignored) == set(described["ignored_checkpoint_keys"])


def test_the_one_frame_kernel_is_repeated_and_not_divided_for_stacked_frames(mae_mini):
    checkpoint = load_file(mae_mini / "pretrained.safetensors")[cinema_weights.FIRST_KERNEL]
    loaded = weights.load_backbone(mae_mini, frames="stacked")
    kernel = loaded.model.state_dict()[cinema_weights.FIRST_KERNEL]
    assert checkpoint.shape[1] == 1
    assert loaded.report.kernel_repeated
    assert torch.equal(kernel[:, :1], checkpoint)
    assert torch.equal(kernel[:, 1:], checkpoint)


def test_the_one_frame_kernel_is_taken_as_it_is_for_siamese_frames(mae_mini):
    loaded = weights.load_backbone(mae_mini, frames="siamese")
    checkpoint = load_file(mae_mini / "pretrained.safetensors")[cinema_weights.FIRST_KERNEL]
    assert torch.equal(loaded.model.state_dict()[cinema_weights.FIRST_KERNEL], checkpoint)
    assert not loaded.report.kernel_repeated
    assert loaded.model.config.n_frames == 1


def test_siamese_frames_refuse_two_channel_classifier_weights(shared_data):
    with pytest.raises(InputError, match=r"takes 2 channels.*siamese frames need a kernel of 1.*--frames stacked"):
        weights.load_backbone(shared_data / "golden/cinema/mini", frames="siamese")


def test_a_repeated_kernel_with_a_frozen_stem_is_warned_of(mae_mini):
    with structlog.testing.capture_logs() as events:
        weights.load_backbone(mae_mini, frames="stacked")
    assert [event["event"] for event in events] == [WARNING]
    assert events[0]["log_level"] == "warning"


def test_no_warning_when_the_stem_trains_or_frames_are_siamese_or_kernels_differ(mae_mini, shared_data):
    with structlog.testing.capture_logs() as events:
        weights.load_backbone(mae_mini, stem_frozen=False)
        weights.load_backbone(mae_mini, frames="siamese")
        weights.load_backbone(shared_data / "golden/cinema/mini")
    assert events == []


def test_a_saved_backbone_is_read_back_with_frozen_parameters_in_evaluation_mode(tmp_path):
    model = random_model(heads=False)
    loaded = weights.load_backbone(written(tmp_path / "bb", model.state_dict()))
    assert loaded.model.config == SMALL
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert loaded.report.kind == "encoder"
    assert dict(loaded.heads) == {}


def test_heads_of_a_classifier_file_are_handed_over(tmp_path):
    model = random_model()
    loaded = weights.load_backbone(written(tmp_path / "bb", model.state_dict()))
    assert loaded.report.kind == "classifier"
    assert set(loaded.heads) == {name for name in model.state_dict() if name.startswith("pred_head_dict.")}


def test_a_bare_file_needs_a_size_and_takes_it(tmp_path):
    file = tmp_path / "cinema.safetensors"
    save_file(random_model(heads=False).state_dict(), file)
    with pytest.raises(InputError, match="--size tiny or --size base"):
        weights.load_backbone(file)
    assert weights.load_backbone(file, SMALL).model.config == SMALL


def test_weights_in_half_precision_are_widened(tmp_path):
    halves = {name: value.half() for name, value in random_model(heads=False).state_dict().items()}
    loaded = weights.load_backbone(written(tmp_path / "bb", halves))
    assert {value.dtype for value in loaded.model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.norm.bias"), "1 missing: encoder.norm.bias"),
        (
            lambda t: t.update({"encoder.blocks.7.norm1.bias": torch.zeros(12)}),
            "1 unexpected: encoder.blocks.7.norm1.bias",
        ),
        (
            lambda t: t.update({"encoder.cls_token": torch.zeros(1, 1, 8)}),
            r"1 reshaped: encoder.cls_token is \[1, 1, 8\], expected \[1, 1, 12\]",
        ),
        (
            lambda t: t.update({cinema_weights.FIRST_KERNEL: torch.zeros(4, 3, 4, 4, 1)}),
            r"reshaped: .*conv.weight is \[4, 3, 4, 4, 1\]",
        ),
    ],
)
def test_a_file_of_another_structure_is_refused_naming_the_tensor(tmp_path, change, message):
    tensors = random_model(heads=False).state_dict()
    change(tensors)
    with pytest.raises(InputError, match=message):
        weights.load_backbone(written(tmp_path / "bb", tensors))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match="no weights at"):
        weights.load_backbone(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        weights.load_backbone(tmp_path / "empty")
    (tmp_path / "old.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="pickled checkpoints are not read"):
        weights.load_backbone(tmp_path / "old.pt", SMALL)
    cut = tmp_path / "cut.safetensors"
    save_file(random_model().state_dict(), cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(InputError, match="may be cut short"):
        weights.load_backbone(cut, SMALL)


@pytest.mark.parametrize(("config", "digest"), [(SMALL, SMALL_DIGEST), (MONAI, MONAI_DIGEST)])
def test_the_base_digest_is_a_fixed_function_of_the_weights(config, digest):
    model = networks.build(config)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.arange(value.numel()).reshape(value.shape) / 7)
    assert weights.base_model_sha256(model) == digest


def test_the_base_digest_is_the_same_with_and_without_heads_adapters_or_a_stored_table(tmp_path):
    tensors = random_model().state_dict()
    with_heads = weights.load_backbone(written(tmp_path / "a", tensors))
    encoder = {k: v for k, v in tensors.items() if "head" not in k and k != cinema_weights.POSITIONS}
    without = weights.load_backbone(written(tmp_path / "b", encoder))
    digest = weights.base_model_sha256(with_heads.model)
    assert weights.base_model_sha256(without.model) == digest
    assert weights.base_model_sha256(random_model()) == digest
    lora.attach(CineClassifier.from_loaded(without, 2), lora.DualLoRAConfig(), torch.Generator().manual_seed(0))
    assert weights.base_model_sha256(without.model) == digest


def test_the_base_digest_is_the_same_however_a_one_frame_checkpoint_is_shown_its_frames(mae_mini):
    stacked, siamese = (weights.load_backbone(mae_mini, frames=frames).model for frames in ("stacked", "siamese"))
    assert weights.base_model_sha256(stacked) == weights.base_model_sha256(siamese)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SMALL, "encoder.cls_token"),
        (SMALL, "enc_fusion_dict.sax.down_convs.1.bias"),
        (SMALL, cinema_weights.FIRST_KERNEL),
        *((MONAI, name) for name in networks.build(MONAI, "meta").state_dict()),
    ],
)
def test_the_base_digest_changes_with_any_value_of_the_network(config, name):
    model = networks.build(config)
    before = weights.base_model_sha256(model)
    model.state_dict()[name].view(-1)[0] += 1e-3
    assert weights.base_model_sha256(model) != before


def test_the_base_digest_changes_with_numbers_that_no_tensor_shows():
    heads = ConvViTConfig(**{**_values(SMALL), "enc_n_heads": 3})
    model, other = random_model(), random_model(heads)
    other.load_state_dict(model.state_dict())
    assert weights.base_model_sha256(model) != weights.base_model_sha256(other)


def test_the_base_digest_of_a_monai_vit_changes_with_its_heads_and_not_with_adapters():
    model, other = networks.build(MONAI), networks.build(replace(MONAI, num_heads=3))
    other.load_state_dict(model.state_dict())
    digest = weights.base_model_sha256(model)
    assert weights.base_model_sha256(other) != digest
    lora.attach(CineClassifier(model, "stacked"), lora.DualLoRAConfig(), torch.Generator().manual_seed(0))
    assert weights.base_model_sha256(model) == digest


def _values(config: ConvViTConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__slots__}

"""The classifier: CineMA's logits with stacked frames, and what siamese frames mean, on either network."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from shared.errors import InputError
from site_agent.models import networks, weights
from site_agent.models.classifier import CineClassifier
from site_agent.models.config import FRAMES, ConvViTConfig
from site_agent.models.monai_config import MonaiViTConfig

SMALL = ConvViTConfig(
    image_size=(32, 32, 4), enc_conv_chans=(4, 8), enc_conv_n_blocks=1, enc_embed_dim=12, enc_depth=3, enc_n_heads=2
)
MONAI = MonaiViTConfig(
    in_channels=1, img_size=(32, 32, 4), patch_size=(8, 16, 2), hidden_size=12, mlp_dim=24, num_layers=3, num_heads=2
)
"""Without a class token: 16 tokens, as SMALL has beside its class token."""
NETWORKS = pytest.mark.parametrize(
    ("network", "tokens", "skips"), [(SMALL, 17, 16), (MONAI, 16, 0), (replace(MONAI, classification=True), 17, 0)]
)


def classifier(frames, n_classes=2, seed=0, network=SMALL) -> CineClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = networks.build(network.for_frames(frames)).eval().requires_grad_(False)
    return CineClassifier(backbone, frames, n_classes, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(3, 2, 32, 32, 4, generator=torch.Generator().manual_seed(1))


def test_stacked_frames_reproduce_the_recorded_logits_with_the_file_s_heads(shared_data):
    folder = shared_data / "golden/cinema/mini"
    recorded = load_file(folder / "io.safetensors")
    model = CineClassifier.from_loaded(weights.load_backbone(folder))
    with torch.no_grad():
        logits = model(recorded["image_u8"].float() / 255)
    torch.testing.assert_close(logits, recorded["logits_all"], atol=2e-5, rtol=0)


def test_heads_are_drawn_anew_when_the_number_of_classes_differs(shared_data):
    loaded = weights.load_backbone(shared_data / "golden/cinema/mini")
    kept = CineClassifier.from_loaded(loaded, 2, torch.Generator().manual_seed(0)).heads()
    drawn = CineClassifier.from_loaded(loaded, 3, torch.Generator().manual_seed(0)).heads()
    assert torch.equal(kept["pred_head_dict.sax.weight"], loaded.heads["pred_head_dict.sax.weight"])
    assert drawn["pred_head_dict.sax.weight"].shape == (3, 48)


def test_the_number_of_classes_must_come_from_somewhere(shared_data):
    loaded = weights.load_backbone(shared_data / "golden/cinema/mae_mini")
    with pytest.raises(InputError, match="number of classes must be given"):
        CineClassifier.from_loaded(loaded)


@NETWORKS
@pytest.mark.parametrize("frames", FRAMES)
def test_forward_is_suffix_of_prefix_and_head_of_pooled(frames, image, network, tokens, skips):
    model = classifier(frames, n_classes=3, network=network)
    prefix = model.prefix(image)
    assert prefix.tokens.shape == (3 * model.entries_per_case, tokens, 12)
    assert prefix.skips.shape == (3 * model.entries_per_case, skips, 12)
    pooled = model.pooled(prefix)
    assert pooled.shape == (3, 2, model.feature_dim)
    torch.testing.assert_close(model(image), model.suffix(prefix))
    torch.testing.assert_close(model(image), model.head(pooled))
    assert model(image).shape == (3, 3)


@NETWORKS
@pytest.mark.parametrize("frames", FRAMES)
def test_logits_are_the_same_wherever_the_first_trained_block_is(frames, image, network, tokens, skips):
    model = classifier(frames, network=network)
    expected = model(image)
    for first_block in range(4):
        model.first_block = first_block
        torch.testing.assert_close(model.suffix(model.prefix(image)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("network", [SMALL, MONAI])
@pytest.mark.parametrize("frames", FRAMES)
def test_logits_change_when_ed_and_es_are_swapped(frames, image, network):
    model = classifier(frames, network=network)
    assert not torch.allclose(model(image), model(image.flip(1)), atol=1e-4)


@pytest.mark.parametrize("network", [SMALL, MONAI])
def test_siamese_heads_see_the_mean_and_the_difference_of_the_frames_features(image, network):
    model = classifier("siamese", network=network)
    features = [model.backbone.suffix(model.backbone.prefix(image[:, i : i + 1], 0), 0) for i in (0, 1)]
    ed, es = (f.patch.mean(dim=1) for f in features)
    pooled = model.pooled(model.prefix(image))
    torch.testing.assert_close(pooled[:, 0], torch.cat([(ed + es) / 2, ed - es], dim=1), atol=1e-6, rtol=1e-5)
    ed, es = (f.cls[:, 0] for f in features)
    torch.testing.assert_close(pooled[:, 1], torch.cat([(ed + es) / 2, ed - es], dim=1), atol=1e-6, rtol=1e-5)


def test_siamese_entries_of_a_case_are_neighbours_and_depend_on_that_frame_alone(image):
    model = classifier("siamese")
    changed = image.clone()
    changed[1, 1] = 0.5
    before, after = model.prefix(image).tokens, model.prefix(changed).tokens
    differs = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert differs == [False, False, False, True, False, False]


def test_heads_come_from_the_generator_alone():
    first, again, other = (classifier("stacked", seed=seed).heads() for seed in (4, 4, 5))
    name = "pred_head_dict.cls.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not first["pred_head_dict.cls.bias"].any()


@pytest.mark.parametrize("network", [SMALL, MONAI])
def test_a_frozen_prefix_builds_no_gradient_graph_and_the_head_still_trains(image, network):
    model = classifier("stacked", network=network)
    model.backbone_module().requires_grad_(False)
    prefix = model.prefix(image)
    assert not prefix.tokens.requires_grad
    model.suffix(prefix).sum().backward()
    assert all(value.grad is not None for value in model.heads().values())


@pytest.mark.parametrize("frames", FRAMES)
def test_images_without_two_frames_are_refused(frames):
    with pytest.raises(
        InputError, match=r"expected images \(batch, 2, height, width, slices\), got \(1, 1, 32, 32, 4\)"
    ):
        classifier(frames)(torch.zeros(1, 1, 32, 32, 4))


def test_heads_of_another_shape_are_refused_by_name():
    model = classifier("stacked")
    with pytest.raises(InputError, match=r"head pred_head_dict.cls.bias: expected \[2\], got nothing"):
        model.load_heads({})

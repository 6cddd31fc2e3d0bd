"""The network: recorded numbers of CineMA, the prefix/suffix split, and the fast roads to the same values."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from shared.errors import InputError
from site_agent.models.config import ConvViTConfig
from site_agent.models.convvit import ConvViT
from site_agent.models.stem import DepthwiseConv3d, PatchConv3d, PointwiseConv3d

SMALL = ConvViTConfig(
    image_size=(32, 48, 4), enc_conv_chans=(8, 12), enc_conv_n_blocks=1, enc_embed_dim=24, enc_depth=3, enc_n_heads=2
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def small() -> ConvViT:
    return ConvViT(SMALL, generator=seeded(1)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(2, 2, 32, 48, 4, generator=seeded(2))


@pytest.fixture(scope="module")
def mini(shared_data) -> ConvViT:
    folder = shared_data / "golden/cinema/mini"
    model = ConvViT(ConvViTConfig.from_json(folder / "config.json")).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


@pytest.mark.parametrize("reduce", ["all", "patch", "cls"])
def test_logits_equal_the_recorded_ones(mini, shared_data, reduce):
    recorded = load_file(shared_data / "golden/cinema/mini/io.safetensors")
    with torch.no_grad():
        logits = mini(recorded["image_u8"].float() / 255, reduce)
    torch.testing.assert_close(logits, recorded[f"logits_{reduce}"], atol=2e-5, rtol=0)


def test_parameter_names_are_exactly_those_of_the_recorded_state_dict(shared_data):
    for name in ("mini", "tiny"):
        folder = shared_data / "golden/cinema" / name
        ours = {k: v.shape for k, v in ConvViT(ConvViTConfig.from_json(folder / "config.json")).state_dict().items()}
        assert ours == {k: v.shape for k, v in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("first_block", [0, 1, 2, 3])
def test_the_network_may_be_cut_before_any_block(small, image, first_block):
    features = small.suffix(small.prefix(image, first_block), first_block)
    whole = small.features(image)
    torch.testing.assert_close(features.patch, whole.patch, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(features.cls, whole.cls, atol=1e-6, rtol=1e-6)
    assert features.patch.shape == (2, 2 * 3 * 4, 24)


def test_a_prefix_kept_in_half_precision_changes_features_by_rounding_only(small, image):
    prefix = small.prefix(image, 1)
    halved = small.suffix(type(prefix)(prefix.tokens.half(), prefix.skips.half()), 1)
    assert halved.patch.dtype == torch.float32
    torch.testing.assert_close(halved.patch, small.suffix(prefix, 1).patch, atol=1e-2, rtol=1e-2)


def test_logits_change_when_ed_and_es_are_swapped(small, image):
    assert not torch.allclose(small(image), small(image.flip(1)), atol=1e-4)


def test_a_kernel_repeated_over_frames_cannot_tell_ed_from_es(image):
    model = ConvViT(SMALL, generator=seeded(3)).eval().requires_grad_(False)
    kernel = model.stem.conv_blocks[0].patch_embed.conv.weight
    kernel.copy_(kernel[:, :1].repeat(1, 2, 1, 1, 1))
    torch.testing.assert_close(model(image), model(image.flip(1)), atol=1e-5, rtol=0)


def test_the_same_generator_seed_gives_the_same_random_network():
    first, again, other = (ConvViT(SMALL, generator=seeded(seed)).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.cls_token"], other["encoder.cls_token"])
    assert not torch.equal(first["encoder.blocks.0.attn.q.weight"], other["encoder.blocks.0.attn.q.weight"])


def test_depthwise_convolution_equals_the_plain_one_in_values_and_gradients():
    conv = DepthwiseConv3d(3)
    x = torch.randn(2, 5, 7, 6, 3, generator=seeded(7), requires_grad=True)
    plain = F.conv3d(x.movedim(-1, 1), conv.weight, conv.bias, padding=2, groups=3).movedim(1, -1)
    expected = torch.autograd.grad(plain.square().sum(), (x, conv.weight, conv.bias))
    ours = conv(x)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    for got, want in zip(torch.autograd.grad(ours.square().sum(), (x, conv.weight, conv.bias)), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("conv", [PatchConv3d(3, 5, (2, 4, 1)), PointwiseConv3d(3, 5)])
def test_convolutions_as_products_equal_the_plain_ones(conv):
    x = torch.randn(2, 4, 8, 3, 3, generator=seeded(8))
    plain = F.conv3d(x.movedim(-1, 1), conv.weight, conv.bias, stride=conv.stride).movedim(1, -1)
    torch.testing.assert_close(conv(x), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 32, 48, 4), (1, 2, 32, 48), (2, 32, 48, 4)])
def test_an_image_of_another_shape_is_refused_with_the_shape_seen(small, shape):
    with pytest.raises(InputError, match=r"expected images of shape \(batch, 2, height, width, slices\)"):
        small(torch.zeros(shape))


def test_an_image_that_patches_do_not_fill_is_refused(small):
    with pytest.raises(InputError, match=r"\[32, 40, 4\] is not a multiple of the model's patch \[16, 16, 1\]"):
        small(torch.zeros(1, 2, 32, 40, 4))


def test_other_image_sizes_interpolate_the_table(small):
    assert small(torch.zeros(1, 2, 16, 32, 6)).shape == (1, 2)
    assert small.position_table((16, 32, 6)).shape == (1, 1 * 2 * 6, 24)


def test_config_survives_json(tmp_path):
    SMALL.to_json(tmp_path / "config.json")
    assert ConvViTConfig.from_json(tmp_path / "config.json") == SMALL


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"enc_embed_dimm": 8}, "unknown key 'enc_embed_dimm'"),
        ({"rotary": True}, "rotary = True is not supported"),
        ({"views": ["sax", "lax_2c"]}, "views"),
        ({"enc_embed_dim": 10, "enc_n_heads": 3}, "not a multiple of enc_n_heads 3"),
        ({"image_size": [30, 32, 4]}, "not a multiple of the effective patch"),
        ({"image_size": [32, 32]}, "image_size must be three numbers"),
        ({"enc_depth": 0}, "enc_depth must be at least 1"),
        ({"enc_depth": "deep"}, "wrong type"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_name(values, message):
    with pytest.raises(InputError, match=message):
        ConvViTConfig.from_mapping(values)


def test_sizes_are_those_of_cinema():
    base = ConvViTConfig.of_size("base")
    assert (base.enc_embed_dim, base.enc_depth, base.enc_n_heads) == (768, 12, 12)
    assert (base.image_size, base.patch_size, base.enc_conv_chans) == ((192, 192, 16), (16, 16, 1), (64, 128))
    with pytest.raises(InputError, match="tiny, base"):
        ConvViTConfig.of_size("huge")

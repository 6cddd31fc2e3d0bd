"""Masked autoencoding: what is hidden stays hidden, and the encoder fits the classifier's backbone."""

import pytest
import torch
from torch.nn import functional as F

from shared.errors import InputError
from site_agent.models import weights
from site_agent.models.config import ConvViTConfig
from site_agent.models.mae import MaskedAutoencoder
from site_agent.models.stem import patches

SMALL = ConvViTConfig(
    image_size=(64, 32, 3), enc_conv_chans=(4, 8), enc_conv_n_blocks=2, enc_embed_dim=12, enc_depth=2, enc_n_heads=2
)
TOKENS = 4 * 2 * 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def autoencoder(mask_ratio: float = 0.75) -> MaskedAutoencoder:
    return MaskedAutoencoder(SMALL, 8, 1, 2, mask_ratio, seeded(1))


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(3, 2, 64, 32, 3, generator=seeded(2))


def order_of(seed: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Visible and hidden tokens, as the generator's first draw orders them."""
    order = torch.rand(batch, TOKENS, generator=seeded(seed)).argsort(dim=1)
    return order[:, : TOKENS // 4], order[:, TOKENS // 4 :]


def whole_volume_loss(model: MaskedAutoencoder, image: torch.Tensor, seed: int) -> torch.Tensor:
    """The loss as CineMA computes it: the stem over whole volumes with masked voxels, tokens dropped afterwards."""
    visible, hidden = order_of(seed, len(image))
    seen = torch.zeros(len(image), TOKENS).scatter(1, visible, 1.0).reshape(-1, 4, 2, 3)
    x, skips = image.movedim(1, -1), []
    for stage, cells in zip(model.vit.stem.conv_blocks, (4, 2), strict=True):
        mask = seen.repeat_interleave(cells, 1).repeat_interleave(cells, 2)[..., None]
        x = stage(x, lambda conv, inner, mask=mask: conv(inner * mask))
        skips.append(x)
    stem = model.vit.stem
    tokens = stem.linear(stem.patch_embed.proj(patches(x, (2, 2, 1)).flatten(1, 3))) + stem.pos_embed
    rows = torch.arange(len(image))[:, None]
    encoded = model.vit.encoder.with_cls(tokens[rows, visible])
    for block in model.vit.blocks:
        encoded = block(encoded)
    encoded = model.vit.encoder.norm(encoded)
    fused = model.vit.fusion.fused(skips, tokens)[rows, visible]
    context = model.dec_linear(model.vit.fusion.norm(encoded[:, 1:] + fused)) + model.decoder_positions[0][visible]
    asked = torch.cat([model.dec_linear(encoded[:, :1]), model.mask_token + model.decoder_positions[0][hidden]], dim=1)
    for block in model.decoder:
        asked = block(asked, context)
    predicted = model.pixels(model.decoder_norm(asked[:, 1:]))
    return F.mse_loss(predicted, patches(image.movedim(1, -1), (16, 16, 1)).flatten(1, 3)[rows, hidden])


def test_loss_and_gradients_equal_those_of_the_masked_stem_on_whole_volumes(image):
    model = autoencoder()
    loss, expected = model(image, seeded(5)), whole_volume_loss(model, image, 5)
    torch.testing.assert_close(loss, expected)
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    ours = torch.autograd.grad(loss, [dict(model.named_parameters())[name] for name in names])
    theirs = torch.autograd.grad(expected, [dict(model.named_parameters())[name] for name in names])
    for name, got, want in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_hidden_voxels_reach_the_loss_as_targets_only(image):
    model = autoencoder()
    image.requires_grad_(True)
    visible, hidden = order_of(5, len(image))
    gradient = torch.autograd.grad(model(image, seeded(5)), image)[0]
    voxels = patches(image.detach().movedim(1, -1), (16, 16, 1)).flatten(1, 3)
    by_patch = patches(gradient.movedim(1, -1), (16, 16, 1)).flatten(1, 3)
    rows = torch.arange(len(image))[:, None]
    assert by_patch[rows, visible].abs().max() > 0
    # d/dt mean (p - t)^2 = 2 (t - p) / n with p independent of t: recover p, put it in, and the loss must vanish.
    count = voxels[rows, hidden].numel()
    predicted = voxels[rows, hidden] - by_patch[rows, hidden] * count / 2
    voxels[rows, hidden] = predicted
    grid = voxels.reshape(3, 4, 2, 3, 16, 16, 1, 2).permute(0, 1, 4, 2, 5, 3, 6, 7)
    filled = grid.reshape(3, 64, 32, 3, 2).movedim(-1, 1)
    assert model(filled, seeded(5)) < 1e-9


def test_the_generator_alone_chooses_what_is_hidden(image):
    model = autoencoder()
    assert torch.equal(model(image, seeded(5)), model(image, seeded(5)))
    assert not torch.equal(model(image, seeded(5)), model(image, seeded(6)))


def test_the_encoder_is_read_back_as_a_two_channel_backbone(tmp_path, image):
    model = autoencoder()
    weights.save_backbone(tmp_path, SMALL, model.encoder_state())
    loaded = weights.load_backbone(tmp_path)
    assert loaded.report.kind == "encoder"
    assert not loaded.report.frames_see_same_kernel
    torch.testing.assert_close(loaded.model.features(image).patch, model.vit.features(image).patch)


def test_training_lowers_the_loss_on_the_images_it_sees(image):
    model = autoencoder()
    masks = seeded(3)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model(image * 0.2 + 0.7, masks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(ratio):
    with pytest.raises(InputError, match=f"of {TOKENS} tokens visible"):
        autoencoder(ratio)


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"expected images \(batch, 2, 64, 32, 3\)"):
        autoencoder()(torch.zeros(1, 1, 64, 32, 3), seeded(0))

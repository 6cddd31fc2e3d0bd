"""Masked autoencoding of two-channel short-axis volumes, to pre-train a backbone.

CineMA's scheme reduced to one view: hidden patches are masked in the convolution stem too, the transformer sees only visible
tokens, a small decoder asks for the hidden ones by cross attention over the visible ones, and the loss is the squared
error of raw voxels in hidden patches. Unlike CineMA, which shows one frame, ED and ES are two channels with
their own kernels, so a frozen stem can see motion.
Sources: He et al. 2021, arXiv:2111.06377; Gao et al. 2022 (ConvMAE), arXiv:2205.03892; Fu et al. 2025, arXiv:2506.00679.
"""

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from shared.errors import InputError
from site_agent.models import positions
from site_agent.models.config import ConvViTConfig, Size3
from site_agent.models.convvit import ConvViT, initialise
from site_agent.models.stem import patches
from site_agent.models.transformer import Block

MASK_RATIO = 0.75


class MaskedAutoencoder(nn.Module):
    """`forward(image, generator)` → loss. `encoder_state()` is what `load_backbone` reads afterwards."""

    def __init__(
        self,
        config: ConvViTConfig,
        decoder_dim: int,
        decoder_depth: int,
        decoder_heads: int,
        mask_ratio: float = MASK_RATIO,
        generator: torch.Generator | None = None,
    ) -> None:
        """`generator` draws the initial weights. Raises InputError when the ratio hides nothing or everything."""
        super().__init__()
        self.config = config
        self.token_count = math.prod(config.grid_size)
        self.visible_count = int(self.token_count * (1 - mask_ratio))
        if not 0 < self.visible_count < self.token_count:
            raise InputError(
                f"mask ratio {mask_ratio} leaves {self.visible_count} of {self.token_count} tokens visible"
            )
        self.vit = ConvViT(config, heads=False)
        self.dec_linear = nn.Linear(config.enc_embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder = nn.ModuleList(
            Block(decoder_dim, decoder_heads, config.mlp_ratio, config.norm_eps) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=config.norm_eps)
        self.pixels = nn.Linear(decoder_dim, config.image_chans * math.prod(config.patch_size))
        table = torch.from_numpy(positions.sincos_table(decoder_dim, config.grid_size))
        self.register_buffer("decoder_positions", table, persistent=False)
        self.decoder_positions: torch.Tensor = table
        initialise(self, generator)

    def forward(self, image: torch.Tensor, mask_generator: torch.Generator) -> torch.Tensor:
        """Image (B, C, H, W, D) → mean squared error over hidden patches, a scalar. The generator chooses what is hidden."""
        if tuple(image.shape[1:]) != (self.config.image_chans, *self.config.image_size):
            raise InputError(
                f"expected images (batch, {self.config.image_chans}, {', '.join(map(str, self.config.image_size))}), "
                f"got {tuple(image.shape)}"
            )
        order = torch.rand(image.shape[0], self.token_count, generator=mask_generator).argsort(dim=1).to(image.device)
        visible, hidden = order[:, : self.visible_count], order[:, self.visible_count :]
        voxels = patches(image.movedim(1, -1), self.config.patch_size).flatten(1, 3)
        predicted = self._decode(*self._encode(_take(voxels, visible), visible), visible, hidden)
        return F.mse_loss(predicted, _take(voxels, hidden))

    def encoder_state(self) -> dict[str, torch.Tensor]:
        """Tensors under ConvViT's names, without decoder and heads."""
        return {name: value.detach().clone() for name, value in self.vit.state_dict().items()}

    def _encode(self, shown: torch.Tensor, visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Voxels of the visible patches (B, K, patch values) → class token (B, 1, D), visible tokens (B, K, D) after fusion."""
        vit, like = self.vit, (*visible.shape, self.config.enc_embed_dim)
        skips, x = self._convolved(shown, visible)
        tokens = vit.stem.linear(vit.stem.patch_embed.proj(patches(x, vit.stem.token_size).flatten(1))).reshape(like)
        positions_seen = _take(vit.stem.pos_embed.expand(visible.shape[0], -1, -1), visible)
        seen = vit.encoder.with_cls(tokens + positions_seen)
        for block in vit.blocks:
            seen = block(seen)
        seen = vit.encoder.norm(seen)
        fused = vit.fusion.fused(skips, tokens.flatten(0, 1).unsqueeze(1)).reshape(like)
        return seen[:, :1], vit.fusion.norm(seen[:, 1:] + fused)

    def _convolved(self, shown: torch.Tensor, visible: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The stem's stages on visible patches only, (B * K, h, w, d, C) each, which is all that later steps ask for.

        Every layer but the depthwise convolution stays inside a patch, so a quarter of the patches costs a quarter; for that one
        the patches are laid out in a volume whose hidden ones are zero, as the masked stem has it.
        """
        x = shown.reshape(-1, *self.config.patch_size, self.config.image_chans)
        skips = []
        for stage in self.vit.stem.conv_blocks:
            x = stage(x, lambda dw_conv, inner: self._among_hidden(dw_conv, inner, visible))
            skips.append(x)
        return skips, x

    def _among_hidden(self, dw_conv: nn.Module, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """A convolution over the whole volume, its input and output restricted to visible patches (B * K, h, w, d, C)."""
        size = cast(Size3, tuple(x.shape[1:4]))
        index = visible.unsqueeze(-1).expand(-1, -1, x[0].numel())
        flat = x.new_zeros(visible.shape[0], self.token_count, x[0].numel()).scatter(1, index, x.reshape(index.shape))
        grid = flat.reshape(-1, *self.config.grid_size, *size, x.shape[-1])
        h, w, d = (cells * extent for cells, extent in zip(self.config.grid_size, size, strict=True))
        volume = grid.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, h, w, d, x.shape[-1])
        mixed = patches(dw_conv(volume), size).flatten(1, 3)
        return _take(mixed, visible).reshape(x.shape)

    def _decode(
        self, cls: torch.Tensor, seen: torch.Tensor, visible: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        """→ voxels of the hidden patches (B, M, patch values)."""
        table = self.decoder_positions.expand(seen.shape[0], -1, -1)
        context = self.dec_linear(seen) + _take(table, visible)
        asked = torch.cat([self.dec_linear(cls), self.mask_token + _take(table, hidden)], dim=1)
        for block in self.decoder:
            asked = block(asked, context)
        return cast(torch.Tensor, self.pixels(self.decoder_norm(asked[:, 1:])))


def _take(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, N, C) at (B, K) → (B, K, C)"""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))

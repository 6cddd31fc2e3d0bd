"""CineMA's convolution stem and multi-scale fusion, computed with channels last.

Volumes travel as (batch, height, width, slices, channels). In that layout a 1x1x1 convolution and a convolution whose kernel
equals its stride are plain matrix products and the layer norm needs no copies; only the depthwise convolution is left.
Parameters keep the shapes and names of `nn.Conv3d`, so CineMA's weights load unchanged.
Sources: `cinema/conv.py` and `cinema/convvit.py` of mathpluscode/CineMA, commit 4e352ac3; ConvMAE, arXiv:2205.03892.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from site_agent.models.config import ConvViTConfig, Size3

Mix = Callable[[nn.Module, torch.Tensor], torch.Tensor]
"""Applies a depthwise convolution to a block's voxels, in place of calling it; masked autoencoding hides voxels there."""

DEPTHWISE_KERNEL = 5
CONV_MLP_RATIO = 4
"""Fixed in CineMA's convolution block, whatever the transformer's own ratio is."""


def patches(volume: torch.Tensor, size: Size3) -> torch.Tensor:
    """(B, H, W, D, C) → (B, H/p, W/q, D/r, p*q*r*C), values of one patch in the order p, q, r, C."""
    batch, height, width, slices, channels = volume.shape
    p, q, r = size
    split = volume.reshape(batch, height // p, p, width // q, q, slices // r, r, channels)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4)


class PatchConv3d(nn.Conv3d):
    """A convolution whose stride is its kernel, as a product over non-overlapping patches: (B,H,W,D,C) → (B,h,w,d,O)."""

    def __init__(self, in_chans: int, out_chans: int, size: Size3) -> None:
        super().__init__(in_chans, out_chans, kernel_size=size, stride=size)
        self.size = size

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight.permute(0, 2, 3, 4, 1).flatten(1)
        return F.linear(patches(input, self.size), weight, self.bias)


class PointwiseConv3d(nn.Conv3d):
    """A 1x1x1 convolution on channels-last volumes."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__(in_chans, out_chans, kernel_size=1)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.flatten(1), self.bias)


class DepthwiseConv3d(nn.Conv3d):
    """A 5x5x5 convolution of every channel with itself, zero padded, on channels-last volumes.

    Two cases take another road to the same numbers on a CPU, a grouped two-dimensional convolution that carries the slices as
    channels: training, where the three-dimensional backward pass is slow (batch 32, 16 channels, 16x16x8, one thread: 108
    against 30 ms, forward and backward), and float64 (64 channels, 48x48x16: 1.6 against 0.14 s).
    """

    def __init__(self, chans: int) -> None:
        super().__init__(chans, chans, DEPTHWISE_KERNEL, padding=DEPTHWISE_KERNEL // 2, groups=chans)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        volume = input.movedim(-1, 1)
        trains = self.weight.requires_grad and torch.is_grad_enabled()
        if input.device.type == "cpu" and (trains or input.dtype == torch.float64):
            return self._with_slices_as_channels(volume).movedim(1, -1)
        return super().forward(volume).movedim(1, -1)

    def _with_slices_as_channels(self, volume: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W, D) → the same shape."""
        batch, chans, height, width, slices = volume.shape
        slice_ids = torch.arange(slices)
        offset = slice_ids[None, :] - slice_ids[:, None] + DEPTHWISE_KERNEL // 2
        # Slices further apart than the kernel reaches take the kernel's zero padding at index 5.
        tap = torch.where((offset >= 0) & (offset < DEPTHWISE_KERNEL), offset, DEPTHWISE_KERNEL)
        by_tap = F.pad(self.weight[:, 0].movedim(-1, 1), (0, 0, 0, 0, 0, 1))
        kernel = by_tap[:, tap].flatten(0, 1)  # (C * slices out, slices in, 5, 5)
        flat = volume.movedim(-1, 2).reshape(batch, chans * slices, height, width)
        bias = None if self.bias is None else self.bias.repeat_interleave(slices)
        mixed = F.conv2d(flat, kernel, bias, padding=DEPTHWISE_KERNEL // 2, groups=chans)
        return mixed.reshape(batch, chans, slices, height, width).movedim(2, -1)


class ConvMlp(nn.Module):
    def __init__(self, chans: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = PointwiseConv3d(chans, hidden)
        self.fc2 = PointwiseConv3d(hidden, chans)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class ConvBlock(nn.Module):
    """Depthwise convolution and MLP, each with a residual. Only the convolution mixes voxels."""

    def __init__(self, chans: int, mlp_ratio: int, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(chans, eps=norm_eps)
        self.norm2 = nn.LayerNorm(chans, eps=norm_eps)
        self.conv1 = PointwiseConv3d(chans, chans)
        self.conv2 = PointwiseConv3d(chans, chans)
        self.dw_conv = DepthwiseConv3d(chans)
        self.mlp = ConvMlp(chans, chans * mlp_ratio)

    def forward(self, x: torch.Tensor, mix: Mix | None = None) -> torch.Tensor:
        inner = self.conv1(self.norm1(x))
        mixed = self.dw_conv(inner) if mix is None else mix(self.dw_conv, inner)
        x = x + self.conv2(mixed)
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class StagePatchEmbed(nn.Module):
    def __init__(self, in_chans: int, out_chans: int, size: Size3, norm_eps: float) -> None:
        super().__init__()
        self.conv = PatchConv3d(in_chans, out_chans, size)
        self.norm = nn.LayerNorm(out_chans, eps=norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.norm(self.conv(x)))


class ConvStage(nn.Module):
    def __init__(self, in_chans: int, out_chans: int, size: Size3, config: ConvViTConfig) -> None:
        super().__init__()
        self.patch_embed = StagePatchEmbed(in_chans, out_chans, size, config.conv_norm_eps)
        blocks = (ConvBlock(out_chans, CONV_MLP_RATIO, config.conv_norm_eps) for _ in range(config.enc_conv_n_blocks))
        self.conv = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor, mix: Mix | None = None) -> torch.Tensor:
        """Channels last: (..., H, W, D, in) → (..., H/p, W/q, D/r, out)."""
        x = self.patch_embed(x)
        for block in self.conv:
            x = block(x, mix)
        return x


class TokenProjection(nn.Module):
    def __init__(self, in_features: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, embed_dim)


class ConvStem(nn.Module):
    """Image → convolution stages → tokens without positions. `pos_embed` is the fixed table of `config.grid_size`."""

    pos_embed: torch.Tensor

    def __init__(self, config: ConvViTConfig, pos_embed: torch.Tensor) -> None:
        super().__init__()
        chans = (config.image_chans, *config.enc_conv_chans)
        sizes = stage_sizes(config)
        self.conv_blocks = nn.ModuleList(
            ConvStage(before, after, size, config)
            for before, after, size in zip(chans[:-1], chans[1:], sizes[:-1], strict=True)
        )
        self.token_size = sizes[-1]
        values = chans[-1] * self.token_size[0] * self.token_size[1] * self.token_size[2]
        self.patch_embed = TokenProjection(values, config.enc_embed_dim)
        self.linear = nn.Linear(config.enc_embed_dim, config.enc_embed_dim)
        self.register_buffer("pos_embed", pos_embed)

    def forward(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Image (B, C, H, W, D) → outputs of the stages, channels last, and tokens (B, N, embed_dim)."""
        x = image.movedim(1, -1)
        skips = []
        for stage in self.conv_blocks:
            x = stage(x)
            skips.append(x)
        tokens: torch.Tensor = self.linear(self.patch_embed.proj(patches(x, self.token_size).flatten(1, 3)))
        return skips, tokens


class Fusion(nn.Module):
    """Brings every stage's output to the token grid; the sum is added to the transformer's tokens before the norm."""

    def __init__(self, config: ConvViTConfig) -> None:
        super().__init__()
        sizes = stage_sizes(config)
        convs = []
        for stage, chans in enumerate(config.enc_conv_chans):
            h, w, d = 1, 1, 1
            for size in sizes[stage + 1 :]:
                h, w, d = h * size[0], w * size[1], d * size[2]
            convs.append(PatchConv3d(chans, config.enc_embed_dim, (h, w, d)))
        self.down_convs = nn.ModuleList(convs)
        self.norm = nn.LayerNorm(config.enc_embed_dim, eps=config.norm_eps)

    def fused(self, skips: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """Stage outputs → (B, N, embed_dim); zero, shaped as `like`, for a stem without stages."""
        total = torch.zeros_like(like)
        for skip, conv in zip(skips, self.down_convs, strict=True):
            total = total + conv(skip).flatten(1, 3)
        return total


def stage_sizes(config: ConvViTConfig) -> list[Size3]:
    """Patch size of each convolution stage, then that of the token projection."""
    return [config.enc_patch_size] + [config.enc_scale_factor] * len(config.enc_conv_chans)

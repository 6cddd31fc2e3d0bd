"""CineMA's ConvViT for the short-axis view: convolution stem, vision transformer, multi-scale fusion, two heads.

Our own code with the original's tensor names and numbers, so that its safetensors load unchanged.
Source: Fu et al. 2025, arXiv:2506.00679; `cinema/convvit.py` of mathpluscode/CineMA, commit 4e352ac3.
"""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, cast

import torch
from torch import nn

from shared.errors import InputError
from site_agent.models import cinema_weights, positions
from site_agent.models.backbone import Features, Fitted, Identity, Prefix
from site_agent.models.config import VIEW, ConvViTConfig, Frames, Size3
from site_agent.models.head import CLS, HEADS
from site_agent.models.stem import ConvStem, Fusion
from site_agent.models.transformer import Block

Reduce = Literal["all", "patch", "cls"]
"""Which tokens make the logits: mean patch token and class token, averaged (CineMA's training default), or one of them."""

BLOCK_LINEARS: Mapping[str, str] = MappingProxyType(
    {"q": "attn.q", "kv": "attn.kv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
)


class Encoder(nn.Module):
    def __init__(self, config: ConvViTConfig) -> None:
        super().__init__()
        dim = config.enc_embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, config.enc_n_heads, config.mlp_ratio, config.norm_eps, config.qkv_bias)
            for _ in range(config.enc_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)

    def with_cls(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N, D) → (B, 1 + N, D)"""
        return torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)


class ConvViT(nn.Module):
    """Backbone of `site_agent.models.backbone.Backbone`, and with `heads` CineMA's classifier.

    Random weights come from `generator` (the global one when None); `heads=False` leaves `pred_head_dict` out.
    """

    blocks_path = "encoder.blocks"
    linears = BLOCK_LINEARS
    attention_linears = ("q", "kv", "proj")

    def __init__(self, config: ConvViTConfig, *, heads: bool = True, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        table = torch.from_numpy(positions.sincos_table(config.enc_embed_dim, config.grid_size))
        self.enc_down_dict = nn.ModuleDict({VIEW: ConvStem(config, table)})
        self.enc_fusion_dict = nn.ModuleDict({VIEW: Fusion(config)})
        self.encoder = Encoder(config)
        if heads:
            self.pred_head_dict = nn.ModuleDict(
                {name: nn.Linear(config.enc_embed_dim, config.out_chans) for name in HEADS}
            )
        initialise(self, generator)

    @property
    def embed_dim(self) -> int:
        return self.config.enc_embed_dim

    @property
    def image_chans(self) -> int:
        return self.config.image_chans

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.blocks

    @property
    def stem(self) -> ConvStem:
        return cast(ConvStem, self.enc_down_dict[VIEW])

    @property
    def fusion(self) -> Fusion:
        return cast(Fusion, self.enc_fusion_dict[VIEW])

    def position_table(self, image_size: Size3) -> torch.Tensor:
        """(1, N, D) for images of that size: the stored table, or its interpolation."""
        return positions.interpolate(self.stem.pos_embed, self.config.grid_size, self.grid_of(image_size))

    def grid_of(self, image_size: Size3) -> Size3:
        """Tokens per axis. Raises InputError for a size that is not a multiple of the effective patch."""
        patch = self.config.patch_size
        if any(extent % size for extent, size in zip(image_size, patch, strict=True)):
            raise InputError(
                f"image size {list(image_size)} is not a multiple of the model's patch {list(patch)}; "
                "pad or crop it in `prepare`"
            )
        h, w, d = (extent // size for extent, size in zip(image_size, patch, strict=True))
        return h, w, d

    def embed(self, image: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Image (B, C, H, W, D) → outputs of the convolution stages (channels last) and the input of block 0."""
        if image.ndim != 5 or image.shape[1] != self.image_chans:
            raise InputError(
                f"expected images of shape (batch, {self.image_chans}, height, width, slices), got {tuple(image.shape)}"
            )
        table = self.position_table(cast(Size3, tuple(image.shape[2:])))
        skips, tokens = self.stem(image)
        return skips, self.encoder.with_cls(tokens + table)

    def prefix(self, image: torch.Tensor, first_block: int) -> Prefix:
        """Everything before block `first_block`, and the fused skips. `first_block` may equal the depth."""
        skips, tokens = self.embed(image)
        for block in self.blocks[:first_block]:
            tokens = block(tokens)
        return Prefix(tokens, self.fusion.fused(skips, tokens[:, 1:]))

    def suffix(self, prefix: Prefix, first_block: int) -> Features:
        """The remaining blocks, the encoder's norm and the fusion. Half-precision prefixes are widened first."""
        dtype = self.encoder.norm.weight.dtype
        tokens, skips = prefix.tokens.to(dtype), prefix.skips.to(dtype)
        for block in self.blocks[first_block:]:
            tokens = block(tokens)
        tokens = self.encoder.norm(tokens)
        return Features(patch=self.fusion.norm(tokens[:, 1:] + skips), cls=tokens[:, :1])

    def fit(self, tensors: Mapping[str, torch.Tensor], *, source: str, frames: Frames) -> Fitted:
        """By CineMA's rules; heads are taken too where both have them and the file is no pre-training."""
        return cinema_weights.fit(tensors, self.state_dict(), self.config, source=source, frames=frames)

    def identity(self) -> Identity:
        return cinema_weights.identity(self.state_dict(), self.config)

    def features(self, image: torch.Tensor) -> Features:
        return self.suffix(self.prefix(image, 0), 0)

    def forward(self, image: torch.Tensor, reduce: Reduce = "all") -> torch.Tensor:
        """Image (B, C, H, W, D) → logits (B, out_chans)."""
        return self.logits(self.features(image), reduce)

    def logits(self, features: Features, reduce: Reduce = "all") -> torch.Tensor:
        """CineMA's heads on the mean patch token, on the class token, or the mean of both logits."""
        of_patch = self.pred_head_dict[VIEW](features.patch.mean(dim=1))
        of_cls = self.pred_head_dict[CLS](features.cls[:, 0])
        if reduce == "patch":
            return cast(torch.Tensor, of_patch)
        if reduce == "cls":
            return cast(torch.Tensor, of_cls)
        return cast(torch.Tensor, (of_patch + of_cls) / 2)


def initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    """Random start as in CineMA: Xavier-uniform linears with zero bias, PyTorch's own rule for convolutions, tokens N(0, 0.02)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Conv3d):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            if layer.bias is not None:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    for token in _tokens(module):
        nn.init.normal_(token, std=0.02, generator=generator)


def _tokens(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for name, parameter in module.named_parameters() if name.endswith("_token"))

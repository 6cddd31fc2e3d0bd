"""MONAI's vision transformer as a backbone. Importing this module loads MONAI.

Source: `monai.networks.nets.ViT`, MONAI 1.5; Dosovitskiy et al. 2021, arXiv:2010.11929.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import cast

import torch
from monai.networks.nets.vit import ViT
from torch import nn

from shared.errors import InputError
from site_agent.models import loading
from site_agent.models.backbone import Features, Fitted, Identity, Prefix
from site_agent.models.config import Frames
from site_agent.models.loading import LoadReport
from site_agent.models.monai_config import MonaiViTConfig

FIRST_KERNEL = "patch_embedding.patch_embeddings.weight"
BLOCK_LINEARS: Mapping[str, str] = MappingProxyType(
    {"qkv": "attn.qkv", "proj": "attn.out_proj", "fc1": "mlp.linear1", "fc2": "mlp.linear2"}
)

_HEAD_PREFIX = "classification_head."
_CROSS_ATTENTION = "cross_attn."


class MonaiViT(nn.Module):
    """Backbone of `site_agent.models.backbone.Backbone`: the parts of a MONAI ViT under their own names, without its head.

    `features.patch` and `features.cls` are the tokens after MONAI's last norm. In a network without a class token the mean patch
    token stands in for it, so both heads of a classifier see the same.
    """

    blocks_path = "blocks"
    linears = BLOCK_LINEARS
    attention_linears = ("qkv", "proj")

    cls_token: nn.Parameter | None

    def __init__(self, config: MonaiViTConfig) -> None:
        """Random weights come from torch's own generator."""
        super().__init__()
        self.config = config
        vit = ViT(
            in_channels=config.in_channels,
            img_size=config.img_size,
            patch_size=config.patch_size,
            hidden_size=config.hidden_size,
            mlp_dim=config.mlp_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            pos_embed_type="learnable",
            classification=config.classification,
            qkv_bias=config.qkv_bias,
        )
        self.patch_embedding: nn.Module = vit.patch_embedding
        self.blocks: nn.ModuleList = vit.blocks
        self.norm: nn.LayerNorm = vit.norm
        self.register_parameter("cls_token", vit.cls_token if config.classification else None)
        for block in self.blocks:
            # A ViT never calls these; whether they have weights depends on MONAI's release.
            block.norm_cross_attn, block.cross_attn = nn.Identity(), nn.Identity()

    @property
    def embed_dim(self) -> int:
        return self.config.hidden_size

    @property
    def image_chans(self) -> int:
        return self.config.in_channels

    def prefix(self, image: torch.Tensor, first_block: int) -> Prefix:
        """Everything before block `first_block`, which may equal the depth; no skips: (B, 0, D)."""
        expected = (self.image_chans, *self.config.img_size)
        if image.ndim != 5 or image.shape[1:] != expected:
            raise InputError(
                f"expected images of shape (batch, {', '.join(map(str, expected))}), got {tuple(image.shape)}; "
                "the position embeddings are made for this size, so crop or pad to it"
            )
        tokens = self.patch_embedding(image)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks[:first_block]:
            tokens = block(tokens)
        return Prefix(tokens, skips=tokens.new_empty(len(tokens), 0, self.embed_dim))

    def suffix(self, prefix: Prefix, first_block: int) -> Features:
        """The remaining blocks and the last norm. Half-precision prefixes are widened first."""
        tokens = prefix.tokens.to(self.norm.weight.dtype)
        for block in self.blocks[first_block:]:
            tokens = block(tokens)
        tokens = cast(torch.Tensor, self.norm(tokens))
        if self.cls_token is None:
            return Features(patch=tokens, cls=tokens.mean(dim=1, keepdim=True))
        return Features(patch=tokens[:, 1:], cls=tokens[:, :1])

    def fit(self, tensors: Mapping[str, torch.Tensor], *, source: str, frames: Frames) -> Fitted:
        """A checkpoint's tensors by MONAI's names. Its head and cross-attention, which a ViT does not use, are passed over; a
        one-frame kernel is repeated over stacked frames. Raises InputError naming what does not fit."""
        ignored = {name for name in tensors if name.startswith(_HEAD_PREFIX) or _CROSS_ATTENTION in name}
        usable = {name: value.float() for name, value in tensors.items() if name not in ignored}
        repeated = False
        if FIRST_KERNEL in usable:
            kernel = usable[FIRST_KERNEL]
            usable[FIRST_KERNEL] = loading.over_frames(kernel, 1, self.image_chans, frames, f"{source}: {FIRST_KERNEL}")
            repeated = usable[FIRST_KERNEL] is not kernel
        loading.check_structure(usable, self.state_dict(), (), source)
        report = LoadReport(
            kind="encoder",
            loaded=tuple(sorted(usable)),
            rebuilt=(),
            ignored=tuple(sorted(ignored)),
            kernel_repeated=repeated,
            frames_see_same_kernel=loading.is_repeated(usable[FIRST_KERNEL], self.image_chans),
        )
        return Fitted(usable, report)

    def identity(self) -> Identity:
        """Every tensor but adapters; a kernel that is repeated over the frames counts once."""
        tensors = {name: value for name, value in self.state_dict().items() if ".lora_" not in name}
        tensors[FIRST_KERNEL] = loading.of_one_frame(tensors[FIRST_KERNEL], self.image_chans)
        one = replace(self.config, in_channels=tensors[FIRST_KERNEL].shape[1])
        return Identity({"network": one.network, **asdict(one)}, tensors)

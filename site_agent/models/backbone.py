"""What the classifier, the dual LoRA and the prefix cache need of a backbone, whichever network it is."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import nn


class Prefix(NamedTuple):
    """What a frozen prefix leaves behind; the training suffix needs nothing else of the image."""

    tokens: torch.Tensor
    """(B, 1 + N, D): class token and patch tokens that enter the first block of the suffix."""
    skips: torch.Tensor
    """(B, N, D): what is added to the patch tokens after the last block."""


class Features(NamedTuple):
    patch: torch.Tensor
    """(B, N, D)"""
    cls: torch.Tensor
    """(B, 1, D)"""


class Backbone(Protocol):
    """A transformer over image tokens that can be cut before any block.

    `suffix(prefix(image, k), k)` is the same for every k in 0 … depth. Implementations are `nn.Module`s.
    """

    @property
    def embed_dim(self) -> int: ...

    @property
    def image_chans(self) -> int:
        """Channels of the image that `prefix` takes."""
        ...

    @property
    def blocks(self) -> nn.ModuleList: ...

    @property
    def blocks_path(self) -> str:
        """Where `blocks` sits in the module tree; part of every adapter's name."""
        ...

    @property
    def linears(self) -> Mapping[str, str]:
        """Short name of each linear layer of a block that can be adapted → its path inside the block."""
        ...

    def prefix(self, image: torch.Tensor, first_block: int) -> Prefix: ...

    def suffix(self, prefix: Prefix, first_block: int) -> Features: ...

    def state_dict(self) -> dict[str, torch.Tensor]: ...

"""What the classifier, the dual LoRA, the prefix cache and loading need of a backbone, whichever network it is."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from site_agent.models.config import ConvViTConfig, Frames
from site_agent.models.loading import LoadReport
from site_agent.models.monai_config import MonaiViTConfig

NetworkConfig = ConvViTConfig | MonaiViTConfig
"""What a backbone folder's config.json describes. `site_agent.models.networks` knows which of them a file names."""


class Prefix(NamedTuple):
    """What a frozen prefix leaves behind; the training suffix needs nothing else of the image."""

    tokens: torch.Tensor
    """(B, T, D): what enters the first block of the suffix, N patch tokens behind the class token, if the network has one."""
    skips: torch.Tensor
    """(B, N, D): what is added to the patch tokens after the last block. (B, 0, D) if that is nothing."""


class Features(NamedTuple):
    patch: torch.Tensor
    """(B, N, D)"""
    cls: torch.Tensor
    """(B, 1, D)"""


class Fitted(NamedTuple):
    """A file's tensors by the network's names, float32, and what was done to make them fit."""

    tensors: Mapping[str, torch.Tensor]
    report: LoadReport


class Identity(NamedTuple):
    """What makes a network this one and no other, however its frames are seen."""

    architecture: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


class Backbone(Protocol):
    """A transformer over image tokens that can be cut before any block.

    `suffix(prefix(image, k), k)` is the same for every k in 0 … depth. Implementations are `nn.Module`s.
    """

    @property
    def config(self) -> NetworkConfig: ...

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

    @property
    def attention_linears(self) -> tuple[str, ...]:
        """Short names of those that belong to the attention; adapted unless somebody chooses."""
        ...

    def prefix(self, image: torch.Tensor, first_block: int) -> Prefix:
        """(B, image_chans, H, W, D) → what enters block `first_block`, which may equal the depth."""
        ...

    def suffix(self, prefix: Prefix, first_block: int) -> Features:
        """The remaining blocks and what follows them. Half-precision prefixes are widened first."""
        ...

    def fit(self, tensors: Mapping[str, torch.Tensor], *, source: str, frames: Frames) -> Fitted:
        """Choose and adapt a file's tensors by this network's rules; changes nothing.

        `source` names the file in errors. Raises InputError naming tensors that are missing, unexpected or of another shape.
        """
        ...

    def identity(self) -> Identity:
        """Without what is trained, and without what follows from the architecture."""
        ...

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any: ...

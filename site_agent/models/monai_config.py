"""The numbers that fix a MONAI ViT. Without MONAI: a config is read and checked before that is loaded."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from shared.errors import InputError
from site_agent.models.config import FRAME_COUNT, Frames, Size3, chosen

_REQUIRED = ("in_channels", "img_size", "patch_size")
_COUNTS = ("hidden_size", "mlp_dim", "num_layers", "num_heads")
_FLAGS = ("classification", "qkv_bias")
_FIXED: dict[str, tuple[Any, ...]] = {"proj_type": ("conv",), "spatial_dims": (3,)}
"""Arguments of MONAI's of which one choice is built here; the others are refused, not ignored."""
_REMARKS = frozenset({"num_classes", "post_activation", "dropout_rate", "pos_embed_type", "save_attn", "about"})
"""Keys that may stand in a config.json and do not change the features at inference. Whichever way position embeddings were made,
the file holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonaiViTConfig:
    """Architecture of one `monai.networks.nets.ViT`; names and defaults are those of its arguments.

    Sizes are (height, width, slices). Raises InputError when the numbers do not fit together.
    Source: Dosovitskiy et al. 2021, arXiv:2010.11929; MONAI 1.5.
    """

    network = "monai-vit"
    """What `config.json` calls this kind of network."""

    in_channels: int
    """1: the network sees one frame. 2: ED and ES as channels."""
    img_size: Size3
    patch_size: Size3
    hidden_size: int = 768
    mlp_dim: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    qkv_bias: bool = False
    classification: bool = False
    """Whether the network has a class token. Its classification head is not used."""

    def __post_init__(self) -> None:
        if not _is_count(self.in_channels) or self.in_channels > FRAME_COUNT:
            raise InputError(
                f"model config: in_channels must be 1 (one frame) or {FRAME_COUNT} (ED and ES), got {self.in_channels!r}"
            )
        for name in ("img_size", "patch_size"):
            size = getattr(self, name)
            if not isinstance(size, tuple) or len(size) != 3 or not all(map(_is_count, size)):
                raise InputError(f"model config: {name} must be three whole numbers from 1, got {_shown(size)}")
        for name in _COUNTS:
            if not _is_count(getattr(self, name)):
                raise InputError(f"model config: {name} must be a whole number from 1, got {getattr(self, name)!r}")
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"model config: {name} must be true or false, got {getattr(self, name)!r}")
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"model config: hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if any(extent % patch for extent, patch in zip(self.img_size, self.patch_size, strict=True)):
            raise InputError(
                f"model config: img_size {list(self.img_size)} is not a multiple of patch_size {list(self.patch_size)}, "
                "so the network would not see the last voxels"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "model config") -> Self:
        """Build from parsed JSON; lists become tuples. Raises InputError naming what is missing, unknown or not supported."""
        for name in _REQUIRED:
            if name not in values:
                raise InputError(f"{source}: {name} is missing; a {cls.network} needs {', '.join(_REQUIRED)}")
        known = {field.name for field in fields(cls)}
        return cls(**chosen(values, known, _FIXED, _REMARKS, source))

    def to_json(self, path: Path) -> None:
        values = {"network": self.network, **asdict(self)}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @property
    def image_size(self) -> Size3:
        return self.img_size

    def for_frames(self, frames: Frames) -> Self:
        """The same network seeing both frames at once, or a single one."""
        return replace(self, in_channels=FRAME_COUNT if frames == "stacked" else 1)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _shown(size: object) -> object:
    return list(size) if isinstance(size, tuple) else size

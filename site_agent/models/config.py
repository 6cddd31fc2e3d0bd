"""The numbers that fix a ConvViT: sizes of image, patches, convolution stages and transformer. And reading such numbers."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from shared.errors import InputError

Size3 = tuple[int, int, int]
Size = Literal["tiny", "base"]
Frames = Literal["stacked", "siamese"]
"""`stacked`: ED and ES as input channels (CineMA). `siamese`: a one-frame backbone runs on ED and on ES."""

SIZES: tuple[Size, ...] = ("tiny", "base")
FRAMES: tuple[Frames, ...] = ("stacked", "siamese")
FRAME_COUNT = 2
"""End-diastole and end-systole, in this order, everywhere."""
VIEW = "sax"
"""The short axis, the one view of CineMA's that is used here; part of its tensors' names."""

_FIXED: dict[str, tuple[Any, ...]] = {"views": ([VIEW], VIEW), "conv_norm": ("layer",), "rotary": (False,)}
"""Choices of CineMA's code of which its published models use one; the others are refused, not ignored."""
_REMARKS = frozenset({"seed", "fp32_vs_fp64_max_abs_logit_dev", "other_sizes", "drop_path", "about"})
"""Keys that may stand in a config.json and do not change what the network computes at inference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvViTConfig:
    """Architecture of one ConvViT for the short-axis view; the names are those of CineMA's arguments.

    Sizes are (height, width, slices). `in_chans` counts channels per frame, so the stem sees `n_frames * in_chans`.
    Raises InputError when the numbers do not fit together. Source: Fu et al. 2025, arXiv:2506.00679.
    """

    network = "convvit"
    """What `config.json` calls this kind of network; it need not say so."""

    image_size: Size3 = (192, 192, 16)
    n_frames: int = 2
    in_chans: int = 1
    out_chans: int = 2
    enc_patch_size: Size3 = (4, 4, 1)
    enc_scale_factor: Size3 = (2, 2, 1)
    enc_conv_chans: tuple[int, ...] = (64, 128)
    enc_conv_n_blocks: int = 2
    enc_embed_dim: int = 768
    enc_depth: int = 12
    enc_n_heads: int = 12
    mlp_ratio: int = 4
    qkv_bias: bool = True
    norm_eps: float = 1e-5
    conv_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("image_size", "enc_patch_size", "enc_scale_factor"):
            size = getattr(self, name)
            if len(size) != 3 or min(size) < 1:
                raise InputError(f"model config: {name} must be three numbers of at least 1, got {list(size)}")
        counts = ("n_frames", "in_chans", "out_chans", "enc_embed_dim", "enc_depth", "enc_n_heads", "mlp_ratio")
        for name in counts:
            if getattr(self, name) < 1:
                raise InputError(f"model config: {name} must be at least 1, got {getattr(self, name)}")
        if self.enc_embed_dim % self.enc_n_heads:
            raise InputError(
                f"model config: enc_embed_dim {self.enc_embed_dim} is not a multiple of enc_n_heads {self.enc_n_heads}"
            )
        if any(extent % patch for extent, patch in zip(self.image_size, self.patch_size, strict=True)):
            raise InputError(
                f"model config: image_size {list(self.image_size)} is not a multiple of the "
                f"effective patch {list(self.patch_size)}"
            )

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """CineMA's size "tiny": for tests; depth 1."""
        return replace(cls(enc_embed_dim=16, enc_depth=1, enc_n_heads=2), **changes)

    @classmethod
    def base(cls, **changes: Any) -> Self:
        """CineMA's size "base", the one its published weights have."""
        return replace(cls(), **changes)

    @classmethod
    def of_size(cls, size: str, **changes: Any) -> Self:
        """The preset called `size`. Raises InputError for a name that is none of `SIZES`."""
        if size not in SIZES:
            raise InputError(f"unknown model size {size!r}; choose one of {', '.join(SIZES)}")
        return cls.tiny(**changes) if size == "tiny" else cls.base(**changes)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "model config") -> Self:
        """Build from parsed JSON; lists become tuples. Raises InputError naming an unknown key or an unsupported choice."""
        known = {field.name for field in fields(cls)}
        try:
            return cls(**chosen(values, known, _FIXED, _REMARKS, source))
        except TypeError as error:
            raise InputError(f"{source}: a value has the wrong type: {error}") from error

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read `path`; of a file that describes a pre-training run too, the part `clf` is meant."""
        values = read_object(path)
        return cls.from_mapping(values.get("clf", values), source=str(path))

    def to_json(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @property
    def patch_size(self) -> Size3:
        """Extent of one token in image voxels: the first patch times one scale factor per convolution stage."""
        stages = len(self.enc_conv_chans)
        h, w, d = (p * s**stages for p, s in zip(self.enc_patch_size, self.enc_scale_factor, strict=True))
        return h, w, d

    @property
    def grid_size(self) -> Size3:
        """Tokens per axis for `image_size`."""
        h, w, d = (extent // patch for extent, patch in zip(self.image_size, self.patch_size, strict=True))
        return h, w, d

    @property
    def image_chans(self) -> int:
        """Channels the stem sees."""
        return self.n_frames * self.in_chans

    def for_frames(self, frames: Frames) -> Self:
        """The same network seeing all frames at once (`FRAME_COUNT` if it was made for one), or a single frame."""
        stacked = self.n_frames if self.n_frames > 1 else FRAME_COUNT
        return replace(self, n_frames=stacked if frames == "stacked" else 1)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises InputError when there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the model config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"the model config {path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"the model config {path} must be one JSON object, got {type(values).__name__}")
    return values


def chosen(
    values: Mapping[str, Any],
    known: Collection[str],
    fixed: Mapping[str, tuple[Any, ...]],
    remarks: Collection[str],
    source: str,
) -> dict[str, Any]:
    """The values of `known` keys, lists as tuples.

    Raises InputError for a key that is neither known nor fixed nor a remark, and for a fixed one with another value than allowed.
    """
    for key, value in values.items():
        if key in fixed and value not in fixed[key]:
            raise InputError(f"{source}: {key} = {value!r} is not supported; it must be {fixed[key][0]!r}")
        if key not in known and key not in fixed and key not in remarks:
            raise InputError(f"{source}: unknown key {key!r}; known keys are {', '.join(sorted(known))}")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in known}

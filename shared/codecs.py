"""Codecs: how a tensor's numbers are written when they travel. A recipe names one; both sides derive the layout from it.

f32     float32 as it is: nothing is lost
bf16    the upper half of a float32, rounded to nearest, ties to even: half the bytes, 8 significant bits.
        IEEE 754-2019, section 4.3.1 (the rounding); the format is that of Wang & Kanwar 2019 ("BFloat16", Google Cloud).
int8    whole numbers from -127 to 127 times a scale, rounded at random (`shared.quantising`)
int4    the same from -7 to 7, two in a byte
topk    the largest share of a tensor's numbers as int8, with their places (`shared.sparse`)

Each of them may be followed by "+zstd": a tensor's float bytes sorted by place (all first bytes, all second bytes ...), and the
whole payload in compressed blocks (`shared.blocks`).

Decoding is exact: every value a codec can write is a float32. What encoding lost is therefore known to the sender to the last
bit, and goes into the next update (`site_agent.egress`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shared import quantising, sparse
from shared.errors import InvalidAdapter

PLAIN = "F32"
"""Type of adapter files and of everything that is computed with."""
COMPRESSED = "+zstd"
CODECS = tuple(name + stage for name in ("f32", "bf16", "int8", "int4", "topk") for stage in ("", COMPRESSED))
"""Installed codecs."""

DTYPES = f"{PLAIN}, BF16, INT8, INT4 and TOPK@share, each with or without {COMPRESSED}"
"""The types there are, for people."""

Shape = tuple[int, ...]
Array = npt.NDArray[np.float32]


class Encoding(Protocol):
    """How one tensor lies in a payload."""

    @property
    def fixed(self) -> bool:
        """Whether every tensor of a shape takes the same number of bytes; else its length stands before it."""
        ...

    def size(self, shape: Shape) -> int:
        """Return the most bytes a tensor can take."""
        ...

    def encode(self, array: Array, seed: bytes) -> bytes:
        """Return a tensor's bytes; whatever is drawn at random is drawn from `seed`."""
        ...

    def decode(self, data: bytes, shape: Shape) -> Array:
        """Return the tensor, exactly. Raises InvalidAdapter for bytes that no tensor of this shape has."""
        ...


@dataclass(frozen=True, slots=True)
class _Float32:
    fixed: bool = True

    def size(self, shape: Shape) -> int:
        return 4 * math.prod(shape)

    def encode(self, array: Array, seed: bytes) -> bytes:
        del seed
        return array.astype("<f4", copy=False).tobytes()

    def decode(self, data: bytes, shape: Shape) -> Array:
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False).reshape(shape)


@dataclass(frozen=True, slots=True)
class _BFloat16:
    fixed: bool = True

    def size(self, shape: Shape) -> int:
        return 2 * math.prod(shape)

    def encode(self, array: Array, seed: bytes) -> bytes:
        """Values that are not finite stay so; a finite one beyond the range becomes infinite, which both ends refuse."""
        del seed
        return quantising.to_bfloat16(array).astype("<u2").tobytes()

    def decode(self, data: bytes, shape: Shape) -> Array:
        return quantising.from_bfloat16(np.frombuffer(data, "<u2")).reshape(shape)


@dataclass(frozen=True, slots=True)
class _Shuffled:
    """Another encoding's bytes by their place in a number: what compresses well stands together."""

    inner: Encoding
    itemsize: int
    fixed: bool = True

    def size(self, shape: Shape) -> int:
        return self.inner.size(shape)

    def encode(self, array: Array, seed: bytes) -> bytes:
        return shuffled(self.inner.encode(array, seed), self.itemsize)

    def decode(self, data: bytes, shape: Shape) -> Array:
        return self.inner.decode(unshuffled(data, self.itemsize), shape)


def shuffled(data: bytes, itemsize: int) -> bytes:
    """Return all first bytes of the items, then all second ones, and so on: like stands beside like."""
    return np.frombuffer(data, np.uint8).reshape(-1, itemsize).T.tobytes()


def unshuffled(data: bytes, itemsize: int) -> bytes:
    """Undo `shuffled`. Raises InvalidAdapter if the bytes are no whole items."""
    if len(data) % itemsize:
        raise InvalidAdapter(f"{len(data)} bytes are no whole number of {itemsize}-byte items")
    return np.frombuffer(data, np.uint8).reshape(itemsize, -1).T.tobytes()


def dtype(codec: str, topk_share: float) -> str:
    """Return the type that a codec gives every tensor of a layout."""
    name, plus, stage = codec.partition("+")
    kind = {"f32": PLAIN, "bf16": "BF16", "topk": f"TOPK@{topk_share!r}"}.get(name, name.upper())
    return kind + plus + stage


@lru_cache(maxsize=256)
def encoding(dtype: str) -> Encoding | None:
    """Return how a type is written; None if there is no such type. Every type has one spelling."""
    name, plus, _ = dtype.partition(COMPRESSED)
    if plus:
        inner = encoding(name) if dtype == name + COMPRESSED else None
        itemsize = {PLAIN: 4, "BF16": 2}.get(name)
        return inner if inner is None or itemsize is None else _Shuffled(inner, itemsize)
    if name.startswith("TOPK@"):
        return sparse.of(name.removeprefix("TOPK@"))
    return _INSTALLED.get(name)


_INSTALLED: Mapping[str, Encoding] = {
    PLAIN: _Float32(),
    "BF16": _BFloat16(),
    "INT8": quantising.Quantised(levels=127, error=0.015),
    "INT4": quantising.Quantised(levels=7, error=0.2),
}


def is_compressed(dtype: str) -> bool:
    """Return whether payloads with tensors of this type travel in compressed blocks."""
    return dtype.endswith(COMPRESSED)


def is_lossy(codec: str) -> bool:
    """Return whether a codec may change a number."""
    return codec not in ("f32", "f32" + COMPRESSED)

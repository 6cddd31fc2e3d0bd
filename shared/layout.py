"""Which tensors a payload holds, in which order: the layout that stands for the names on the wire.

A payload is the tensors' bytes as their codec writes them, concatenated in the layout's order (sorted by name). Where a tensor's
bytes are not always equally many, their number stands before them, as four little-endian bytes; where a codec compresses, all of it
is in blocks (`shared.blocks`). Both sides derive the layout from the recipe, so the payload is the only thing that travels; whoever
derived another layout must spell it out and is refused by the first tensor that differs.
"""

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from shared import blocks, codecs
from shared.canonical import canonical_json, sha256_hex
from shared.codecs import PLAIN, Encoding
from shared.errors import InvalidAdapter

MAX_TENSORS = 1024
MAX_DIMENSIONS = 8
MAX_NAME = 512
MAX_DTYPE = 40
RESERVED_NAME = "__metadata__"
_LENGTH = struct.Struct("<I")
MAX_BYTES = 2 << 30
"""Far above any backbone's full fine-tuning (358 MB for CineMA-base), far below what could hurt a machine."""


@dataclass(frozen=True, slots=True, order=True)
class TensorSpec:
    """Name, shape and type of one tensor; the type says how its numbers are written."""

    name: str
    shape: tuple[int, ...]
    dtype: str = PLAIN

    @property
    def encoding(self) -> Encoding:
        """How the tensor's numbers are written. Raises InvalidAdapter for a type there is not."""
        found = codecs.encoding(self.dtype)
        if found is None:
            raise InvalidAdapter(f"tensor '{self.name}' has type {self.dtype[:40]}, which is none")
        return found

    @property
    def size(self) -> int:
        """The most bytes the tensor takes in a payload."""
        encoding = self.encoding
        return encoding.size(self.shape) + (0 if encoding.fixed else _LENGTH.size)

    def check_plain(self) -> None:
        """Raise InvalidAdapter unless the tensor is float32, as all of an adapter file must be."""
        if self.dtype != PLAIN:
            raise InvalidAdapter(f"tensor '{self.name}' has type {self.dtype}, allowed are {PLAIN}")

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


@dataclass(frozen=True)
class Layout:
    """Tensors in payload order. Raises InvalidAdapter if names repeat or are unsorted, or a limit is passed."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        if len(self.tensors) > MAX_TENSORS:
            raise InvalidAdapter(f"{len(self.tensors)} tensors are more than the limit of {MAX_TENSORS}")
        for spec in self.tensors:
            _check_spec(spec)
        for before, after in zip(self.tensors, self.tensors[1:], strict=False):
            if before.name >= after.name:
                raise InvalidAdapter(f"tensor '{after.name}' follows '{before.name}': names must be sorted and unique")
        if self.size > MAX_BYTES:
            raise InvalidAdapter(f"{self.size} bytes of tensors are more than the limit of {MAX_BYTES}")

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray]) -> "Layout":
        """Return the layout of float32 arrays; another type raises InvalidAdapter naming the tensor."""
        specs = []
        for name, array in sorted(tensors.items()):
            if array.dtype != np.float32:
                raise InvalidAdapter(f"tensor '{name}' is {array.dtype}, expected float32")
            specs.append(TensorSpec(name, tuple(array.shape)))
        return cls(tuple(specs))

    @classmethod
    def from_jsonable(cls, value: Any) -> "Layout":
        """Read what `to_jsonable` made; anything else raises InvalidAdapter."""
        try:
            return cls(tuple(spec_of(name, shape, dtype) for name, shape, dtype in value))
        except (TypeError, ValueError) as error:
            raise InvalidAdapter(f"a layout is a list of [name, shape, dtype], got {str(value)[:80]!r}") from error

    def to_jsonable(self) -> list[list[Any]]:
        """Return [[name, shape, dtype], ...]."""
        return [[s.name, list(s.shape), s.dtype] for s in self.tensors]

    @cached_property
    def size(self) -> int:
        """Payload bytes, the most there can be."""
        size = sum(s.size for s in self.tensors)
        return blocks.most(size) if self.compressed else size

    @cached_property
    def compressed(self) -> bool:
        """Whether a payload is in compressed blocks."""
        return any(codecs.is_compressed(s.dtype) for s in self.tensors)

    @cached_property
    def fixed(self) -> bool:
        """Whether every payload has `size` bytes."""
        return not self.compressed and all(s.encoding.fixed for s in self.tensors)

    def fits(self, size: int) -> bool:
        """Return whether a payload may have so many bytes."""
        return size == self.size if self.fixed else 0 < size <= self.size

    @cached_property
    def parameters(self) -> int:
        """Scalars in all."""
        return sum(math.prod(s.shape) for s in self.tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON form, hex."""
        return sha256_hex(canonical_json(self.to_jsonable()))

    def check_equal(self, other: "Layout") -> None:
        """Raise InvalidAdapter naming the first tensor in which `other`, as received, differs from this layout."""
        expected = {s.name: s for s in self.tensors}
        got = {s.name: s for s in other.tensors}
        for name in sorted(expected.keys() | got.keys()):
            if name not in expected:
                raise InvalidAdapter(
                    f"extra tensor '{name}': this round takes {len(expected)} tensors and not this one"
                )
            if name not in got:
                raise InvalidAdapter(f"missing tensor '{name}'")
            if got[name] != expected[name]:
                raise InvalidAdapter(f"tensor '{name}' is {got[name]}, expected {expected[name]}")

    def written_as(self, dtype: str) -> "Layout":
        """Return the layout of the same tensors written as another type."""
        return Layout(tuple(replace(s, dtype=dtype) for s in self.tensors))

    def only(self, travels: Callable[[str], bool]) -> "Layout":
        """Return the layout of those tensors whose name is wanted."""
        return Layout(tuple(s for s in self.tensors if travels(s.name)))

    def join(self, tensors: Mapping[str, np.ndarray], seed: bytes = b"") -> bytes:
        """Return the payload of float32 `tensors`, encoded as the layout says; what a codec draws is drawn from `seed`.

        Names and shapes must match the layout; raises InvalidAdapter naming the first that does not.
        """
        self.written_as(PLAIN).check_equal(Layout.of(tensors))
        data = b"".join(_written(s, tensors[s.name], seed) for s in self.tensors)
        return blocks.pack(data) if self.compressed else data

    def split(self, payload: bytes) -> dict[str, np.ndarray]:
        """Return the float32 tensors of `payload` by name.

        Raises InvalidAdapter on a wrong size, bytes that are no tensor's, or a non-finite value.
        """
        if not self.fits(len(payload)):
            raise InvalidAdapter(f"payload has {len(payload)} bytes, the layout has {self.size}")
        tensors = {}
        for spec, array in self.read([payload]):
            if not np.isfinite(array).all():
                raise InvalidAdapter(f"tensor '{spec.name}' has {int((~np.isfinite(array)).sum())} non-finite values")
            tensors[spec.name] = array
        return tensors

    def read(self, pieces: Iterable[bytes]) -> Iterator[tuple[TensorSpec, np.ndarray]]:
        """Yield (spec, float32 array) in order from payload bytes cut anywhere: one tensor and one piece in memory at a time.

        Raises InvalidAdapter naming the tensor if the bytes end early, go on after the last one or are no tensor's.
        """
        source = blocks.Source(blocks.unpack(pieces) if self.compressed else pieces)
        for spec in self.tensors:
            encoding, what = spec.encoding, f"tensor '{spec.name}'"
            length = most = encoding.size(spec.shape)
            if not encoding.fixed:
                (length,) = _LENGTH.unpack(source.take(_LENGTH.size, what))
                if length > most:
                    raise InvalidAdapter(f"tensor '{spec.name}' says {length} bytes, it has at most {most}")
            data = source.take(length, what)
            try:
                yield spec, encoding.decode(data, spec.shape)
            except InvalidAdapter as error:
                raise InvalidAdapter(f"tensor '{spec.name}': {error}") from error
        if not source.is_empty():
            raise InvalidAdapter(f"the payload goes on after the last tensor; it has at most {self.size} bytes")


def _written(spec: TensorSpec, array: np.ndarray, seed: bytes) -> bytes:
    data = spec.encoding.encode(array, seed + spec.name.encode())
    return data if spec.encoding.fixed else _LENGTH.pack(len(data)) + data


def spec_of(name: object, shape: object, dtype: object) -> TensorSpec:
    """Return the spec of values that somebody else wrote. Raises InvalidAdapter naming the tensor; its text stays short."""
    if not (isinstance(name, str) and isinstance(shape, list) and isinstance(dtype, str)) or any(
        type(size) is not int for size in shape
    ):
        raise InvalidAdapter(
            f"tensor {str(name)[:MAX_NAME]!r} needs a name, a list of whole numbers as shape, and a dtype"
        )
    spec = TensorSpec(name, tuple(shape), dtype)
    _check_spec(spec)
    return spec


def _check_spec(spec: TensorSpec) -> None:
    if not spec.name or len(spec.name) > MAX_NAME:
        raise InvalidAdapter(f"tensor name of {len(spec.name)} characters, allowed are 1 to {MAX_NAME}")
    if spec.name == RESERVED_NAME:
        raise InvalidAdapter(f"tensor name '{RESERVED_NAME}' is taken: safetensors files keep their metadata under it")
    if not (spec.name.isascii() and spec.name.isprintable()):
        raise InvalidAdapter(f"tensor name {spec.name!a} has characters other than printable ASCII")
    if len(spec.dtype) > MAX_DTYPE or codecs.encoding(spec.dtype) is None:
        raise InvalidAdapter(f"tensor '{spec.name}' has type {spec.dtype[:40]}, allowed are {codecs.DTYPES}")
    if len(spec.shape) > MAX_DIMENSIONS:
        raise InvalidAdapter(f"tensor '{spec.name}' has {len(spec.shape)} dimensions, the limit is {MAX_DIMENSIONS}")
    for size in spec.shape:
        if not 0 < size <= MAX_BYTES:
            raise InvalidAdapter(
                f"tensor '{spec.name}' has a dimension of {str(size)[:20]}: sizes must be 1 to {MAX_BYTES}"
            )

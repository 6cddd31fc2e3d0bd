"""Numbers as small whole numbers times a scale, rounded at random.

A tensor is cut into slices, and each slice x gets the scale s = max |x| / levels, rounded up to bfloat16. x / s is rounded up
or down at random so that its mean is x / s (stochastic rounding: Alistarh et al. 2017, arXiv:1610.02132, section 3). The
slices are the whole tensor, its rank components (the rows of a LoRA A, the columns of a B), or groups of 64 numbers: the
fewest bytes that keep the expected error within `error`, else the most accurate.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidAdapter

GROUP = 64
WHOLE, COMPONENTS, GROUPS = 0, 1, 2
_SCALE_BYTES = 2

Shape = tuple[int, ...]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Quantised:
    """Whole numbers from -levels to levels: a byte each, or half a byte where levels is at most 7.

    `error`: what sqrt(E||decoded - x||^2 / ||x||^2) may be. Bytes of a tensor: one for the kind of slices, two for each slice's
    scale (bfloat16, little-endian), then the numbers in two's complement; of two in a byte, the first is the lower half.
    """

    levels: int
    error: float
    kinds: tuple[int, ...] = (WHOLE, COMPONENTS, GROUPS)
    fixed: bool = False

    def size(self, shape: Shape) -> int:
        """Return the most bytes a tensor can take."""
        return max(self._size(shape, kind) for kind in self.kinds)

    def encode(self, array: Floats, seed: bytes) -> bytes:
        """Return a tensor's bytes. A value that is not finite, or no bfloat16 can scale, is refused when it is decoded."""
        with np.errstate(invalid="ignore", over="ignore"):
            kind = self._kind(array)
            slices = _cut(array, kind)
            scales = self._scales(slices)
            bits = to_bfloat16(scales).astype("<u2")
            exact = slices.astype(np.float64) / np.where(scales > 0, scales, 1).astype(np.float64)[:, None]
            up = uniform(seed, slices.size).reshape(slices.shape) < exact - np.floor(exact)
            codes = np.nan_to_num(np.floor(exact) + up, nan=0.0, posinf=0.0, neginf=0.0)
        codes = np.clip(codes, -self.levels, self.levels).astype(np.int8)
        return bytes([kind]) + bits.tobytes() + self._packed(codes.reshape(-1)[: array.size])

    def decode(self, data: bytes, shape: Shape) -> Floats:
        """Return the tensor. Raises InvalidAdapter for bytes that no tensor of this shape has."""
        kind, count = data[0] if data else -1, math.prod(shape)
        if kind not in self.kinds or len(data) != self._size(shape, kind):
            raise InvalidAdapter(f"{len(data)} bytes of quantised numbers begin with {data[:1].hex() or 'nothing'}")
        end = 1 + _SCALE_BYTES * _slices(shape, kind)
        scales = from_bfloat16(np.frombuffer(data[1:end], "<u2"))
        codes = self._unpacked(data[end:], count)
        if codes.size and not -self.levels <= int(codes.min()) <= int(codes.max()) <= self.levels:
            raise InvalidAdapter(f"a quantised number is outside -{self.levels} to {self.levels}")
        with np.errstate(invalid="ignore", over="ignore"):
            return _scaled(codes, scales, shape, kind)

    def _kind(self, array: Floats) -> int:
        """Return the kind of slices with the fewest bytes whose expected error is within bounds, or the smallest error.

        Rounding x/s at random between its neighbours costs s^2 f (1 - f) on average, f being its fraction: s^2/6 if f is
        uniform.
        """
        kinds = sorted(self.kinds, key=lambda kind: (self._size(array.shape, kind), kind))
        squared = _squared(array)
        if not 0 < squared < math.inf:
            return kinds[0]
        lost = {}
        for kind in kinds:
            slices = _cut(array, kind)
            lost[kind] = slices.shape[1] * _squared(self._scales(slices)) / 6
            if lost[kind] <= self.error**2 * squared:
                return kind
        return min(kinds, key=lost.__getitem__)

    def _scales(self, slices: Floats) -> Floats:
        """Return a bfloat16 for every slice, rounded up so that no number is cut off."""
        largest = np.abs(slices).max(axis=1, initial=0.0) / np.float32(self.levels)
        bits = np.ascontiguousarray(largest, np.float32).view(np.uint32)
        up = (bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
        return np.where(np.isfinite(largest), up, bits).astype(np.uint32).view(np.float32)

    def _size(self, shape: Shape, kind: int) -> int:
        count = math.prod(shape)
        return 1 + _SCALE_BYTES * _slices(shape, kind) + (count if self.levels > 7 else (count + 1) // 2)

    def _packed(self, codes: npt.NDArray[np.int8]) -> bytes:
        if self.levels > 7:
            return codes.tobytes()
        halves = np.zeros(codes.size + codes.size % 2, np.uint8)
        halves[: codes.size] = codes.view(np.uint8) & 0x0F
        return (halves[::2] | (halves[1::2] << 4)).astype(np.uint8).tobytes()

    def _unpacked(self, data: bytes, count: int) -> npt.NDArray[np.int8]:
        if self.levels > 7:
            return np.frombuffer(data, np.int8)
        packed = np.frombuffer(data, np.uint8)
        halves = np.empty(2 * len(packed), np.uint8)
        halves[::2], halves[1::2] = packed & 0x0F, packed >> 4
        if halves[count:].any():
            raise InvalidAdapter("half a byte after the last quantised number is not zero")
        return ((halves[:count] ^ 8).astype(np.int8) - 8).astype(np.int8)


def _squared(array: Floats) -> float:
    """Return the sum of squares, added one after the other: the same on every machine."""
    return float(np.cumsum(np.square(array, dtype=np.float64))[-1]) if array.size else 0.0


def _axis(shape: Shape) -> int:
    """The axis that counts rank components: the shorter of a matrix, the first of any other tensor."""
    return 1 if len(shape) == 2 and shape[1] < shape[0] else 0


def _slices(shape: Shape, kind: int) -> int:
    if kind == WHOLE or not shape:
        return 1
    return shape[_axis(shape)] if kind == COMPONENTS else -(-math.prod(shape) // GROUP)


def _width(shape: Shape, kind: int) -> int:
    count = math.prod(shape)
    return min(GROUP, max(count, 1)) if kind == GROUPS and shape else count // _slices(shape, kind)


def _cut(array: Floats, kind: int) -> Floats:
    """Return (slices, numbers in each); the last group is filled up with zeros."""
    flat = (
        np.moveaxis(array, _axis(array.shape), 0).reshape(-1)
        if kind == COMPONENTS and array.ndim
        else array.reshape(-1)
    )
    slices, width = _slices(array.shape, kind), _width(array.shape, kind)
    return np.pad(flat, (0, slices * width - flat.size)).reshape(slices, width)


def _scaled(codes: npt.NDArray[np.int8], scales: Floats, shape: Shape, kind: int) -> Floats:
    """Return the numbers of a tensor from those of its slices, in no more memory than it takes."""
    found = np.empty(shape, np.float32)
    if kind == GROUPS and shape:
        flat, whole = found.reshape(-1), codes.size - codes.size % GROUP
        np.multiply(
            codes[:whole].reshape(-1, GROUP), scales[: whole // GROUP, None], out=flat[:whole].reshape(-1, GROUP)
        )
        if whole < codes.size:
            np.multiply(codes[whole:], scales[-1], out=flat[whole:])
        return found
    slices = np.moveaxis(found, _axis(shape), 0) if kind == COMPONENTS and shape else found.reshape(1, -1)
    np.multiply(codes.reshape(slices.shape), scales.reshape(-1, *[1] * (slices.ndim - 1)), out=slices)
    return found


def uniform(seed: bytes, count: int) -> npt.NDArray[np.float64]:
    """Return numbers in [0, 1) that depend on the seed alone, on any machine and release: raw 53 bits of Philox 4x64.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    key = np.frombuffer(hashlib.sha256(seed).digest()[:16], "<u8")
    raw = np.random.Philox(key=key).random_raw(count)
    return (np.asarray(raw, np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def to_bfloat16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # rounding could carry a NaN into infinity or zero
    return np.where(np.isnan(array), quiet, rounded).astype(np.uint16).reshape(array.shape)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return the numbers that bfloat16 bits stand for, exactly."""
    return np.asarray(bits.astype(np.uint32) << np.uint32(16)).view(np.float32)

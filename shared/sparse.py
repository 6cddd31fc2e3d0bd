"""The largest numbers of a tensor and where they stand; all others are sent as zero.

Of n numbers the k = ceil(share n) of largest size travel as int8 with one scale (`shared.quantising`), in the order of their
places. The places travel as gaps in a Rice code (Rice & Plaunt 1971): with a share p of ones, gaps are geometric, and the
parameter b near log2(ln 2 / p) costs within a few hundredths of a bit of their entropy (Golomb 1966, "Run-length encodings").
Source of the sparsification: Stich et al. 2018, arXiv:1809.07599 (top-k with memory).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import InvalidAdapter
from shared.quantising import WHOLE, Floats, Quantised, Shape

_SLICE = 1 << 16
"""Numbers that are put in their places at a time; a multiple of 8, so that each slice's bits begin with a byte."""
_VALUES = Quantised(levels=127, error=math.inf, kinds=(WHOLE,))
"""One scale a tensor: the numbers that are left are of like size."""


@dataclass(frozen=True, slots=True)
class TopK:
    """Bytes of a tensor: the values, then b low bits of every gap, then the rest of every gap in unary (q zeros and a one)."""

    share: float
    fixed: bool = False

    def size(self, shape: Shape) -> int:
        """Return the most bytes a tensor can take."""
        count = math.prod(shape)
        kept = self.kept(count)
        bits = self._bits(count)
        return _VALUES.size((kept,)) + _bytes(kept * bits) + _bytes(kept + ((count - kept) >> bits))

    def kept(self, count: int) -> int:
        """Return how many of `count` numbers travel."""
        return min(count, math.ceil(self.share * count))

    def encode(self, array: Floats, seed: bytes) -> bytes:
        """Return a tensor's bytes. Of numbers of the same size the first ones travel."""
        flat = array.reshape(-1)
        kept, bits = self.kept(flat.size), self._bits(flat.size)
        places = np.sort(np.argsort(-np.abs(flat), kind="stable")[:kept])
        gaps = np.diff(places, prepend=-1) - 1
        low = ((gaps[:, None] >> np.arange(bits)) & 1).astype(np.uint8)
        ends = np.cumsum((gaps >> bits) + 1) - 1
        unary = np.zeros(int(ends[-1]) + 1, np.uint8)
        unary[ends] = 1
        parts = (np.packbits(part, bitorder="little").tobytes() for part in (low.reshape(-1), unary))
        return _VALUES.encode(flat[places], seed) + b"".join(parts)

    def decode(self, data: bytes, shape: Shape) -> Floats:
        """Return the tensor. Raises InvalidAdapter for bytes that no tensor of this shape has."""
        count = math.prod(shape)
        kept, bits = self.kept(count), self._bits(count)
        values, low = _VALUES.size((kept,)), _bytes(kept * bits)
        if not values + low < len(data) <= self.size(shape):
            raise InvalidAdapter(
                f"{len(data)} bytes of a sparse tensor, allowed are {values + low + 1} to {self.size(shape)}"
            )
        numbers = _VALUES.decode(data[:values], (kept,))
        quotients, end = _unary(data[values + low :], kept)
        if len(quotients) != kept or len(data) != values + low + _bytes(end):
            raise InvalidAdapter(f"a sparse tensor has {len(quotients)} places in {len(data)} bytes, expected {kept}")
        flat, last = np.zeros(count, np.float32), -1
        for start in range(0, kept, _SLICE):
            part = slice(start, min(start + _SLICE, kept))
            bits_of_part = data[values + part.start * bits // 8 : values + _bytes(part.stop * bits)]
            digits = (
                _ones(bits_of_part)[: (part.stop - part.start) * bits]
                .reshape(-1 if bits else part.stop - part.start, bits)
                .astype(np.int64)
            )
            gaps = (quotients[part].astype(np.int64) << bits) + (digits << np.arange(bits)).sum(axis=1)
            places = last + np.cumsum(gaps + 1)
            last = int(places[-1])
            if last >= count:
                raise InvalidAdapter(f"a sparse tensor has a number at place {last}, it has {count} places")
            flat[places] = numbers[part]
        return flat.reshape(shape)

    def _bits(self, count: int) -> int:
        return max(0, round(math.log2(max(1.0, math.log(2) * count / self.kept(count)))))


def of(text: str) -> TopK | None:
    """Return the encoding of this share; None unless it is a number above 0 and at most 1 in its one spelling."""
    try:
        share = float(text)
    except ValueError:
        return None
    return TopK(share) if 0 < share <= 1 and repr(share) == text else None


def _unary(data: bytes, most: int) -> tuple[npt.NDArray[np.int32], int]:
    """Return the numbers that are written as so many zeros and a one each, and the bits they take; `most` + 1 at the most."""
    parts, found, last = list[npt.NDArray[np.int32]](), 0, -1
    for start in range(0, len(data), _SLICE // 8):
        ends = np.flatnonzero(_ones(data[start : start + _SLICE // 8])) + 8 * start
        if len(ends):
            parts.append((np.diff(ends, prepend=last) - 1).astype(np.int32))
            found, last = found + len(ends), int(ends[-1])
        if found > most:
            break
    return np.concatenate(parts) if parts else np.empty(0, np.int32), last + 1


def _ones(data: bytes) -> npt.NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")


def _bytes(bits: int) -> int:
    return (bits + 7) // 8

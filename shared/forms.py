"""How a download stands for a version: as it is, packed, or as the changes that lead to it from the copy the site has.

All of them give the version's tensors bit for bit, and the version's digest is checked at the end.
"""

from collections.abc import Mapping

import numpy as np
import zstandard

from shared.blocks import decompressed
from shared.codecs import shuffled, unshuffled
from shared.errors import InvalidAdapter
from shared.layout import Layout

_ITEM = 4
_LEVEL = 1


def pack(payload: bytes, base: bytes | None) -> bytes:
    """Return the plain float32 bytes of a version, XORed with those of a copy if there is one, shuffled and compressed.

    Where two versions are near each other sign, exponent and first digits are the same, and XOR makes them zero; a factor that
    never moves costs nothing.
    """
    return zstandard.ZstdCompressor(level=_LEVEL).compress(shuffled(_xor(payload, base), _ITEM))


def unpack(data: bytes, base: bytes | None, size: int) -> bytes:
    """Undo `pack`; `size`: bytes of a plain payload. Raises InvalidAdapter for anything else, before it takes more memory."""
    payload = unshuffled(decompressed(data, size), _ITEM)
    if len(payload) != size:
        raise InvalidAdapter(f"a packed version holds {len(payload)} bytes, expected {size}")
    return _xor(payload, base)


def _xor(payload: bytes, base: bytes | None) -> bytes:
    if base is None:
        return payload
    if len(base) != len(payload):
        raise InvalidAdapter(f"a version of {len(payload)} bytes cannot build on a copy of {len(base)}")
    return (np.frombuffer(payload, np.uint8) ^ np.frombuffer(base, np.uint8)).tobytes()


def moved(base: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return base + step as float32, added in float64: bit for bit the same everywhere."""
    return (base.astype(np.float64) + step.astype(np.float64)).astype(np.float32)


def changed(tensors: Mapping[str, np.ndarray], layout: Layout, change: bytes) -> dict[str, np.ndarray]:
    """Return the tensors after a change of some of them. Raises InvalidAdapter as `Layout.split` does."""
    return {**tensors, **{name: moved(tensors[name], step) for name, step in layout.split(change).items()}}

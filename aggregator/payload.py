"""Tensors out of payload bytes that come in pieces, one tensor in memory at a time."""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from shared import codecs
from shared.codecs import DTYPES
from shared.errors import InvalidUpdate
from shared.layout import Layout, TensorSpec

MAX_ABSOLUTE = 1e6
"""Largest value a delta may hold: far above any training step, and low enough that no sum of deltas leaves float32."""


def tensors(layout: Layout, pieces: Iterable[bytes]) -> Iterator[tuple[TensorSpec, np.ndarray]]:
    """Yield (spec, decoded float32 array) in the layout's order from payload bytes cut anywhere.

    Raises InvalidUpdate if the bytes end early or go on after the last tensor.
    """
    source, held = iter(pieces), bytearray()
    for spec in layout.tensors:
        while len(held) < spec.size:
            piece = next(source, None)
            if piece is None:
                raise InvalidUpdate(f"the payload ends inside tensor '{spec.name}'; it must have {layout.size} bytes")
            held += piece
        written = np.frombuffer(bytes(held[: spec.size]), DTYPES[spec.dtype], math.prod(spec.shape))
        del held[: spec.size]
        yield spec, codecs.decode(spec.dtype, written.reshape(spec.shape))
    if held or next(source, None) is not None:
        raise InvalidUpdate(f"the payload goes on after the last tensor; it must have {layout.size} bytes")


def check_delta(layout: Layout, pieces: Iterable[bytes]) -> None:
    """Raise InvalidUpdate naming the first tensor with a non-finite or absurdly large value, or if the size is wrong."""
    for spec, array in tensors(layout, pieces):
        finite = np.isfinite(array)
        if not finite.all():
            raise InvalidUpdate(f"tensor '{spec.name}' has {int((~finite).sum())} non-finite values")
        largest = float(np.abs(array).max())
        if largest > MAX_ABSOLUTE:
            raise InvalidUpdate(
                f"tensor '{spec.name}' has a value of size {largest:.3g}, allowed is {MAX_ABSOLUTE:.0e}"
            )

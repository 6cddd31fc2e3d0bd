"""Tensors out of payload bytes that come in pieces, one tensor in memory at a time."""

from collections.abc import Iterable, Iterator

import numpy as np

from shared.errors import InvalidAdapter, InvalidUpdate
from shared.layout import Layout, TensorSpec

MAX_ABSOLUTE = 1e6
"""Largest value a delta may hold: far above any training step, and low enough that no sum of deltas leaves float32."""


def tensors(layout: Layout, pieces: Iterable[bytes]) -> Iterator[tuple[TensorSpec, np.ndarray]]:
    """Yield (spec, decoded float32 array) in the layout's order from payload bytes cut anywhere.

    Raises InvalidUpdate if the bytes end early, go on after the last tensor or are no tensor's.
    """
    try:
        yield from layout.read(pieces)
    except InvalidAdapter as error:
        raise InvalidUpdate(str(error)) from error


def checked(layout: Layout, pieces: Iterable[bytes]) -> Iterator[tuple[TensorSpec, np.ndarray]]:
    """Yield as `tensors` does. Raises InvalidUpdate naming the first tensor with a non-finite or absurdly large value too."""
    for spec, array in tensors(layout, pieces):
        finite = np.isfinite(array)
        if not finite.all():
            raise InvalidUpdate(f"tensor '{spec.name}' has {int((~finite).sum())} non-finite values")
        largest = float(np.abs(array).max())
        if largest > MAX_ABSOLUTE:
            raise InvalidUpdate(
                f"tensor '{spec.name}' has a value of size {largest:.3g}, allowed is {MAX_ABSOLUTE:.0e}"
            )
        yield spec, array


def check_delta(layout: Layout, pieces: Iterable[bytes]) -> None:
    """Read all of it as `checked` does, for its errors."""
    for _ in checked(layout, pieces):
        pass

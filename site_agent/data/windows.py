"""Volumes larger than the model's image: overlapping windows, and one answer from the windows' logits.

As CineMA evaluates (`cinema/classification/train.py` and `cinema/transform.py`, arXiv:2506.00679): windows overlap by half
their length on every axis, a last window is set flush with the end, softmax probabilities are averaged, and the logarithm of
the mean stands for the volume's logits. x and y are treated like z: nothing is centred or cut off.
"""

from itertools import product

import numpy as np
import numpy.typing as npt

Window = tuple[int, int, int]


def starts(shape: tuple[int, ...], window: Window) -> npt.NDArray[np.int64]:
    """First index of each window, (n, 3), z running fastest; one row where `shape` equals `window`.

    Raises ValueError if an axis is shorter than the window: pad first (`cohort.pad_to`).
    """
    axes = [_axis_starts(length, size) for length, size in zip(shape, window, strict=True)]
    return np.array(list(product(*axes)), dtype=np.int64)


def split(volume: npt.NDArray[np.float32], window: Window) -> npt.NDArray[np.float32]:
    """(c, X, Y, Z) -> (n, c, *window), in the order of `starts`."""
    x, y, z = window
    corners = starts(volume.shape[1:], window)
    return np.stack([volume[:, i : i + x, j : j + y, k : k + z] for i, j, k in corners])


def combine_logits(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """(n windows, classes) -> (classes,): log of the mean softmax. One window's logits are returned as they are."""
    values = np.asarray(logits, dtype=np.float64)
    result: npt.NDArray[np.float64]
    if len(values) == 1:
        result = values[0]
        return result
    shifted = values - values.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    # log(mean(exp(.))) with the largest term taken out: a class that is hopeless in every window must not become log(0)
    largest = log_softmax.max(axis=0)
    result = largest + np.log(np.exp(log_softmax - largest).mean(axis=0))
    return result


def _axis_starts(length: int, size: int) -> list[int]:
    if length < size:
        raise ValueError(f"an axis of {length} is shorter than the window of {size}; pad the volume first")
    step = size - size // 2
    last = length - size
    regular = list(range(0, last + 1, step))
    return regular if regular[-1] == last else [*regular, last]

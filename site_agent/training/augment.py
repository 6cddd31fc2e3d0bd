"""Random views of a prepared case, with MONAI transforms.

A rotation about the slice axis, an in-plane shift and scaling, the same for ED and ES, and a change of gamma; `Ranges` says how
far each may go and how often it is made. CineMA's: cinema/classification/mnms/config.yaml of mathpluscode/CineMA, commit
4e352ac3 (arXiv:2506.00679), a shift of 60 of 192 voxels. The narrow ones are this project's, for comparison.
"""

import functools
import importlib.metadata
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from shared.canonical import canonical_json, sha256_hex
from site_agent.data import cohort, windows


@dataclass(frozen=True, slots=True)
class Ranges:
    """How far a view may differ from the image."""

    rotation_rad: float
    shift: float
    """Share of the in-plane size."""
    scale: float
    gamma: float
    probability: float


RANGES: Mapping[str, Ranges] = MappingProxyType(
    {
        "cinema": Ranges(rotation_rad=math.pi, shift=60 / 192, scale=0.2, gamma=0.5, probability=0.5),
        "narrow": Ranges(rotation_rad=0.26, shift=0.06, scale=0.10, gamma=0.25, probability=0.9),
    }
)
"""By the recipe's `augmentation`."""

_IMPORTING = threading.Lock()
"""MONAI's modules load each other late; two threads that begin with it at once can find one half loaded."""

VERSION = 1
"""Raise it when the same seed gives another view."""


@functools.cache
def made_by() -> str:
    """Return what must be the same for a seed to give the same view: part of the name under which its activations are cached."""
    return f"{VERSION}, monai {importlib.metadata.version('monai')}"


def view_of(pair: np.ndarray, image_size: tuple[int, int, int], seed: list[int], ranges: Ranges) -> np.ndarray:
    """Return one random view, a pure function of its arguments.

    pair: float32 (2, x, y, z) in [0, 1], ED and ES moved alike. Returns float32 (2, *image_size).
    """
    with _IMPORTING:
        from monai.transforms.compose import Compose
        from monai.transforms.intensity.array import RandAdjustContrast
        from monai.transforms.spatial.array import RandAffine

    shift = [ranges.shift * pair.shape[1], ranges.shift * pair.shape[2], 0.0]
    transform = Compose(
        [
            RandAffine(
                prob=ranges.probability,
                rotate_range=(0.0, 0.0, ranges.rotation_rad),
                translate_range=shift,
                scale_range=(ranges.scale, ranges.scale, 0.0),
                mode="bilinear",
                padding_mode="zeros",
            ),
            RandAdjustContrast(prob=ranges.probability, gamma=(1 - ranges.gamma, 1 + ranges.gamma)),
        ]
    )
    rng = np.random.default_rng(seed)
    transform.set_random_state(seed=int(rng.integers(2**31)))
    moved = np.clip(np.asarray(transform(pair), dtype=np.float32), 0.0, 1.0)
    crops = windows.split(cohort.pad_to(moved, image_size), image_size)
    return np.asarray(crops[int(rng.integers(len(crops)))])


def case_seed(seed: int, case_key: str, view: int) -> list[int]:
    """Return the seed of one view of one case, independent of every other case."""
    return [seed, int(sha256_hex(canonical_json([case_key, view]))[:12], 16)]

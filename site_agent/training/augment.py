"""Random views of a prepared case, with MONAI transforms.

CineMA's ranges for the short axis (rotation about the slice axis, in-plane shift up to 60 of 192 voxels, scale 0.2, gamma
0.5 to 1.5, each with probability 0.5; cinema/classification/mnms/config.yaml, commit 4e352ac3), narrowed for a frozen
prefix whose views are few: a cached view is seen again and again. The narrower ranges are this project's choice.
"""

from dataclasses import dataclass

import numpy as np

from shared.canonical import canonical_json, sha256_hex
from site_agent.data import cohort, windows


@dataclass(frozen=True, slots=True)
class Ranges:
    """How far a view may differ from the image."""

    rotation_rad: float = 0.26
    shift: float = 0.06
    """Share of the in-plane size."""
    scale: float = 0.10
    gamma: float = 0.25
    probability: float = 0.9


def view_of(pair: np.ndarray, image_size: tuple[int, int, int], seed: list[int], ranges: Ranges) -> np.ndarray:
    """Return one random view, a pure function of its arguments.

    pair: float32 (2, x, y, z) in [0, 1], ED and ES moved alike. Returns float32 (2, *image_size).
    """
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

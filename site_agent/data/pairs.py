"""One case to judge: an ED and an ES volume, prepared or raw. A raw one goes through the code of `site-agent prepare`."""

from dataclasses import dataclass

import numpy as np

from shared.errors import InputError
from site_agent.data import cohort, convert
from site_agent.data.cases import CropCentre
from site_agent.data.cohort import Pair
from site_agent.data.layouts import FrameFile
from site_agent.data.nifti import Volume
from site_agent.data.preprocess import Spacing

SPACING_TOLERANCE_MM = 1e-3
"""NIfTI headers hold spacings as float32."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The spacing and size that a model's training cases were prepared to."""

    spacing_mm: Spacing
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Read:
    """A pair ready for a model: float32 (2, x, y, z) in [0, 1]. crop: how its centre was found; None if it came prepared."""

    pair: Pair
    crop: CropCentre | None


def read(ed: FrameFile, es: FrameFile, wanted: Geometry | None) -> Read:
    """Read two frames of one scan, and prepare them unless they are.

    Raises InputError if they cannot be used, or are raw and it is not known what to prepare them to.
    """
    first, second = convert.read_pair(ed, es)
    if all(is_prepared(volume, wanted) for volume in (first, second)):
        return Read(cohort.scale_jointly(np.stack([first.voxels, second.voxels])), None)
    if wanted is None:
        mm = " x ".join(f"{one:g}" for one in first.spacing)
        raise InputError(
            f"these are raw volumes ({first.voxels.dtype}, {mm} mm), and it is not known how this model's training cases were "
            "prepared; name a prepared cohort with --like cohort/VENDOR, or give --spacing and --crop as for `site-agent prepare`"
        )
    made = convert.prepare_pair(first, second, [], wanted.spacing_mm, wanted.size)
    return Read(cohort.scale_jointly(np.stack([made.ed.voxels, made.es.voxels])), made.crop)


def is_prepared(volume: Volume, wanted: Geometry | None) -> bool:
    """Whether a volume is one that `site-agent prepare` writes: uint8, and of the wanted spacing and size, if they are known."""
    if volume.voxels.dtype != np.uint8:
        return False
    if wanted is None:
        return True
    spaced = np.allclose(volume.spacing, wanted.spacing_mm, rtol=0, atol=SPACING_TOLERANCE_MM)
    return bool(spaced) and all(n <= limit for n, limit in zip(volume.voxels.shape, wanted.size, strict=False))


def words(crop: CropCentre | None, wanted: Geometry | None) -> str:
    """Say what was done to a pair."""
    if crop is None or wanted is None:
        return "taken as prepared"
    mm = " x ".join(f"{one:g}" for one in wanted.spacing_mm)
    found = {"motion": "found from motion", "centre": "not found: the image centre was used", "mask": "from the mask"}
    return f"prepared here to {mm} mm, crop {wanted.size[0]} x {wanted.size[1]}, heart {found[crop]}"

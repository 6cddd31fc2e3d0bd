"""From a raw short-axis pair to the volumes the model reads: resample, crop around the left ventricle, scale to uint8.

The steps and their numbers are CineMA's (Fu et al., arXiv:2506.00679, repository mathpluscode/CineMA, `cinema/data`), written
anew with numpy; `docs/data.md` describes them in words. All functions are pure. Canonical mask values: 1 RV, 2 MYO, 3 LV.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import InputError
from site_agent.data.nifti import Volume, Voxels

RV, MYO, LV = 1, 2, 3
PERCENTILES = (0.95, 99.5)
MAX_VOXELS = 2**28
"""A header with a spacing of metres would otherwise ask for terabytes."""
REVISION = 1
"""Part of the preprocessing hash: raise it whenever the numbers that come out change."""

Spacing = tuple[float, float, float]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ventricles:
    """Volumes in ml and ejection fractions in percent, counted on the resampled and cropped masks. None if the EDV is zero."""

    lv_edv_ml: float
    lv_esv_ml: float
    lv_ef_percent: float | None
    rv_edv_ml: float
    rv_esv_ml: float
    rv_ef_percent: float | None


def preprocessing_hash(spacing_mm: Spacing, size: tuple[int, int]) -> str:
    """sha256 over everything that decides what a raw pair becomes. Same hash, same meaning of a prepared volume."""
    facts = {
        "revision": REVISION,
        "spacing_mm": [float(mm) for mm in spacing_mm],
        "size": [int(n) for n in size],
        "percentiles": list(PERCENTILES),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


# --- resample -------------------------------------------------------------------------------------------------------


def resampled_shape(shape: tuple[int, ...], spacing: Spacing, new_spacing: Spacing) -> tuple[int, int, int]:
    """round(n * spacing / new_spacing) per axis, halves to even."""
    sizes = [int(np.round(n * old / new)) for n, old, new in zip(shape[:3], spacing, new_spacing, strict=True)]
    if min(sizes) < 1 or int(np.prod(sizes)) > MAX_VOXELS:
        raise InputError(
            f"resampling {shape[:3]} voxels of {_mm(spacing)} to {_mm(new_spacing)} gives {tuple(sizes)} voxels; "
            "check the spacing in its header"
        )
    return sizes[0], sizes[1], sizes[2]


def sample_positions(volume: Volume, new_spacing: Spacing) -> tuple[npt.NDArray[np.float64], ...]:
    """Input index (fractional) that each output index reads, one array per axis.

    The new origin is the old one plus half the change of spacing, added along the **world** axes. In input indices that
    is (R^T o) / spacing, so a shift that mixes axes for oblique scans. CineMA does this, and its weights expect it.
    """
    old, new = np.asarray(volume.spacing), np.asarray(new_spacing)
    first = (volume.direction.T @ (0.5 * (new - old))) / old
    sizes = resampled_shape(volume.voxels.shape, volume.spacing, new_spacing)
    return tuple(first[axis] + np.arange(sizes[axis]) * (new[axis] / old[axis]) for axis in range(3))


def resample(volume: Volume, new_spacing: Spacing, *, nearest: bool = False) -> Volume:
    """Resample a 3D volume. Linear for images, nearest for masks; zero outside, clamped within half a voxel of the border.

    An integer image stays integer: the interpolated value is truncated towards zero.
    """
    voxels = volume.voxels
    positions = sample_positions(volume, new_spacing)
    for axis, at in enumerate(positions):
        if voxels.shape[axis] == len(at) and np.array_equal(at, np.arange(len(at))):
            continue  # this axis keeps its grid
        voxels = _nearest_along(voxels, axis, at) if nearest else _linear_along(voxels, axis, at)
    voxels = _zero_outside(voxels, volume.voxels.shape, positions)
    origin = volume.origin + 0.5 * (np.asarray(new_spacing) - np.asarray(volume.spacing))
    return Volume(voxels.astype(volume.voxels.dtype, copy=False), new_spacing, volume.direction, origin)


def _linear_along(voxels: Voxels, axis: int, at: npt.NDArray[np.float64]) -> Voxels:
    last = voxels.shape[axis] - 1
    inside = np.clip(at, 0, last)
    below = np.floor(inside).astype(np.intp)
    weight = (inside - below).reshape([-1 if a == axis else 1 for a in range(3)])
    lower = np.take(voxels, below, axis=axis).astype(np.float64)
    upper = np.take(voxels, np.minimum(below + 1, last), axis=axis)
    # lower + w (upper - lower), not (1 - w) lower + w upper: a flat region must come out flat before it is truncated
    result: Voxels = lower + weight * (upper - lower)
    return result


def _nearest_along(voxels: Voxels, axis: int, at: npt.NDArray[np.float64]) -> Voxels:
    index = np.floor(np.clip(at, 0, voxels.shape[axis] - 1) + 0.5).astype(np.intp)
    result: Voxels = np.take(voxels, index, axis=axis)
    return result


def _zero_outside(voxels: Voxels, shape: tuple[int, ...], positions: tuple[npt.NDArray[np.float64], ...]) -> Voxels:
    for axis, at in enumerate(positions):
        outside = (at < -0.5) | (at >= shape[axis] - 0.5)
        if outside.any():
            voxels = voxels.copy()
            voxels[(slice(None),) * axis + (outside,)] = 0
    return voxels


# --- masks and crop -------------------------------------------------------------------------------------------------


def canonical_mask(mask: Volume, values: Mapping[int, int]) -> Volume:
    """Mask values as 1 RV, 2 MYO, 3 LV; `values` maps the data set's own ones. Others become 0."""
    raw = np.rint(mask.voxels) if mask.voxels.dtype.kind == "f" else mask.voxels
    result = np.zeros(raw.shape, dtype=np.uint8)
    for own, canonical in values.items():
        result += np.uint8(canonical) * (raw == own)
    return mask.with_voxels(result)


def mask_centre(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Centre (x, y), in voxels, of the bounding box of a 3D mask. Raises ValueError if the mask is empty."""
    centre = []
    for others in ((1, 2), (0, 2)):
        hits = np.flatnonzero(mask.any(axis=others))
        if hits.size == 0:
            raise ValueError("the mask is empty")
        centre.append((float(hits[0]) + float(hits[-1])) / 2.0)
    return centre[0], centre[1]


def crop_box(centre: tuple[float, float], shape: tuple[int, ...], size: tuple[int, int]) -> Box:
    """The window of `size` in x and y around `centre`, moved inside the volume. Shorter axes and z are kept whole."""
    lower = [_crop_lower(c, n, target) for c, n, target in zip(centre, shape[:2], size, strict=True)]
    upper = [min(low + target, n) for low, target, n in zip(lower, size, shape[:2], strict=True)]
    return slice(lower[0], upper[0]), slice(lower[1], upper[1]), slice(0, shape[2])


def _crop_lower(centre: float, length: int, target: int) -> int:
    if length <= target:
        return 0
    return min(max(int(np.ceil(centre - target / 2.0)), 0), length - target)


def crop(volume: Volume, box: Box) -> Volume:
    """Cut `box` out of a 3D volume; the origin follows."""
    offset = np.array([float(part.start) for part in box]) * np.asarray(volume.spacing)
    return Volume(volume.voxels[box], volume.spacing, volume.direction, volume.origin + volume.direction @ offset)


# --- intensity and volumes ------------------------------------------------------------------------------------------


def to_uint8(voxels: Voxels) -> npt.NDArray[np.uint8]:
    """Clamp to the 0.95th and 99.5th percentile, stretch to [0, 255], truncate. Raises InputError for a constant volume."""
    low, high = (float(bound) for bound in np.percentile(voxels, PERCENTILES))
    if np.issubdtype(voxels.dtype, np.integer):
        low, high = float(int(low)), float(int(high))
    clamped = np.clip(voxels.astype(np.float64), low, high)
    darkest, brightest = clamped.min(), clamped.max()
    if not brightest > darkest:
        raise InputError(f"has no contrast: every voxel between the percentiles {PERCENTILES} is {darkest:g}")
    scaled: npt.NDArray[np.uint8] = ((clamped - darkest) / (brightest - darkest) * 255.0).astype(np.uint8)
    return scaled


def ventricles(ed_mask: Voxels, es_mask: Voxels, spacing_mm: Spacing) -> Ventricles:
    """Volumes and ejection fractions of both ventricles from canonical masks."""
    lv_edv, lv_esv = _volume_ml(ed_mask == LV, spacing_mm), _volume_ml(es_mask == LV, spacing_mm)
    rv_edv, rv_esv = _volume_ml(ed_mask == RV, spacing_mm), _volume_ml(es_mask == RV, spacing_mm)
    return Ventricles(
        lv_edv_ml=lv_edv,
        lv_esv_ml=lv_esv,
        lv_ef_percent=_ejection_percent(lv_edv, lv_esv),
        rv_edv_ml=rv_edv,
        rv_esv_ml=rv_esv,
        rv_ef_percent=_ejection_percent(rv_edv, rv_esv),
    )


def _volume_ml(inside: npt.NDArray[np.bool_], spacing_mm: Spacing) -> float:
    return float(inside.sum() * np.prod(spacing_mm) / 1000.0)


def _ejection_percent(edv: float, esv: float) -> float | None:
    return (edv - esv) / edv * 100.0 if edv > 0 else None


def _mm(spacing: Spacing) -> str:
    return " x ".join(f"{mm:g}" for mm in spacing) + " mm"

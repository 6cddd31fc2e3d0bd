"""Where the heart is when nobody has drawn it: the centre of what moves between end-diastole and end-systole.

A method of this project (no paper behind it), deliberately simple, for the generic layout and for scans without masks:

1. Both frames are clipped to their common 0.95th and 99.5th percentile and scaled to [0, 1].
2. m(x, y) = mean over the middle slices of |ED - ES|. A fifth of the stack at each end is left out: at the base the
   atrium moves through the slice, at the apex there is little to see.
3. m is smoothed with a Gaussian of 6 mm, which averages noise and thin edges (fat, chest wall) away.
4. The noise floor is removed: weights = max(0, m - (median + 3 x 1.4826 x MAD)).
5. Weighted centroid with a central prior (Gaussian, sigma a quarter of the field of view: scans are planned on the heart), then
   refined eight times by the centroid of the weights within 50 mm of the last one, without the prior.

No centre is returned, and the caller falls back to the image centre, when nothing stands out: the strongest smoothed
motion is less than 2 % of the intensity range above the median one.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from site_agent.data.nifti import Voxels
from site_agent.data.preprocess import PERCENTILES, Spacing

SMOOTHING_MM = 6.0
NOISE_DEVIATIONS = 3.0
PRIOR_SHARE = 0.25
NEIGHBOURHOOD_MM = 50.0
REFINEMENTS = 8
MIN_MOTION = 0.02
END_SHARE = 0.2

Plane = npt.NDArray[np.float64]


def motion_centre(ed: Voxels, es: Voxels, spacing: Spacing) -> tuple[float, float] | None:
    """Centre (x, y) of the beating heart, in voxels of the resampled pair (x, y, z), or None if nothing stands out."""
    moving = _smooth(motion_map(ed, es), (spacing[0], spacing[1]))
    median = np.median(moving)
    if moving.max() - median < MIN_MOTION:
        return None
    floor = median + NOISE_DEVIATIONS * 1.4826 * np.median(np.abs(moving - median))
    weights = np.clip(moving - floor, 0.0, None)
    if not weights.any():  # restless everywhere: nothing is left above the noise floor
        return None
    x, y = (np.arange(n) * mm for n, mm in zip(weights.shape, spacing[:2], strict=True))
    prior = np.outer(
        *(
            _bell(axis - axis.mean(), PRIOR_SHARE * (np.ptp(axis) + mm))
            for axis, mm in ((x, spacing[0]), (y, spacing[1]))
        )
    )
    centre = _centroid(weights * prior, x, y)
    for _ in range(REFINEMENTS):
        near = np.hypot(x[:, None] - centre[0], y[None, :] - centre[1]) <= NEIGHBOURHOOD_MM
        if not weights[near].any():
            break
        centre = _centroid(weights * near, x, y)
    return centre[0] / spacing[0], centre[1] / spacing[1]


def motion_map(ed: Voxels, es: Voxels) -> Plane:
    """Mean absolute difference of the two frames over the middle slices, as a share of their intensity range: (x, y)."""
    low, high = np.percentile(np.stack([ed, es]), PERCENTILES)
    if not high > low:
        return np.zeros(ed.shape[:2])
    skipped = int(END_SHARE * ed.shape[2])
    middle = slice(skipped, ed.shape[2] - skipped)
    first, second = (np.clip(frame[:, :, middle].astype(np.float64), low, high) for frame in (ed, es))
    difference: Plane = np.abs(first - second).mean(axis=2) / (high - low)
    return difference


def _smooth(plane: Plane, spacing: tuple[float, float]) -> Plane:
    """Gaussian blur of SMOOTHING_MM, edges reflected, one axis after the other."""
    for axis, mm in enumerate(spacing):
        sigma = SMOOTHING_MM / mm
        reach = min(int(np.ceil(3.0 * sigma)), plane.shape[axis] - 1)
        kernel = _bell(np.arange(-reach, reach + 1), sigma)
        padded = np.pad(plane, [(reach, reach) if a == axis else (0, 0) for a in range(2)], mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis)
        plane = windows @ (kernel / kernel.sum())
    return plane


def _bell(distance: npt.NDArray[Any], sigma: float) -> Plane:
    result: Plane = np.exp(-0.5 * (distance / sigma) ** 2)
    return result


def _centroid(weights: Plane, x: Plane, y: Plane) -> tuple[float, float]:
    total = weights.sum()
    return float((weights.sum(axis=1) @ x) / total), float((weights.sum(axis=0) @ y) / total)

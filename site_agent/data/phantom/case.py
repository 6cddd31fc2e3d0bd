"""One synthetic case as arrays: the pure core that the cohort writer and pre-training share."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from site_agent.data.phantom import anatomy, imaging, physiology
from site_agent.data.phantom.imaging import Look
from site_agent.data.phantom.physiology import Physiology
from site_agent.data.phantom.profile import Diagnosis, PhantomConfig, Vendor
from site_agent.data.preprocess import to_uint8

Voxel = TypeVar("Voxel", np.int16, np.uint8)


@dataclass(frozen=True, slots=True)
class PhantomCase:
    """A synthetic cine: arrays are (x, y, slices, frames); volumes of `body` in ml are the sampled, true ones."""

    vendor: Vendor
    diagnosis: Diagnosis
    body: Physiology
    frames: npt.NDArray[np.int16]
    masks: npt.NDArray[np.uint8]
    """1 RV, 2 MYO, 3 LV in every frame."""
    ed: int
    es: int
    """Frame indices from 0."""


def sample_case(
    config: PhantomConfig,
    vendor: Vendor,
    diagnosis: Diagnosis,
    rng: np.random.Generator,
    *,
    severity: float | None = None,
    look: Look | None = None,
    wall_offset: float | None = None,
    with_masks: bool = True,
) -> PhantomCase:
    """Draw one case.

    `severity`, `look` and `wall_offset` (mm of apparent wall) replace what the configuration gives for this vendor.
    `with_masks=False` leaves `masks` empty (no frames).
    """
    body = physiology.sample(diagnosis, config.severity if severity is None else severity, rng)
    offset = config.wall_bias * imaging.WALL_BIAS[vendor] if wall_offset is None else wall_offset
    heart = anatomy.build(body, offset, rng)
    scan = imaging.vary(imaging.vendor_look(vendor, config.style) if look is None else look, rng)
    grid = imaging.place(config.shape, config.spacing, scan.fov, config.jitter, rng)
    phase, es = anatomy.contraction(config.n_frames)
    heights = (np.arange(config.shape[2]) * config.spacing[2]).astype(np.float32)
    shape = anatomy.radii(heart, heights, phase)
    frames = imaging.draw(heart, shape, grid, scan, config.noise, rng)
    labels = imaging.masks(shape, grid) if with_masks else np.zeros((0, *frames.shape[1:]), dtype=np.uint8)
    return PhantomCase(
        vendor=vendor,
        diagnosis=diagnosis,
        body=body,
        frames=_xyzt(frames, config.shape),
        masks=_xyzt(labels, config.shape),
        ed=0,
        es=es,
    )


def _xyzt(stack: npt.NDArray[Voxel], shape: tuple[int, int, int]) -> npt.NDArray[Voxel]:
    """(frames, slices, pixels) → a view (x, y, slices, frames), whose Fortran order is that of the file."""
    return stack.reshape(len(stack), shape[2], shape[1], shape[0]).transpose(3, 2, 1, 0)


def sample_pair(
    config: PhantomConfig,
    vendor: Vendor,
    diagnosis: Diagnosis,
    rng: np.random.Generator,
    *,
    severity: float | None = None,
    look: Look | None = None,
    wall_offset: float | None = None,
) -> npt.NDArray[np.uint8]:
    """Draw the ED and ES volumes of one case, (2, x, y, slices) uint8, with the grey values `prepare` would give them."""
    case = sample_case(
        config, vendor, diagnosis, rng, severity=severity, look=look, wall_offset=wall_offset, with_masks=False
    )
    return np.stack([to_uint8(case.frames[..., case.ed]), to_uint8(case.frames[..., case.es])])

"""One raw case to two prepared volumes on disk, and many of them over several processes."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog

from shared import logs
from shared.errors import InputError
from site_agent.data import dicom, nifti, preprocess
from site_agent.data.cases import CropCentre
from site_agent.data.layouts import FrameFile, RawCase
from site_agent.data.motion import motion_centre
from site_agent.data.nifti import Volume
from site_agent.data.preprocess import Spacing, Ventricles

log = structlog.get_logger()

FEW_CASES = 24
"""Below this, starting processes costs more than it saves."""
CHUNK = 16


class Progress(Protocol):
    """Told how many of how many cases are done."""

    def __call__(self, done: int, total: int, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What is known of a case after its volumes were written."""

    n_slices: int
    crop: CropCentre
    ventricles: Ventricles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPair:
    """ED and ES as uint8 volumes of the wanted spacing and size, how the crop centre was found, and the masks cut alike, if any."""

    ed: Volume
    es: Volume
    crop: CropCentre
    masks: tuple[Volume, ...]


def convert_all(
    cases: Sequence[RawCase],
    root: Path,
    spacing_mm: Spacing,
    size: tuple[int, int],
    jobs: int,
    progress: Progress | None,
) -> list[Converted | str]:
    """Convert every case into `root`; per case, in order, the result or the reason it was left out. Same bytes for any `jobs`."""
    work = partial(_convert_or_reason, root=root, spacing_mm=spacing_mm, size=size)
    results: list[Converted | str] = []
    if jobs == 1 or len(cases) < FEW_CASES:
        for case in cases:
            results.append(work(case))
            if progress:
                progress(len(results), len(cases))
        return results
    # spawn, not fork: the caller may have threads (torch, grpc), and a forked lock stays locked
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=logs.configure) as pool:
        for result in pool.map(work, cases, chunksize=CHUNK):
            results.append(result)
            if progress:
                progress(len(results), len(cases))
    return results


def case_folder(root: Path, case: RawCase) -> Path:
    """Where the volumes of a case go."""
    return root / case.vendor / case.dataset / case.case_id


def convert(case: RawCase, root: Path, spacing_mm: Spacing, size: tuple[int, int]) -> Converted:
    """Read, resample, crop, scale and write one case. Raises InputError with the reason if it cannot be used."""
    files = _Files()
    ed, es = _pair(case.ed, case.es, files)
    made = prepare_pair(ed, es, _masks(case, files, ed.voxels.shape), spacing_mm, size)
    folder = case_folder(root, case)
    folder.mkdir(parents=True)
    for volume, name in ((made.ed, "ed"), (made.es, "es")):
        nifti.write_uint8(folder / f"{name}.nii.gz", volume)
    volumes = preprocess.ventricles(made.masks[0].voxels, made.masks[1].voxels, spacing_mm) if made.masks else None
    return Converted(n_slices=made.ed.voxels.shape[2], crop=made.crop, ventricles=volumes)


def read_pair(ed: FrameFile, es: FrameFile) -> tuple[Volume, Volume]:
    """Two frames of one scan as they are stored. Raises InputError if they are one frame, or cannot be used."""
    return _pair(ed, es, _Files())


def prepare_pair(
    ed: Volume, es: Volume, masks: Sequence[Volume], spacing_mm: Spacing, size: tuple[int, int]
) -> PreparedPair:
    """Resample, crop and scale two frames of one scan; `masks` are canonical ones of both, or none. Raises InputError."""
    ed, es = preprocess.resample(ed, spacing_mm), preprocess.resample(es, spacing_mm)
    masks = [preprocess.resample(mask, spacing_mm, nearest=True) for mask in masks]
    shapes = {volume.voxels.shape for volume in (ed, es, *masks)}
    if len(shapes) != 1:
        raise InputError(
            f"images and masks cover different fields of view: after resampling their shapes are {sorted(shapes)}"
        )
    centre, how = _crop_centre(ed, es, masks, spacing_mm)
    box = preprocess.crop_box(centre, ed.voxels.shape, size)
    scaled = [_scaled(preprocess.crop(volume, box), name) for volume, name in ((ed, "ED"), (es, "ES"))]
    return PreparedPair(ed=scaled[0], es=scaled[1], crop=how, masks=tuple(preprocess.crop(mask, box) for mask in masks))


def _pair(ed: FrameFile, es: FrameFile, files: "_Files") -> tuple[Volume, Volume]:
    if ed == es:
        raise InputError(f"ED and ES are the same frame ({ed.name})")
    first, second = files.image(ed, "ED"), files.image(es, "ES")
    if first.voxels.shape != second.voxels.shape:
        raise InputError(
            f"ED has shape {first.voxels.shape}, ES has {second.voxels.shape}; both frames must come from one scan"
        )
    return first, second


def _convert_or_reason(case: RawCase, root: Path, spacing_mm: Spacing, size: tuple[int, int]) -> Converted | str:
    """The boundary where one bad case stops being able to stop the others."""
    try:
        return convert(case, root, spacing_mm, size)
    except InputError as error:
        return " ".join(str(error).split())
    except OSError:
        raise  # reading problems are InputErrors by now: this is a full or read-only disk, which is no fault of the case
    except Exception as error:
        log.error("case_failed_unexpectedly", dataset=case.dataset, error=type(error).__name__)
        return f"unexpected {type(error).__name__} while preparing it; please report this as a bug"


class _Files:
    """Frames of one case; a cine that holds both frames is unpacked once."""

    def __init__(self) -> None:
        self._read: dict[tuple[Path, tuple[Path, ...]], Volume] = {}

    def image(self, file: FrameFile, name: str) -> Volume:
        """One 3D frame with finite numbers. Raises InputError otherwise."""
        key = file.path, file.slices
        if key not in self._read:
            self._read[key] = dicom.read(file.slices) if file.slices else nifti.read(file.path)
        volume = _pick(self._read[key], file, name)
        if volume.voxels.dtype.kind not in "biuf":
            raise InputError(f"{name}: {file.name} has voxels of type {volume.voxels.dtype}, expected plain numbers")
        bad = int(volume.voxels.size - np.isfinite(volume.voxels).sum()) if volume.voxels.dtype.kind == "f" else 0
        if bad:
            raise InputError(f"{name}: {file.name} has {bad} voxel(s) that are NaN or infinite")
        return volume


def _pick(volume: Volume, file: FrameFile, name: str) -> Volume:
    """The wanted frame of what a file holds; speaks of frames as the data set counts them."""
    if file.frame is None:
        if volume.frames is not None:
            raise InputError(f"{name}: {file.name} is a cine of {volume.frames} frames, expected one 3D frame")
        return volume
    count = volume.frames or 1
    if not 0 <= file.frame < count:
        allowed = f"{file.first} to {count - 1 + file.first}"
        raise InputError(f"{name} frame {file.frame + file.first} is out of range: {file.name} has frames {allowed}")
    return volume if volume.frames is None else volume.frame(file.frame)


def _masks(case: RawCase, files: _Files, shape: tuple[int, ...]) -> list[Volume]:
    """Canonical ED and ES masks, or none."""
    if case.ed_mask is None or case.es_mask is None:
        return []
    masks = []
    for file, name in ((case.ed_mask, "ED mask"), (case.es_mask, "ES mask")):
        mask = files.image(file, name)
        if mask.voxels.shape != shape:
            raise InputError(f"{name} has shape {mask.voxels.shape}, the image has {shape}")
        canonical = preprocess.canonical_mask(mask, dict(case.mask_values))
        if not (canonical.voxels == preprocess.LV).any():
            present = sorted(int(value) for value in np.unique(mask.voxels))
            raise InputError(f"empty mask: the {name} has no left ventricle (its values are {present})")
        masks.append(canonical)
    return masks


def _crop_centre(
    ed: Volume, es: Volume, masks: Sequence[Volume], spacing_mm: Spacing
) -> tuple[tuple[float, float], CropCentre]:
    """Centre (x, y) in resampled voxels, and how it was found."""
    if masks:
        cavity = masks[0].voxels == preprocess.LV
        if not cavity.any():
            raise InputError("empty mask: no left ventricle is left in the ED mask after resampling")
        return preprocess.mask_centre(cavity), "mask"
    moving = motion_centre(ed.voxels, es.voxels, spacing_mm)
    if moving is not None:
        return moving, "motion"
    return ((ed.voxels.shape[0] - 1) / 2.0, (ed.voxels.shape[1] - 1) / 2.0), "centre"


def _scaled(volume: Volume, name: str) -> Volume:
    try:
        return volume.with_voxels(preprocess.to_uint8(volume.voxels))
    except InputError as error:
        raise InputError(f"the {name} image {error}") from error

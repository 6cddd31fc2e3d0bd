"""A DICOM cine stack as voxels with geometry. DICOM's patient coordinates are the LPS that `nifti.Volume` has.

Slices are put in order along their normal, frames by trigger time, else by instance number. Spacing between slices comes from their
positions: SliceThickness says how thick they are, not where. Source: DICOM PS3.3 2024e, C.7.6.2 and C.7.6.3.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_rescale
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGTransferSyntaxes

from shared.errors import InputError
from site_agent.data.dicom_series import Image, Stack, image_of, quiet
from site_agent.data.nifti import Volume, Voxels
from site_agent.data.preprocess import MAX_VOXELS

GAP_TOLERANCE = 0.1
"""Share by which gaps between slices may differ; a slice that is missing doubles one."""


def read(files: Sequence[Path]) -> Volume:
    """Return the cine (x, y, z, t) of a stack's files, x along growing columns, y along growing rows, z along the normal.

    Integers stay integers unless the headers scale them to others. Raises InputError naming what does not fit.
    """
    stack = Stack(tuple(image for path in files if (image := image_of(path)) is not None))
    if len(stack.images) != len(files):
        raise InputError("the series changed while it was read")
    slices = _checked(stack)
    gap = (slices[-1][0].height_mm - slices[0][0].height_mm) / (len(slices) - 1)
    voxels = np.stack([np.stack([_pixels(one) for one in frames], axis=-1) for frames in slices], axis=2)
    first = slices[0][0]
    direction = np.column_stack([first.orientation[0], first.orientation[1], first.normal])
    return Volume(voxels, (first.pixel_mm[1], first.pixel_mm[0], gap), direction, first.position)


def _checked(stack: Stack) -> list[list[Image]]:
    """Slices in order, the frames of each in order. Raises InputError if they are no regular grid of slices and frames."""
    name = f"series {stack.numbers}"
    if not stack.parallel:
        raise InputError(f"mixed orientations: the images of {name} are not parallel")
    forms = sorted({(*one.shape, *one.pixel_mm) for one in stack.images})
    if len(forms) > 1:
        raise InputError(f"the images of {name} differ in size or pixel spacing: {forms[0]} and {forms[1]}")
    slices = stack.slices()
    if len(slices) < 2:
        raise InputError(f"{name} has {len(slices)} slice(s), expected a stack")
    counts = sorted({len(frames) for frames in slices})
    if len(counts) > 1:
        raise InputError(
            f"missing frames: slices of {name} have {counts[0]} to {counts[-1]} frames; all must have as many"
        )
    if len(stack.images) * math.prod(stack.images[0].shape) > MAX_VOXELS:
        raise InputError(f"{name} has {len(stack.images)} images of {stack.images[0].shape}, more than is read at once")
    _check_places(slices, name)
    return [_in_time(frames, name) for frames in slices]


def _check_places(slices: Sequence[Sequence[Image]], name: str) -> None:
    heights = np.array([frames[0].height_mm for frames in slices])
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    if np.abs(gaps - usual).max() > GAP_TOLERANCE * usual:
        raise InputError(
            f"missing slices: the gaps between slices of {name} are {', '.join(f'{gap:g}' for gap in np.round(gaps, 2))} mm; "
            "they must be equal"
        )
    first = slices[0][0]
    moved = np.array([one.position - first.position for frames in slices for one in frames])
    aside = float(np.linalg.norm(moved - np.outer(moved @ first.normal, first.normal), axis=1).max())
    if aside > min(first.pixel_mm) / 2:
        raise InputError(f"the slices of {name} are shifted against each other by up to {aside:.1f} mm")


def _in_time(frames: Sequence[Image], name: str) -> list[Image]:
    """Frames of one slice by trigger time; by instance number where there are no times, or one for all."""
    times = [one.trigger_ms for one in frames]
    if None in times or len(set(times)) == 1:
        times = [one.instance for one in frames]
    if None in times or len(set(times)) < len(times):
        raise InputError(
            f"frames of {name} cannot be put in order: a slice has two images of one time; is it there twice, or are phase images "
            "among the magnitudes?"
        )
    return [frames[at] for at in np.argsort(np.array(times, dtype=np.float64))]


def _pixels(image: Image) -> Voxels:
    """(columns, rows) of one image, scaled as its header says."""
    try:
        with quiet():
            dataset = pydicom.dcmread(image.path)
            if dataset.get("PhotometricInterpretation") != "MONOCHROME2":
                raise InputError(f"an image of series {image.number} is not MONOCHROME2")
            _check_decodable(dataset, image)
            stored = dataset.pixel_array
            scaled = apply_rescale(stored, dataset)
    except (OSError, EOFError, ValueError, AttributeError, KeyError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"pixels of series {image.number} cannot be read ({type(error).__name__})") from error
    if stored.ndim != 2:
        raise InputError(
            f"an image of series {image.number} has pixels of shape {stored.shape}, expected rows and columns"
        )
    whole = np.issubdtype(stored.dtype, np.integer) and np.array_equal(scaled, np.rint(scaled))
    return np.ascontiguousarray((scaled.astype(np.int32) if whole else scaled).T)


def _check_decodable(dataset: Any, image: Image) -> None:
    """Raise InputError naming the package to install for pixels that are compressed so that none here unpacks them."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax.is_deflated:
        return
    try:
        if get_decoder(syntax).is_available:
            return
    except NotImplementedError:
        pass
    package = (
        "pylibjpeg pylibjpeg-openjpeg"
        if syntax in JPEG2000TransferSyntaxes
        else "pylibjpeg pylibjpeg-libjpeg"
        if syntax in JPEGTransferSyntaxes or "JPEG-LS" in syntax.name
        else ""
    )
    how = (
        f"install what unpacks it (pip install {package})"
        if package
        else "store it uncompressed (dcmtk's dcmdjpeg, gdcmconv --raw)"
    )
    raise InputError(f"series {image.number} is compressed ({syntax.name}); {how}")

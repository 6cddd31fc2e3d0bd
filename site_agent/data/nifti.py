"""NIfTI in and out: voxels plus the geometry the preprocessing needs, in the LPS world of DICOM and ITK.

nibabel speaks RAS (x to the right, y to the front); the reference preprocessing was written against ITK, which speaks LPS
(x to the left, y to the back). The two differ by the sign of the first two world axes. It matters because the reference
shifts the origin along *world* axes when it resamples (see `preprocess`), so everything above this file is LPS.
"""

import gzip
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from shared.errors import InputError

RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
GZIP_MAGIC = b"\x1f\x8b"
NIFTI1_HEADER_BYTES, NIFTI2_HEADER_BYTES = 348, 540
"""The first four bytes of a file hold one of these, in either byte order."""
NO_EXTENSIONS = bytes(4)
COMPRESSION_LEVEL = 1
"""uint8 heart volumes shrink to about the same size at every level; 1 is three to ten times faster than the usual 9."""

Voxels = npt.NDArray[Any]
"""Of whatever plain number type the file has."""
UNREADABLE = (
    *(OSError, EOFError, ValueError, zlib.error),
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError),
)
"""What a damaged file raises; gzip.BadGzipFile is an OSError."""


@dataclass(frozen=True, slots=True)
class Volume:
    """One 3D volume (x, y, z) or a cine (x, y, z, t) with the geometry of its spatial axes.

    spacing: mm per voxel along x, y, z. direction: (3, 3), columns are the image axes in LPS. origin: LPS, mm, centre of voxel 0.
    """

    voxels: Voxels
    spacing: tuple[float, float, float]
    direction: npt.NDArray[np.float64]
    origin: npt.NDArray[np.float64]

    @property
    def frames(self) -> int | None:
        """Number of frames of a cine, None for a single volume."""
        return self.voxels.shape[3] if self.voxels.ndim == 4 else None

    def frame(self, index: int) -> "Volume":
        """Frame `index` (from 0) of a cine as a 3D volume."""
        return self.with_voxels(self.voxels[..., index])

    def with_voxels(self, voxels: Voxels) -> "Volume":
        """The same geometry around other voxels."""
        return Volume(voxels, self.spacing, self.direction, self.origin)


def read(path: Path) -> Volume:
    """Read a .nii or .nii.gz file of 3 or 4 axes. A fourth axis of length 1 is dropped.

    Integers stay integers unless the header scales them. Raises InputError with a reason (file name, what was seen).
    """
    try:
        image = _parse(path.read_bytes())
        voxels = np.asanyarray(image.dataobj)
        spacing = tuple(float(zoom) for zoom in image.header.get_zooms()[:3])
        affine = np.asarray(image.affine, dtype=np.float64)
    except FileNotFoundError:
        raise InputError(f"{path.name} does not exist") from None
    except UNREADABLE as error:
        raise InputError(
            f"{path.name} cannot be read as NIfTI ({type(error).__name__}: {_first_line(error)})"
        ) from error
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim not in (3, 4) or 0 in voxels.shape:
        raise InputError(f"{path.name} has shape {voxels.shape}; expected (x, y, z) or (x, y, z, t)")
    if len(spacing) != 3 or not all(np.isfinite(mm) and mm > 0 for mm in spacing):
        raise InputError(f"{path.name} has voxel spacing {spacing}; expected three positive numbers in mm")
    return Volume(voxels, (spacing[0], spacing[1], spacing[2]), *_orientation(affine, path))


def write_uint8(path: Path, volume: Volume) -> None:
    """Write a 3D uint8 volume as .nii.gz. Equal volumes give equal bytes: no time and no name in the gzip header."""
    if volume.voxels.dtype != np.uint8:
        raise ValueError(f"expected uint8 voxels, got {volume.voxels.dtype}")
    affine = np.eye(4)
    affine[:3, :3] = RAS_TO_LPS[:, None] * volume.direction * np.asarray(volume.spacing)
    affine[:3, 3] = RAS_TO_LPS * volume.origin
    header: Any = nib.Nifti1Header()  # type: ignore[no-untyped-call]
    header.set_data_dtype(np.uint8)
    header.set_data_shape(volume.voxels.shape)
    header.set_zooms(volume.spacing)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units(xyz="mm", t="sec")
    header["vox_offset"] = len(header.binaryblock) + len(NO_EXTENSIONS)
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION_LEVEL, fileobj=packed, mtime=0) as stream:
        stream.write(header.binaryblock + NO_EXTENSIONS + volume.voxels.tobytes(order="F"))
    path.write_bytes(packed.getvalue())


def _parse(content: bytes) -> Any:
    """Unpack at once instead of streaming: one pass, and the checksum at the end of the gzip stream is verified."""
    if content.startswith(GZIP_MAGIC):
        content = gzip.decompress(content)
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    if not sizes & {NIFTI1_HEADER_BYTES, NIFTI2_HEADER_BYTES}:
        raise ValueError(f"it starts with {content[:4]!r}, not with a NIfTI header")
    image: Any = (nib.Nifti1Image if NIFTI1_HEADER_BYTES in sizes else nib.Nifti2Image).from_bytes(content)
    announced = math.prod(image.shape) * image.header.get_data_dtype().itemsize
    if announced > len(content):  # before memory is taken for it
        raise ValueError(
            f"the header announces {announced} bytes of voxels {image.shape}, the file holds {len(content)}"
        )
    return image


def _orientation(
    affine: npt.NDArray[np.float64], path: Path
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(direction, origin) in LPS from nibabel's RAS affine."""
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(columns)) < 1e-9:
        raise InputError(f"{path.name} has an orientation matrix that cannot be inverted: {columns.tolist()}")
    return RAS_TO_LPS[:, None] * (columns / lengths), RAS_TO_LPS * affine[:3, 3]


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else "no details"

"""Which cine stacks a DICOM folder holds, by its headers.

A stack is one series with several slices, or, as some scanners store it, several series of a study with one slice each. Of a header
nothing but what `KEPT` names is read. Errors speak of series by number and say no text of a header: names of patients stand there.
Source: DICOM PS3.3 2024e, C.7.6.2 (image plane) and C.8.3.1 (MR image).
"""

import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import EnhancedMRImageStorage

from shared.errors import InputError

FEWEST_SLICES, FEWEST_FRAMES = 4, 2
"""What makes a stack of cines. Long-axis views have one slice, perfusion usually three."""
SAME_SLICE_MM = 0.1
SAME_DIRECTION = 1e-3
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
KEPT = (
    *("SOPClassUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Manufacturer"),
    *("FrameOfReferenceUID", "NumberOfFrames", "InstanceNumber", "TriggerTime", "Rows", "Columns", *PLACE),
)
"""Read of a header, and gone when its stack is chosen."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """One slice at one time, without its pixels. orientation: (2, 3), directions of growing columns and rows, LPS."""

    path: Path
    patient: str
    study: str
    series: str
    number: str
    manufacturer: str
    frame_of_reference: str
    shape: tuple[int, int]
    orientation: Vector
    position: Vector
    pixel_mm: tuple[float, float]
    """Between rows, between columns."""
    trigger_ms: float | None
    instance: int | None

    @property
    def normal(self) -> Vector:
        """Direction in which slices are counted."""
        return np.cross(self.orientation[0], self.orientation[1])

    @property
    def height_mm(self) -> float:
        """Place along the normal."""
        return float(self.position @ self.normal)


@dataclass(frozen=True, slots=True)
class Stack:
    """Images of one series, or of the one-slice series of a study that lie in parallel. Not yet known to be a whole cine."""

    images: tuple[Image, ...]

    @property
    def numbers(self) -> str:
        """Its series as people know them, such as `12` or `12, 13, 14`."""
        return ", ".join(sorted({one.number for one in self.images}, key=lambda n: (len(n), n)))

    @property
    def files(self) -> tuple[Path, ...]:
        """Its files, in order of name."""
        return tuple(sorted(one.path for one in self.images))

    @property
    def parallel(self) -> bool:
        """Whether all its images have one orientation."""
        first = self.images[0].orientation
        return all(np.allclose(one.orientation, first, rtol=0, atol=SAME_DIRECTION) for one in self.images)

    def slices(self) -> list[list[Image]]:
        """Its images by slice, along the normal."""
        found: list[list[Image]] = []
        for image in sorted(self.images, key=lambda one: one.height_mm):
            if found and image.height_mm - found[-1][0].height_mm <= SAME_SLICE_MM:
                found[-1].append(image)
            else:
                found.append([image])
        return found


@dataclass(frozen=True, slots=True)
class Scan:
    """What a folder holds: images whose place is known, and how many others of MR there were that cannot be used, by reason."""

    images: tuple[Image, ...]
    refused: dict[str, int]

    @property
    def patients(self) -> frozenset[str]:
        """The headers' own identifiers, for matching only."""
        return frozenset(one.patient for one in self.images)

    def of_patient(self, patient: str) -> "Scan":
        """Return the images of one patient."""
        return Scan(tuple(one for one in self.images if one.patient == patient), self.refused)


# --- finding --------------------------------------------------------------------------------------------------------


def scan(folder: Path) -> Scan:
    """Read the headers of every DICOM file below a folder."""
    images: list[Image] = []
    refused: dict[str, int] = defaultdict(int)
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        try:
            if (found := image_of(path)) is not None:
                images.append(found)
        except InputError as error:
            refused[str(error)] += 1
    return Scan(tuple(images), dict(refused))


def choose(found: Scan, series: str = "") -> Stack:
    """Return the one cine stack of a patient's images, or the one whose series has this number or UID.

    Raises InputError if there is none, saying what there is instead, or if there are several, saying how to choose.
    """
    stacks = [one for one in _stacks(found.images) if not series or series in _names(one)]
    if series and not stacks:
        raise InputError(f"there is no series {series}; there are: {_listed(_stacks(found.images))}{_also(found)}")
    cines = [one for one in stacks if _is_cine(one)]
    if len(cines) > 1:
        raise InputError(
            f"{len(cines)} series could be the short-axis cine: {_listed(cines)}; put the number of one in the column series"
        )
    if not cines and series:
        return stacks[0]  # asked for by name: `volume` says what is wrong with it
    if not cines:
        raise InputError(
            f"no short-axis cine (a series with at least {FEWEST_SLICES} parallel slices and {FEWEST_FRAMES} frames of each); "
            f"there are: {_listed(stacks)}{_also(found)}"
        )
    return cines[0]


def _stacks(images: Sequence[Image]) -> list[Stack]:
    """Every series; those of one slice that are parallel, of one study and one form, joined."""
    series: dict[tuple[str, str], list[Image]] = defaultdict(list)
    for image in images:
        series[image.patient, image.series].append(image)
    whole, single = [], defaultdict(list)
    for members in series.values():
        stack = Stack(tuple(members))
        if len(stack.slices()) > 1 or not stack.parallel:
            whole.append(stack)
        else:
            single[_form(members[0], len(members))].extend(members)
    return [*whole, *(Stack(tuple(members)) for members in single.values())]


def _form(image: Image, frames: int) -> tuple[Any, ...]:
    turned = tuple(np.round(image.orientation, 2).ravel() + 0.0)
    return (
        *(image.patient, image.study, image.frame_of_reference, turned, image.shape),
        *(np.round(image.pixel_mm[0], 3), np.round(image.pixel_mm[1], 3), frames),
    )


def _is_cine(stack: Stack) -> bool:
    slices = stack.slices()
    return len(slices) >= FEWEST_SLICES and max(map(len, slices)) >= FEWEST_FRAMES


def _names(stack: Stack) -> set[str]:
    return {name for one in stack.images for name in (one.number, one.series)}


def _listed(stacks: Sequence[Stack]) -> str:
    words = []
    for one in stacks:
        slices = one.slices()
        words.append(f"series {one.numbers} ({len(slices)} slices, {max(map(len, slices))} frames)")
    return "; ".join(words) or "no MR image"


def _also(found: Scan) -> str:
    return "".join(f"; {count} file(s) left out: {reason}" for reason, count in sorted(found.refused.items()))


# --- headers --------------------------------------------------------------------------------------------------------


def image_of(path: Path) -> Image | None:
    """What is wanted of a header; None if it is no MR image. Raises InputError for one that cannot be used, without its path."""
    try:
        with quiet():
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(KEPT))
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, NotImplementedError):
        return None
    if header.get("Modality") != "MR":
        return None
    if header.get("SOPClassUID") == EnhancedMRImageStorage or int(header.get("NumberOfFrames") or 1) > 1:
        raise InputError(
            "enhanced multi-frame DICOM is not read here; convert it to one file a frame (dcm4che's emf2sf), or to NIfTI (dcm2niix)"
        )
    if missing := [name for name in PLACE if not header.get(name)]:
        raise InputError(f"the header has no {', '.join(missing)}")
    try:
        return _placed(path, header)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"its place in space cannot be read ({type(error).__name__})") from error


def _placed(path: Path, header: Any) -> Image:
    with quiet():
        orientation = np.array([float(v) for v in header.ImageOrientationPatient]).reshape(2, 3)
        position = np.array([float(v) for v in header.ImagePositionPatient]).reshape(3)
        rows_mm, columns_mm = (float(v) for v in header.PixelSpacing)
        trigger, instance = header.get("TriggerTime"), header.get("InstanceNumber")
        image = Image(
            path=path,
            patient=str(header.get("PatientID") or "").strip(),
            study=str(header.get("StudyInstanceUID") or ""),
            series=str(header.get("SeriesInstanceUID") or ""),
            number=str(header.get("SeriesNumber") or "without number"),
            manufacturer=str(header.get("Manufacturer") or ""),
            frame_of_reference=str(header.get("FrameOfReferenceUID") or ""),
            shape=(int(header.Rows), int(header.Columns)),
            orientation=orientation,
            position=position,
            pixel_mm=(rows_mm, columns_mm),
            trigger_ms=None if trigger in (None, "") else float(trigger),
            instance=None if instance in (None, "") else int(instance),
        )
    unit = np.allclose(orientation @ orientation.T, np.eye(2), rtol=0, atol=1e-2)
    if not unit or not np.isfinite(position).all() or not all(0 < mm < math.inf for mm in image.pixel_mm):
        raise ValueError
    return image


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom's warnings quote values of headers, which may be names."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

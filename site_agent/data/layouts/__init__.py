"""Raw folders as the data sets are distributed: which layout a folder has, and which cases are in it."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from shared.errors import InputError
from site_agent.data.layouts import acdc, dicom, generic, mnms, mnms2
from site_agent.data.layouts.records import VENDORS, FrameFile, Listing, RawCase, Rejection

__all__ = [
    "NAMES",
    "VENDORS",
    "Found",
    "FrameFile",
    "Listing",
    "RawCase",
    "Rejection",
    "cine_frames",
    "find",
    "listing",
]

READERS: dict[str, ModuleType] = {"acdc": acdc, "mnms": mnms, "mnms2": mnms2, "dicom": dicom, "generic": generic}
"""Each has `matches(folder)` and `listing(folder)`. Tried in this order."""
NAMES = tuple(READERS)
MAX_DEPTH = 2
"""The archives unpack to `database/`, `OpenDataset/`, `MnM2/`; a source may be such a folder or one or two levels above."""


@dataclass(frozen=True, slots=True)
class Found:
    """A raw folder and the layout it has."""

    layout: str
    folder: Path


def find(source: Path, layout: str = "auto") -> list[Found]:
    """Every raw folder at `source` or up to two levels below it. Does not look inside one that was recognised.

    Raises InputError if the folder does not exist or holds nothing of the wanted layout.
    """
    if not source.is_dir():
        raise InputError(f"source folder {source} does not exist or is not a folder; name the folder that was unpacked")
    if layout not in ("auto", *NAMES):
        raise InputError(f"layout {layout!r} is unknown; choose auto, {', '.join(NAMES)}")
    wanted = NAMES if layout == "auto" else (layout,)
    found = _search(source, wanted, MAX_DEPTH)
    if not found:
        raise InputError(
            f"{source} has none of the layouts {', '.join(wanted)}: looked for patient*/Info.cfg (acdc), a CSV with "
            "'External code' (mnms), dataset_information.csv (mnms2), a CSV with 'case_id' (dicom, generic); see docs/data.md"
        )
    return found


def listing(found: Found) -> Listing:
    """Cases and rejections of one raw folder."""
    result: Listing = READERS[found.layout].listing(found.folder)
    return result


def cine_frames(path: Path, ed: int, es: int, series: str = "") -> tuple[FrameFile, FrameFile]:
    """ED and ES, counted from 0, of a cine: a NIfTI file of four axes, or a folder with a DICOM series. Raises InputError."""
    if path.is_dir():
        return dicom.cine_frames(path, ed, es, series)
    return FrameFile(path, frame=ed), FrameFile(path, frame=es)


def _search(folder: Path, wanted: tuple[str, ...], depth: int) -> list[Found]:
    for name in wanted:
        if READERS[name].matches(folder):
            return [Found(name, folder)]
    if depth == 0:
        return []
    children = sorted(path for path in folder.iterdir() if path.is_dir())
    return [found for child in children for found in _search(child, wanted, depth - 1)]

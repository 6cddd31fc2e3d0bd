"""What a layout reader finds: cases ready to be read, and what had to be left out, with the reason."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.errors import InputError

VENDORS = ("siemens", "philips", "ge", "canon")
VENDOR_WORDS = {
    "siemens": "siemens",
    "philips": "philips",
    "ge": "ge",
    "general": "ge",
    "canon": "canon",
    "toshiba": "canon",
}
"""Words in the vendor columns of the public sets and of DICOM headers; Canon Medical was Toshiba Medical until 2018."""
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Case and data set names become folder names."""

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class FrameFile:
    """One frame on disk: a 3D file (`frame` None), or frame `frame` (from 0) of a 4D file or of a DICOM stack.

    `first` is the number the data set gives its first frame; it is only used to speak to people in their own counting. `slices`:
    the files of a DICOM stack, below the folder `path`.
    """

    path: Path
    frame: int | None = None
    first: int = 0
    slices: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """What to call it; folders with DICOM files are often called as their patient."""
        return "the DICOM series" if self.slices else self.path.name


@dataclass(frozen=True, slots=True, kw_only=True)
class RawCase:
    """One patient's ED and ES frame, where they are and what is known about them."""

    dataset: str
    case_id: str
    vendor: str
    centre: str
    diagnosis: str
    label: int
    split: Split
    ed: FrameFile
    es: FrameFile
    ed_mask: FrameFile | None = None
    es_mask: FrameFile | None = None
    mask_values: tuple[tuple[int, int], ...] = ()
    """(the set's own value, canonical value) pairs."""
    ed_index: int | None = None
    es_index: int | None = None
    """0-based frame indices in the cine, None where the set does not tell."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A case that cannot be prepared, with one sentence that says why."""

    dataset: str
    case_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What one raw folder holds."""

    cases: tuple[RawCase, ...]
    rejections: tuple[Rejection, ...]


def vendor_name(text: str) -> str:
    """`GE MEDICAL SYSTEMS` -> `ge`. Raises InputError for a vendor that is none of VENDORS."""
    found = {VENDOR_WORDS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in VENDOR_WORDS}
    if len(found) != 1:
        raise InputError(f"vendor {text!r} is none of {', '.join(VENDORS)}")
    return found.pop()


def diagnosis_label(diagnosis: str) -> int:
    """0 for NOR, 1 for everything else. Raises InputError if the diagnosis is empty."""
    if not diagnosis.strip():
        raise InputError("the diagnosis is empty")
    return 0 if diagnosis.strip().upper() == "NOR" else 1


def whole_number(text: str, name: str) -> int:
    """'12' or '12.0' -> 12. Raises InputError naming what was read."""
    match = re.fullmatch(r"\s*(-?\d+)(\.0*)?\s*", text)
    if match is None:
        raise InputError(f"{name} is {text!r}, expected a whole number")
    return int(match.group(1))


def checked_name(text: str, name: str) -> str:
    """Return `text` if it can be a folder name everywhere. Raises InputError otherwise."""
    if SAFE_NAME.fullmatch(text) is None:
        raise InputError(f"{name} {text!r} cannot be a folder name; use letters, digits, '.', '_' and '-' (64 at most)")
    return text


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header, comma or semicolon, with or without a byte-order mark; rows without any text are dropped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path.name} cannot be read as UTF-8 text ({type(error).__name__}); save it as CSV UTF-8"
        ) from error
    header = text.partition("\n")[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter, restval="")
    cleaned = [{(key or "").strip(): _cell(value) for key, value in row.items()} for row in rows]
    return [row for row in cleaned if any(row.values())]


def columns(path: Path) -> frozenset[str]:
    """Column names of a CSV; none if it cannot be read."""
    try:
        header = path.read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0]
    except OSError:
        return frozenset()
    return frozenset(name.strip().strip('"') for name in re.split(r"[,;]", header))


def require_columns(rows: list[dict[str, str]], needed: Iterable[str], path: Path) -> None:
    """Raise InputError naming the columns a table lacks."""
    if not rows:
        raise InputError(f"{path} has no rows; each case needs one")
    missing = sorted(set(needed) - rows[0].keys())
    if missing:
        raise InputError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(filter(None, rows[0]))}")


def pairs(mapping: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    """A mapping as hashable pairs."""
    return tuple(sorted(mapping.items()))


def _cell(value: str | list[str] | None) -> str:
    """Text of a cell; surplus cells of a too long row (a list) are ignored."""
    return value.strip() if isinstance(value, str) else ""

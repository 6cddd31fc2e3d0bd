"""A hospital's own folder: NIfTI files and one CSV, no segmentation.

Columns: `case_id`; `label` (0 normal, 1 disease) or `diagnosis` (NOR is normal, everything else disease; `label` wins);
`vendor`; and where the frames are, relative to the folder: either `image` (a 4D cine) with `ed` and `es` (frame indices
from 0), or `ed_image` and `es_image` (two 3D files). Optional: `centre`, `split` (train or test; empty is train), `dataset`
(a name; default `generic`).
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from shared.errors import InputError
from site_agent.data.layouts.records import (
    FrameFile,
    Listing,
    RawCase,
    Rejection,
    Split,
    checked_name,
    columns,
    diagnosis_label,
    read_table,
    require_columns,
    vendor_name,
    whole_number,
)

DATASET = "generic"
SPLITS: dict[str, Split] = {"": "train", "train": "train", "test": "test"}
SUFFIXES = (".nii", ".nii.gz")


def matches(folder: Path) -> bool:
    """The folder holds a CSV with a column `case_id`."""
    return bool(tables(folder))


def listing(folder: Path) -> Listing:
    """Every row of the CSV and every NIfTI file no row names, as a case or a rejection."""
    table = only_table(folder)
    rows = read_table(table)
    require_columns(rows, ("case_id", "vendor"), table)
    _check_columns(rows[0].keys(), table)
    cases, rejections = of_rows(rows, DATASET, lambda row, dataset: _case(row, dataset, folder))
    rejections.extend(_unlisted(folder, rows))
    return Listing(tuple(cases), tuple(rejections))


def of_rows(
    rows: Iterable[dict[str, str]], usual: str, make: Callable[[dict[str, str], str], RawCase]
) -> tuple[list[RawCase], list[Rejection]]:
    """Return what `make` finds in each row for its data set, `usual` where the row names none; an InputError rejects the row."""
    cases: list[RawCase] = []
    rejections: list[Rejection] = []
    listed: set[tuple[str, str]] = set()
    for row in rows:
        dataset = row.get("dataset") or usual
        try:
            if (dataset, row["case_id"]) in listed:
                raise InputError("the table has more than one row for it")
            listed.add((dataset, row["case_id"]))
            cases.append(make(row, dataset))
        except InputError as error:
            rejections.append(Rejection(dataset, row["case_id"], str(error)))
    return cases, rejections


def tables(folder: Path) -> list[Path]:
    """Every CSV with a column `case_id`."""
    return [path for path in sorted(folder.glob("*.csv")) if "case_id" in columns(path)]


def only_table(folder: Path) -> Path:
    """The one CSV with a column `case_id`. Raises InputError if there are several."""
    found = tables(folder)
    if len(found) != 1:
        raise InputError(f"{folder} has {len(found)} CSV files with a column case_id; it must have exactly one")
    return found[0]


def label(row: dict[str, str]) -> int:
    """0 normal, 1 disease; the column `label` wins over `diagnosis`. Raises InputError."""
    if not row.get("label"):
        return diagnosis_label(row.get("diagnosis", ""))
    value = whole_number(row["label"], "label")
    if value not in (0, 1):
        raise InputError(f"label is {value}, expected 0 (normal) or 1 (disease)")
    return value


def split(row: dict[str, str]) -> Split:
    """What a row says, else train. Raises InputError."""
    name = row.get("split", "").lower()
    if name not in SPLITS:
        raise InputError(f"split is {row['split']!r}, expected train, test or nothing")
    return SPLITS[name]


def _check_columns(present: Iterable[str], table: Path) -> None:
    names = set(present)
    if not names & {"label", "diagnosis"}:
        raise InputError(f"{table} needs a column label (0 normal, 1 disease) or diagnosis (NOR is normal)")
    if not {"image", "ed", "es"} <= names and not {"ed_image", "es_image"} <= names:
        raise InputError(
            f"{table} needs the columns image, ed and es (a 4D cine), or ed_image and es_image (two 3D files)"
        )


def _case(row: dict[str, str], dataset: str, folder: Path) -> RawCase:
    wanted = split(row)
    ed, es, indices = _frames(row, folder)
    return RawCase(
        dataset=checked_name(dataset, "dataset"),
        case_id=checked_name(row["case_id"], "case_id"),
        vendor=vendor_name(row["vendor"]),
        centre=row.get("centre", ""),
        diagnosis=row.get("diagnosis", ""),
        label=label(row),
        split=wanted,
        ed=ed,
        es=es,
        ed_index=indices[0],
        es_index=indices[1],
    )


def _frames(row: dict[str, str], folder: Path) -> tuple[FrameFile, FrameFile, tuple[int | None, int | None]]:
    if "ed_image" in row and not row.get("image"):
        ed, es = (FrameFile(_file(row, name, folder)) for name in ("ed_image", "es_image"))
        return ed, es, (None, None)
    path = _file(row, "image", folder)
    first, second = whole_number(row["ed"], "ed"), whole_number(row["es"], "es")
    return FrameFile(path, frame=first), FrameFile(path, frame=second), (first, second)


def _file(row: dict[str, str], name: str, folder: Path) -> Path:
    """The file a cell names. It must lie inside the folder: a table is data, it may not point at the rest of the disk."""
    if not row.get(name):
        raise InputError(f"missing frame: the column {name} is empty")
    path = folder / row[name]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{name} {row[name]!r} points outside the folder of the table")
    if not path.is_file():
        raise InputError(f"label without image: {row[name]} does not exist")
    return path


def _unlisted(folder: Path, rows: list[dict[str, str]]) -> list[Rejection]:
    named = {
        (folder / row[name]).resolve() for row in rows for name in ("image", "ed_image", "es_image") if row.get(name)
    }
    found = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(SUFFIXES))
    reason = "image without label: no row of the table names this file"
    return [Rejection(DATASET, str(path.relative_to(folder)), reason) for path in found if path.resolve() not in named]

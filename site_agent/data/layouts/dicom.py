"""A hospital's DICOM folder and one CSV, no segmentation.

Columns: `case_id`, the name that a patient has from here on; `label` or `diagnosis`, as in `generic`; `es`, the frame of
end-systole from 0 in order of time, and optionally `ed` (empty: the first). Which images are a case's, one of: `image`, a folder
below this one, or `patient_id`, the PatientID in the headers, which is compared and not kept. Optional: `series` (number or UID of
a series, where several could be the short-axis cine), `vendor` (else the headers' manufacturer), `centre`, `split`, `dataset`.

Nothing of a header but geometry, times and manufacturer is used, and no reason of a rejection quotes one or a folder's name.
"""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from shared.errors import InputError
from site_agent.data import dicom_series
from site_agent.data.dicom_series import Scan, Stack
from site_agent.data.layouts import generic
from site_agent.data.layouts.records import (
    FrameFile,
    Listing,
    RawCase,
    Rejection,
    checked_name,
    columns,
    read_table,
    require_columns,
    vendor_name,
    whole_number,
)

DATASET = "dicom"
NOBODY = "(no case)"


def matches(folder: Path) -> bool:
    """The folder holds a CSV with a column `case_id` that names folders or patients of DICOM headers."""
    return any("patient_id" in columns(path) or _names_folders(path) for path in generic.tables(folder))


def listing(folder: Path) -> Listing:
    """Every row of the CSV as a case or a rejection; how many patients no row names."""
    table = generic.only_table(folder)
    rows = read_table(table)
    require_columns(rows, ("case_id", "es"), table)
    if not rows[0].keys() & {"image", "patient_id"}:
        raise InputError(f"{table} needs a column image (a case's folder) or patient_id (the PatientID in its headers)")
    scan = cache(dicom_series.scan)
    cases, rejections = generic.of_rows(rows, DATASET, lambda row, dataset: _case(row, dataset, folder, scan))
    if any(not row.get("image") for row in rows):
        rejections.extend(_unlisted(scan(folder), (row.get("patient_id", "") for row in rows)))
    return Listing(tuple(cases), tuple(rejections))


def cine_frames(folder: Path, ed: int, es: int, series: str = "") -> tuple[FrameFile, FrameFile]:
    """ED and ES, counted from 0, of the one cine stack in a folder. Raises InputError."""
    found = dicom_series.scan(folder)
    if len(found.patients) > 1:
        raise InputError(f"the folder has DICOM images of {len(found.patients)} patients; name a folder with one")
    return _frames(folder, dicom_series.choose(found, series), ed, es)


def _names_folders(table: Path) -> bool:
    try:
        rows = read_table(table)
    except InputError:
        return False
    return any(row.get("image") and (table.parent / row["image"]).is_dir() for row in rows)


def _case(row: dict[str, str], dataset: str, folder: Path, scan: Callable[[Path], Scan]) -> RawCase:
    if not row["es"]:
        raise InputError(
            "es is empty: without a segmentation nobody knows which frame is end-systole; put its number, from 0, in the column es"
        )
    ed, es = whole_number(row.get("ed") or "0", "ed"), whole_number(row["es"], "es")
    label, split = generic.label(row), generic.split(row)
    case_id, dataset = checked_name(row["case_id"], "case_id"), checked_name(dataset, "dataset")
    stack = dicom_series.choose(_images(row, folder, scan), row.get("series", ""))
    first, second = _frames(folder, stack, ed, es)
    return RawCase(
        dataset=dataset,
        case_id=case_id,
        vendor=_vendor(row, stack),
        centre=row.get("centre", ""),
        diagnosis=row.get("diagnosis", ""),
        label=label,
        split=split,
        ed=first,
        es=second,
        ed_index=ed,
        es_index=es,
    )


def _images(row: dict[str, str], folder: Path, scan: Callable[[Path], Scan]) -> Scan:
    """The images that a row names: below its folder, of its patient, or both."""
    where = folder / row.get("image", "")
    if not where.resolve().is_relative_to(folder.resolve()):
        raise InputError("the column image points outside the folder of the table")
    if not where.is_dir():
        raise InputError("label without image: the folder that the column image names does not exist")
    found, patient = scan(where), row.get("patient_id", "")
    if patient:
        found = found.of_patient(patient)
        if not found.images:
            raise InputError("label without image: no header has the PatientID of the column patient_id")
    if len(found.patients) > 1:
        raise InputError(f"its folder has images of {len(found.patients)} patients; name one in the column patient_id")
    return found


def _vendor(row: dict[str, str], stack: Stack) -> str:
    if row.get("vendor"):
        return vendor_name(row["vendor"])
    try:
        return vendor_name(stack.images[0].manufacturer)
    except InputError as error:
        raise InputError("the headers' manufacturer is none that is known; put it in the column vendor") from error


def _frames(folder: Path, stack: Stack, ed: int, es: int) -> tuple[FrameFile, FrameFile]:
    return (
        FrameFile(folder, frame=ed, slices=stack.files),
        FrameFile(folder, frame=es, slices=stack.files),
    )


def _unlisted(found: Scan, named: Iterable[str]) -> list[Rejection]:
    count = len(found.patients - set(named))
    reason = f"image without label: the headers name {count} patient(s) that no row of the table does"
    return [Rejection(DATASET, NOBODY, reason)] if count else []

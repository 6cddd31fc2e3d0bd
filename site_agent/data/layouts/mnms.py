"""M&Ms: an information CSV and folders `Training/Labeled`, `Training/Unlabeled`, `Validation`, `Testing` of 4D cines.

ED and ES in the CSV count from 0. Masks are 1 LV, 2 MYO, 3 RV, drawn in the ED and ES frames only. What the challenge called
training is `train` here; its validation and testing parts are held out as `test`. The scans of `Training/Unlabeled` have
diagnoses but no masks: their crop centre is found from motion.
Source: Campello et al. 2021, doi 10.1109/TMI.2021.3090082.
"""

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
    pairs,
    read_table,
    require_columns,
    vendor_name,
    whole_number,
)

DATASET = "mnms"
COLUMNS = ("External code", "VendorName", "Centre", "ED", "ES", "Pathology")
PARTS: dict[str, Split] = {
    "Training/Labeled": "train",
    "Training/Unlabeled": "train",
    "Validation": "test",
    "Testing": "test",
}
WITHOUT_MASKS = "Training/Unlabeled"
MASK_VALUES = pairs({1: 3, 2: 2, 3: 1})


def matches(folder: Path) -> bool:
    """The folder holds the information CSV, whatever its name (the first column has none)."""
    return bool(_tables(folder))


def listing(folder: Path) -> Listing:
    """Every row of the CSV and every patient folder, as a case or a rejection."""
    tables = _tables(folder)
    if len(tables) != 1:
        raise InputError(
            f"{folder} has {len(tables)} tables with the columns of M&Ms; keep the one that describes the scans"
        )
    rows = read_table(tables[0])
    require_columns(rows, COLUMNS, tables[0])
    patients = _patients(folder)
    cases: list[RawCase] = []
    rejections: list[Rejection] = []
    listed: set[str] = set()
    for row in rows:
        code = row["External code"]
        try:
            if code in listed:
                raise InputError("the information CSV has more than one row for it")
            listed.add(code)
            cases.append(_case(row, patients.get(code, [])))
        except InputError as error:
            rejections.append(Rejection(DATASET, code, str(error)))
    for code in sorted(patients.keys() - listed):
        rejections.append(
            Rejection(DATASET, code, "image without label: the information CSV has no row for this folder")
        )
    return Listing(tuple(cases), tuple(rejections))


def _tables(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.csv")) if {"External code", "Pathology"} <= columns(path)]


def _patients(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Patient code -> the (part, folder) places it was found in."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for part in PARTS:
        for patient in sorted((folder / part).glob("*")):
            if patient.is_dir():
                found.setdefault(patient.name, []).append((part, patient))
    return found


def _case(row: dict[str, str], places: list[tuple[str, Path]]) -> RawCase:
    code = checked_name(row["External code"], "External code")
    if len(places) != 1:
        raise InputError(
            f"it is in {len(places)} folders ({', '.join(part for part, _ in places)})"
            if places
            else "label without image: no folder of that name in Training, Validation or Testing"
        )
    part, patient = places[0]
    image = patient / f"{code}_sa.nii.gz"
    mask = patient / f"{code}_sa_gt.nii.gz"
    if not image.exists():
        raise InputError(f"label without image: {image.name} does not exist")
    if part != WITHOUT_MASKS and not mask.exists():
        raise InputError(f"missing mask: {mask.name} does not exist")
    ed, es = whole_number(row["ED"], "ED"), whole_number(row["ES"], "ES")
    masked = mask.exists()
    return RawCase(
        dataset=DATASET,
        case_id=code,
        vendor=vendor_name(row["VendorName"]),
        centre=row["Centre"],
        diagnosis=row["Pathology"],
        label=diagnosis_label(row["Pathology"]),
        split=PARTS[part],
        ed=FrameFile(image, frame=ed),
        es=FrameFile(image, frame=es),
        ed_mask=FrameFile(mask, frame=ed) if masked else None,
        es_mask=FrameFile(mask, frame=es) if masked else None,
        mask_values=MASK_VALUES,
        ed_index=ed,
        es_index=es,
    )

"""The table of a prepared cohort, `cases.csv`: one checked row per patient."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.errors import InputError
from site_agent.data.folds import FOLDS
from site_agent.data.layouts.records import checked_name, read_table

CASES = "cases.csv"
VOLUME_COLUMNS = ("lv_edv_ml", "lv_esv_ml", "lv_ef_percent", "rv_edv_ml", "rv_esv_ml", "rv_ef_percent")
COLUMNS = (
    *("case_id", "dataset", "vendor", "centre", "diagnosis", "label", "split", "fold", "n_slices", "ed", "es", "crop"),
    *VOLUME_COLUMNS,
)

CropCentre = Literal["mask", "motion", "centre"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One patient of a prepared cohort: a row of cases.csv and where its volumes are.

    label: 0 normal, 1 disease. fold: 0-4 for training cases, None for test cases. ed, es: 0-based frame indices in the raw cine,
    None where the set does not tell. crop: how the crop centre was found. Volumes and EF: None where no masks exist.
    """

    case_id: str
    dataset: str
    vendor: str
    centre: str
    diagnosis: str
    label: int
    split: Literal["train", "test"]
    fold: int | None
    n_slices: int
    ed: int | None
    es: int | None
    crop: CropCentre
    lv_edv_ml: float | None = None
    lv_esv_ml: float | None = None
    lv_ef_percent: float | None = None
    rv_edv_ml: float | None = None
    rv_esv_ml: float | None = None
    rv_ef_percent: float | None = None
    folder: Path

    @property
    def key(self) -> str:
        """Unique inside a cohort: two data sets may use one case id."""
        return f"{self.dataset}/{self.case_id}"

    @property
    def ed_path(self) -> Path:
        """The end-diastolic volume, uint8."""
        return self.folder / "ed.nii.gz"

    @property
    def es_path(self) -> Path:
        """The end-systolic volume, uint8."""
        return self.folder / "es.nii.gz"


def write(path: Path, cases: Sequence[Case]) -> None:
    """Write cases.csv. Floats are written so that reading them gives the same number; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case in sorted(cases, key=lambda case: case.key):
        cells = [getattr(case, column) for column in COLUMNS]
        writer.writerow(["" if cell is None else repr(cell) if isinstance(cell, float) else cell for cell in cells])
    path.write_text(text.getvalue(), encoding="utf-8")


def read(folder: Path) -> tuple[Case, ...]:
    """Cases of OUT/<vendor>, sorted by key. Raises InputError naming the file, the case and what is wrong."""
    return tuple(sorted((_case(row, folder) for row in _rows(folder)), key=lambda case: case.key))


def _rows(folder: Path) -> list[dict[str, str]]:
    if not folder.is_dir():
        raise InputError(f"cohort folder {folder} does not exist; run `site-agent prepare` or correct the path")
    table = folder / CASES
    if not table.is_file():
        inside = sorted(path.parent.name for path in folder.glob(f"*/{CASES}"))
        hint = (
            f"name one of its folders: {', '.join(inside)}" if inside else "run `site-agent prepare` to make a cohort"
        )
        raise InputError(f"{folder} has no {CASES}; {hint}")
    rows = read_table(table)
    if not rows:
        raise InputError(f"{table} lists no case; run `site-agent prepare` again and read rejected.csv")
    missing = [column for column in COLUMNS if column not in rows[0]]
    unknown = [column for column in rows[0] if column not in COLUMNS]
    if missing or unknown:
        problems = [
            f"{what} column(s) {', '.join(map(repr, names))}"
            for what, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        raise InputError(f"{table} has {' and '.join(problems)}; expected {', '.join(COLUMNS)}")
    return rows


def _case(row: dict[str, str], folder: Path) -> Case:
    """One row, every value checked: the table may have been edited by hand."""
    try:
        dataset, case_id = checked_name(row["dataset"], "dataset"), checked_name(row["case_id"], "case_id")
        crop = _one_of(row, "crop", ("mask", "motion", "centre"))
        split = _one_of(row, "split", ("train", "test"))
        case = Case(
            case_id=case_id,
            dataset=dataset,
            vendor=row["vendor"],
            centre=row["centre"],
            diagnosis=row["diagnosis"],
            label=int(_one_of(row, "label", ("0", "1"))),
            split="train" if split == "train" else "test",
            fold=int(_one_of(row, "fold", tuple(map(str, range(FOLDS))))) if split == "train" else None,
            n_slices=_integer(row, "n_slices") or 0,
            ed=_integer(row, "ed"),
            es=_integer(row, "es"),
            crop="mask" if crop == "mask" else "motion" if crop == "motion" else "centre",
            **{column: _number(row, column) for column in VOLUME_COLUMNS},
            folder=folder / dataset / case_id,
        )
    except InputError as error:
        raise InputError(f"{folder / CASES}, case {row['case_id'] or '(no id)'}: {error}") from error
    for path in (case.ed_path, case.es_path):
        if not path.is_file():
            raise InputError(f"case {case.key}: {path} does not exist; prepare the cohort again or remove its row")
    return case


def _one_of(row: dict[str, str], column: str, allowed: tuple[str, ...]) -> str:
    if row[column] not in allowed:
        raise InputError(f"{column} is {row[column]!r}, expected one of {', '.join(allowed)}")
    return row[column]


def _integer(row: dict[str, str], column: str) -> int | None:
    number = _number(row, column)
    if number is not None and number != int(number):
        raise InputError(f"{column} is {row[column]!r}, expected a whole number or nothing")
    return None if number is None else int(number)


def _number(row: dict[str, str], column: str) -> float | None:
    try:
        number = float(row[column]) if row[column] else None
    except ValueError:
        raise InputError(f"{column} is {row[column]!r}, expected a number or nothing") from None
    if number is not None and not math.isfinite(number):
        raise InputError(f"{column} is {row[column]!r}, expected a finite number or nothing")
    return number

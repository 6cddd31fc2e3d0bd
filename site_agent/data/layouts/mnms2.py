"""M&Ms-2: `dataset_information.csv` (padded with empty rows) and `dataset/NNN/NNN_SA_{ED,ES}[_gt].nii.gz`.

Masks are 1 LV, 2 MYO, 3 RV. The challenge's parts follow the subject code: 1-160 training, 161-200 validation, 201-360
testing. As for M&Ms only the first is `train`; the other two are held out as `test`. The long-axis files are not used.
Source: Martin-Isla et al. 2023, doi 10.1109/JBHI.2023.3267857.
"""

from pathlib import Path

from shared.errors import InputError
from site_agent.data.layouts.records import (
    FrameFile,
    Listing,
    RawCase,
    Rejection,
    diagnosis_label,
    pairs,
    read_table,
    require_columns,
    vendor_name,
    whole_number,
)

DATASET = "mnms2"
TABLE = "dataset_information.csv"
COLUMNS = ("SUBJECT_CODE", "DISEASE", "VENDOR")
LAST_TRAINING_CODE = 160
MASK_VALUES = pairs({1: 3, 2: 2, 3: 1})


def matches(folder: Path) -> bool:
    """The folder holds dataset_information.csv."""
    return (folder / TABLE).is_file()


def listing(folder: Path) -> Listing:
    """Every row of the CSV and every patient folder, as a case or a rejection."""
    rows = read_table(folder / TABLE)
    require_columns(rows, COLUMNS, folder / TABLE)
    patients = {path.name: path for path in sorted((folder / "dataset").glob("*")) if path.is_dir()}
    cases: list[RawCase] = []
    rejections: list[Rejection] = []
    listed: set[str] = set()
    for row in rows:
        code = row["SUBJECT_CODE"]
        try:
            number = whole_number(code, "SUBJECT_CODE")
            code = f"{number:03d}"
            if code in listed:
                raise InputError(f"{TABLE} has more than one row for it")
            listed.add(code)
            cases.append(_case(row, number, patients.get(code)))
        except InputError as error:
            rejections.append(Rejection(DATASET, code, str(error)))
    for code in sorted(patients.keys() - listed):
        rejections.append(Rejection(DATASET, code, f"image without label: {TABLE} has no row for this folder"))
    return Listing(tuple(cases), tuple(rejections))


def _case(row: dict[str, str], number: int, patient: Path | None) -> RawCase:
    if patient is None:
        raise InputError("label without image: no folder of that name in dataset/")
    code = patient.name
    files = {name: patient / f"{code}_SA_{name}.nii.gz" for name in ("ED", "ES", "ED_gt", "ES_gt")}
    for name in ("ED", "ES"):
        if not files[name].exists():
            raise InputError(f"missing frame: the {name} image {files[name].name} does not exist")
        if not files[f"{name}_gt"].exists():
            raise InputError(f"missing mask: the {name} mask {files[f'{name}_gt'].name} does not exist")
    return RawCase(
        dataset=DATASET,
        case_id=code,
        vendor=vendor_name(row["VENDOR"]),
        centre="",
        diagnosis=row["DISEASE"],
        label=diagnosis_label(row["DISEASE"]),
        split="train" if number <= LAST_TRAINING_CODE else "test",
        ed=FrameFile(files["ED"]),
        es=FrameFile(files["ES"]),
        ed_mask=FrameFile(files["ED_gt"]),
        es_mask=FrameFile(files["ES_gt"]),
        mask_values=MASK_VALUES,
    )

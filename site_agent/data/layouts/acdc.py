"""ACDC: `training/` and `testing/` folders of `patientNNN/` with Info.cfg, one file per frame and its mask, and the whole cine.

Info.cfg counts ED and ES frames from 1. Masks are already 1 RV, 2 MYO, 3 LV. All scans are Siemens.
Source: Bernard et al. 2018, doi 10.1109/TMI.2018.2837502.
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
    diagnosis_label,
    pairs,
    whole_number,
)

DATASET = "acdc"
SPLITS: dict[str, Split] = {"training": "train", "testing": "test"}
MASK_VALUES = pairs({1: 1, 2: 2, 3: 3})


def matches(folder: Path) -> bool:
    """The folder holds training/ or testing/ with patients, or is such a folder itself."""
    return any(any(patients.glob("patient*/Info.cfg")) for patients, _ in _parts(folder))


def listing(folder: Path) -> Listing:
    """Every `patient*` folder as a case or a rejection."""
    cases: list[RawCase] = []
    rejections: list[Rejection] = []
    for part, split in _parts(folder):
        for patient in sorted(path for path in part.glob("patient*") if path.is_dir()):
            try:
                cases.append(_case(patient, split))
            except InputError as error:
                rejections.append(Rejection(DATASET, patient.name, str(error)))
    return Listing(tuple(cases), tuple(rejections))


def _parts(folder: Path) -> list[tuple[Path, Split]]:
    inside = [(folder / name, split) for name, split in SPLITS.items() if (folder / name).is_dir()]
    return inside or [(folder, SPLITS.get(folder.name, "train"))]


def _case(patient: Path, split: Split) -> RawCase:
    info = _info(patient / "Info.cfg")
    ed, es = _frame_number(info, "ED"), _frame_number(info, "ES")
    diagnosis = info.get("Group", "")
    return RawCase(
        dataset=DATASET,
        case_id=checked_name(patient.name, "folder name"),
        vendor="siemens",
        centre="",
        diagnosis=diagnosis,
        label=diagnosis_label(diagnosis),
        split=split,
        ed=_image(patient, "ED", ed, es),
        es=_image(patient, "ES", es, ed),
        ed_mask=_mask(patient, "ED", ed),
        es_mask=_mask(patient, "ES", es),
        mask_values=MASK_VALUES,
        ed_index=ed - 1,
        es_index=es - 1,
    )


def _info(path: Path) -> dict[str, str]:
    """Lines `key: value`."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise InputError("Info.cfg does not exist, so diagnosis and ED/ES frames are unknown") from None
    except OSError as error:
        raise InputError(f"Info.cfg cannot be read ({type(error).__name__})") from error
    return {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in lines) if colon}


def _frame_number(info: dict[str, str], name: str) -> int:
    number = whole_number(info.get(name, ""), f"{name} in Info.cfg")
    count = whole_number(info["NbFrame"], "NbFrame in Info.cfg") if "NbFrame" in info else None
    if number < 1 or (count is not None and number > count):
        limit = f"1 to {count}" if count is not None else "1 or more"
        raise InputError(f"{name} frame {number} is out of range: Info.cfg allows {limit}")
    return number


def _image(patient: Path, name: str, frame: int, other: int) -> FrameFile:
    """The frame's own file; the whole cine only where the folder has neither frame file (half a pair is a damaged copy)."""
    own, cine = _frame_path(patient, frame), patient / f"{patient.name}_4d.nii.gz"
    if own.exists():
        return FrameFile(own)
    if cine.exists() and not _frame_path(patient, other).exists():
        return FrameFile(cine, frame=frame - 1, first=1)
    orphan = " although its mask is there" if _mask_path(patient, frame).exists() else ""
    raise InputError(f"missing frame: the {name} image {own.name} does not exist{orphan}")


def _mask(patient: Path, name: str, frame: int) -> FrameFile:
    path = _mask_path(patient, frame)
    if not path.exists():
        raise InputError(f"missing mask: the {name} mask {path.name} does not exist")
    return FrameFile(path)


def _frame_path(patient: Path, frame: int) -> Path:
    return patient / f"{patient.name}_frame{frame:02d}.nii.gz"


def _mask_path(patient: Path, frame: int) -> Path:
    return patient / f"{patient.name}_frame{frame:02d}_gt.nii.gz"

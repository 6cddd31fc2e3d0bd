"""Writes one case as the public data sets lay it out: ACDC or M&Ms. Same case, same bytes.

ACDC: `database/{training,testing}/patientNNN/` with `Info.cfg` (1-based ED and ES), `_4d`, `_frameNN`, `_frameNN_gt`; labels
1 RV, 2 MYO, 3 LV; axes along the world's. M&Ms: `OpenDataset/{Training/Labeled,Testing}/CODE/CODE_sa[_gt].nii.gz`, 4D, 0-based
ED and ES in one CSV, labels 1 LV, 2 MYO, 3 RV in these two frames only; oblique.
"""

import csv
import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from site_agent.data.phantom.case import PhantomCase
from site_agent.data.phantom.profile import VENDORS, Diagnosis, PlannedCase, Split, Vendor

DESCRIPTION = b"SYNTHETIC phantom, no patient data"
"""In every file's NIfTI header; the field holds 79 characters."""

ACDC_GROUP: dict[Diagnosis, str] = {"NOR": "NOR", "DCM": "DCM", "HCM": "HCM", "MINF": "MINF", "ARV": "RV"}
ACDC_FOLDER: dict[Split, str] = {"train": "training", "test": "testing"}
MNMS_PATHOLOGY: dict[Diagnosis, str] = {"NOR": "NOR", "DCM": "DCM", "HCM": "HCM", "MINF": "IHD", "ARV": "ARV"}
"""M&Ms knows no infarction class; ischaemic heart disease is its nearest name."""
MNMS_FOLDER: dict[Split, str] = {"train": "Training/Labeled", "test": "Testing"}
MNMS_CSV = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
MNMS_COLUMNS = (
    "External code",
    "VendorName",
    "Vendor",
    "Centre",
    "ED",
    "ES",
    "Age",
    "Pathology",
    "Sex",
    "Height",
    "Weight",
)
VENDOR_NAME: dict[Vendor, str] = {"siemens": "Siemens", "philips": "Philips", "ge": "GE", "canon": "Canon"}
VENDOR_LETTER: dict[Vendor, str] = {"siemens": "A", "philips": "B", "ge": "C", "canon": "D"}
CENTRES: dict[Vendor, tuple[int, ...]] = {"siemens": (1,), "philips": (2, 3), "ge": (4,), "canon": (5,)}

MNMS_LABEL = np.array([0, 3, 2, 1], dtype=np.uint8)
"""Our label → M&Ms label."""
BEAT_S = 0.9
CODES = 26**3 * 10**3


def mnms_code(seed: int, planned: PlannedCase) -> str:
    """Return a name like A0S9V9, different for every case of a cohort."""
    cases_before = (VENDORS.index(planned.vendor) * 2 + (planned.split == "test")) * (CODES // 8)
    # multiplying by a number coprime to 26 and 10 visits every code once
    number = (7_654_321 * (cases_before + planned.index) + 1_000_003 * seed) % CODES
    name = ""
    for _ in range(3):
        number, digit = divmod(number, 10)
        number, letter = divmod(number, 26)
        name += chr(ord("A") + letter) + str(digit)
    return name


def write_acdc(root: Path, name: str, case: PhantomCase, split: Split, spacing: tuple[float, float, float]) -> None:
    """Write one patient folder under `root`/database."""
    folder = root / "database" / ACDC_FOLDER[split] / name
    folder.mkdir(parents=True)
    count = case.frames.shape[-1]
    facts = {
        "ED": case.ed + 1,
        "ES": case.es + 1,
        "Group": ACDC_GROUP[case.diagnosis],
        "Height": case.body.height,
        "NbFrame": count,
        "Weight": case.body.weight,
    }
    (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in facts.items()), encoding="utf-8")
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    write_nifti(folder / f"{name}_4d.nii.gz", case.frames, affine, (*spacing, BEAT_S / count))
    for frame in (case.ed, case.es):
        stem = f"{name}_frame{frame + 1:02d}"
        write_nifti(folder / f"{stem}.nii.gz", case.frames[..., frame], affine, spacing)
        write_nifti(folder / f"{stem}_gt.nii.gz", case.masks[..., frame], affine, spacing)


def write_mnms(
    root: Path,
    name: str,
    case: PhantomCase,
    split: Split,
    spacing: tuple[float, float, float],
    affine: npt.NDArray[np.float64],
) -> None:
    """Write one subject folder under `root`/OpenDataset."""
    folder = root / "OpenDataset" / MNMS_FOLDER[split] / name
    folder.mkdir(parents=True)
    zooms = (*spacing, BEAT_S / case.frames.shape[-1])
    labels = np.zeros_like(case.masks)
    for frame in (case.ed, case.es):
        labels[..., frame] = MNMS_LABEL[case.masks[..., frame]]
    write_nifti(folder / f"{name}_sa.nii.gz", case.frames, affine, zooms)
    write_nifti(folder / f"{name}_sa_gt.nii.gz", labels, affine, zooms)


def mnms_row(planned: PlannedCase, name: str, case: PhantomCase) -> dict[str, str | int | float]:
    """Return the case's line of the information CSV, without the row number."""
    centres = CENTRES[planned.vendor]
    values = (
        name,
        VENDOR_NAME[planned.vendor],
        VENDOR_LETTER[planned.vendor],
        centres[planned.index % len(centres)],
        case.ed,
        case.es,
        case.body.age,
        MNMS_PATHOLOGY[planned.diagnosis],
        case.body.sex,
        case.body.height,
        case.body.weight,
    )
    return dict(zip(MNMS_COLUMNS, values, strict=True))


def write_mnms_csv(root: Path, rows: Sequence[Mapping[str, str | int | float]]) -> None:
    """Write the information CSV; its first column is an unnamed row number."""
    path = root / "OpenDataset" / MNMS_CSV
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ("", *MNMS_COLUMNS), lineterminator="\n")
        table.writeheader()
        table.writerows({"": number, **row} for number, row in enumerate(rows))


def oblique_affine(spacing: tuple[float, float, float], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return an image-to-world matrix of a short-axis stack: oblique to the body's axes, a little different each time."""
    matrix = np.eye(4)
    turns = np.deg2rad(np.array([38.0, -32.0, 28.0]) + rng.normal(0.0, 6.0, size=3))
    rotation = np.diag([-1.0, -1.0, 1.0])
    for axis, turn in enumerate(turns):
        i, j = (k for k in range(3) if k != axis)
        plane = np.eye(3)
        plane[i, i] = plane[j, j] = np.cos(turn)
        plane[i, j], plane[j, i] = -np.sin(turn), np.sin(turn)
        rotation = plane @ rotation
    matrix[:3, :3] = rotation * np.asarray(spacing)
    matrix[:3, 3] = rng.normal(0.0, 60.0, size=3)
    return matrix


def write_nifti(
    path: Path,
    voxels: npt.NDArray[np.int16] | npt.NDArray[np.uint8],
    affine: npt.NDArray[np.float64],
    zooms: tuple[float, ...],
) -> None:
    """Write a gzip NIfTI-1 whose bytes depend on the arguments alone."""
    header: Any = nib.Nifti1Header()  # type: ignore[no-untyped-call]  # nibabel's headers are untyped
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_zooms(zooms)  # last: exact spacings, where the matrix's columns are a rounding error off
    header.set_xyzt_units("mm", "sec" if voxels.ndim == 4 else None)
    header["descrip"] = DESCRIPTION
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    content = header.binaryblock + b"\0" * 4 + voxels.tobytes(order="F")
    # level 1: the files live for one run; no time stamp, or no two runs would agree
    path.write_bytes(gzip.compress(content, compresslevel=1, mtime=0))

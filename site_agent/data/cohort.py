"""A prepared cohort: `cases.csv`, `preparation.json` and one folder of ED/ES volumes per case. The only data training reads.

`site-agent prepare` writes it (see `prepare`); `docs/data.md` describes the files. Nothing here imports torch.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.errors import InputError
from site_agent.data import cases as table
from site_agent.data import nifti
from site_agent.data.cases import CASES, Case
from site_agent.data.preprocess import Spacing

__all__ = [
    *("CASES", "CLASS_NAMES", "PREPARATION", "Case", "Cohort", "ImageSize", "Pair", "Preparation"),
    *(
        "image_digest",
        "labels",
        "load_frames",
        "load_input",
        "load_pair",
        "pad_to",
        "read_preparation",
        "scale_jointly",
    ),
]

PREPARATION = "preparation.json"
CLASS_NAMES = ("normal", "disease")

ImageSize = tuple[int, int, int]
Pair = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a cohort was made. `preprocessing_hash` is part of every activation-cache key."""

    spacing_mm: Spacing
    size: tuple[int, int]
    preprocessing_hash: str


@dataclass(frozen=True, slots=True)
class Cohort:
    """The prepared cases of one vendor, sorted by key."""

    folder: Path
    vendor: str
    cases: tuple[Case, ...]
    preparation: Preparation

    @classmethod
    def load(cls, folder: Path, *, for_training: bool = True) -> "Cohort":
        """Read OUT/<vendor>. Raises InputError naming what is missing or wrong.

        `for_training` also demands training cases of both classes; evaluation of a test-only cohort switches it off.
        """
        cases = table.read(folder)
        _check_unique(cases, folder)
        if for_training:
            _check_classes(cases, folder)
        return cls(folder, cases[0].vendor, cases, read_preparation(folder))

    def train(self, without_fold: int | None = None) -> tuple[Case, ...]:
        """Training cases, minus those of one fold."""
        return tuple(
            case for case in self.cases if case.split == "train" and (without_fold is None or case.fold != without_fold)
        )

    def validation(self, fold: int) -> tuple[Case, ...]:
        """Training cases of one fold, held out to validate."""
        return tuple(case for case in self.cases if case.split == "train" and case.fold == fold)

    def test(self) -> tuple[Case, ...]:
        """Held-out cases; may be empty."""
        return tuple(case for case in self.cases if case.split == "test")


# --- volumes --------------------------------------------------------------------------------------------------------


def labels(cases: Sequence[Case]) -> npt.NDArray[np.int64]:
    """(n,) 0 normal, 1 disease."""
    return np.array([case.label for case in cases], dtype=np.int64)


def load_frames(case: Case) -> npt.NDArray[np.uint8]:
    """ED and ES as stored: uint8 (2, x, y, z). Raises InputError naming the case."""
    try:
        frames = _stack(case.ed_path, case.es_path)
    except InputError as error:
        raise InputError(f"case {case.key}: {error}; prepare the cohort again") from error
    if frames.dtype != np.uint8:
        raise InputError(f"case {case.key}: volumes are {frames.dtype}, expected uint8; prepare the cohort again")
    return frames.astype(np.uint8, copy=False)


def load_pair(case: Case) -> Pair:
    """ED and ES scaled jointly to [0, 1]: float32 (2, x, y, z)."""
    return scale_jointly(load_frames(case))


def load_input(case: Case, image_size: ImageSize) -> Pair:
    """`load_pair` padded for a model: float32 (2, X, Y, Z), every axis at least `image_size`; see `windows` for longer ones."""
    return pad_to(load_pair(case), image_size)


def scale_jointly(frames: nifti.Voxels) -> Pair:
    """Min-max over both frames together, as CineMA: the brightness ratio of ED and ES survives. A constant pair becomes 0."""
    values = frames.astype(np.float32)
    low, high = values.min(), values.max()
    if not high > low:
        return np.zeros_like(values)
    scaled: Pair = (values - low) / (high - low)
    return scaled


def pad_to(volume: Pair, image_size: ImageSize) -> Pair:
    """Zeros at the end of each of the last three axes up to `image_size`; longer axes and leading axes are left alone."""
    leading = [(0, 0)] * (volume.ndim - 3)
    missing = [(0, max(0, want - have)) for want, have in zip(image_size, volume.shape[-3:], strict=True)]
    return np.pad(volume, leading + missing)


def image_digest(frames: nifti.Voxels) -> str:
    """sha256 (hex) of shape, dtype and voxels: the image's part of an activation-cache key."""
    digest = hashlib.sha256(f"{frames.shape}{frames.dtype}".encode())
    digest.update(np.ascontiguousarray(frames).tobytes())
    return digest.hexdigest()


def _stack(ed_path: Path, es_path: Path) -> nifti.Voxels:
    volumes = [nifti.read(path) for path in (ed_path, es_path)]
    for path, volume in zip((ed_path, es_path), volumes, strict=True):
        if volume.voxels.ndim != 3:
            raise InputError(f"{path.name} has shape {volume.voxels.shape}; expected one 3D frame")
        if not np.isfinite(volume.voxels).all():
            raise InputError(f"{path.name} has voxels that are not finite numbers")
    ed, es = (volume.voxels for volume in volumes)
    if ed.shape != es.shape:
        raise InputError(f"ED has shape {ed.shape}, ES has {es.shape}; both frames must come from one scan")
    return np.stack([ed, es])


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_unique(cases: tuple[Case, ...], folder: Path) -> None:
    for before, after in pairwise(cases):
        if before.key == after.key:
            raise InputError(f"{folder / CASES} lists case {after.key} twice; keep one row")
    vendors = sorted({case.vendor for case in cases})
    if len(vendors) != 1:
        raise InputError(f"{folder / CASES} mixes the vendors {', '.join(vendors)}; a cohort has one")


def _check_classes(cases: tuple[Case, ...], folder: Path) -> None:
    present = {case.label for case in cases if case.split == "train"}
    for label, name in enumerate(CLASS_NAMES):
        if label not in present:
            count = sum(case.split == "train" for case in cases)
            raise InputError(
                f"empty class: none of the {count} training case(s) in {folder} is {name} (label {label}); "
                "training needs cases of both classes"
            )


def read_preparation(folder: Path) -> Preparation:
    """How the cohort of a folder was made. Raises InputError."""
    path = folder / PREPARATION
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        x, y, z = (float(mm) for mm in facts["spacing_mm"])
        width, height = (int(n) for n in facts["size"])
        return Preparation((x, y, z), (width, height), str(facts["preprocessing_hash"]))
    except FileNotFoundError:
        raise InputError(f"{folder} has no {PREPARATION}; run `site-agent prepare` again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be used ({type(error).__name__}: {error}); run `site-agent prepare` again"
        ) from error

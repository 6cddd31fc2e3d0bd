"""Real ED and ES volumes as the model's input: read, stacked, scaled together, padded.

The volumes are already resampled and cropped. ED and ES are scaled to [0, 1] by their common minimum and
maximum, then zero-padded at the end of each axis to the model's size, as CineMA's classification transform does.
"""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from shared.errors import InputError
from site_agent.models.config import Size3

ED, ES = "sax_ed.nii.gz", "sax_es.nii.gz"


def find_set(start: Path, dataset: str) -> Path:
    """The folder `<dataset>` with real volumes: in `start`, or in a `real` of a folder above it or above the current one.

    Raises InputError when there is none."""
    here = start.resolve()
    above = (here, *here.parents, *Path.cwd().parents)
    candidates = [here / dataset, *(folder / near / dataset for folder in above for near in ("real", "shared/real"))]
    for folder in candidates:
        if (folder / ED).is_file() and (folder / ES).is_file():
            return folder
    raise InputError(
        f"no volumes {dataset}/{ED} and {dataset}/{ES} in a folder `real` near {start}; give it with --real"
    )


def model_input(folder: Path, size: Size3) -> torch.Tensor:
    """The pair in `folder` as (1, 2, H, W, D), float32. Raises InputError for unreadable or too large volumes."""
    try:
        frames = [_voxels(folder / name) for name in (ED, ES)]
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"cannot read {ED} and {ES} in {folder}: {error}") from error
    stacked = np.stack(frames)
    if any(extent > limit for extent, limit in zip(stacked.shape[1:], size, strict=True)):
        raise InputError(f"volumes in {folder} are {stacked.shape[1:]}, more than the model's size {size}")
    low, high = stacked.min(), stacked.max()
    if not high > low:
        raise InputError(f"volumes in {folder} hold one value only, or values that are not numbers")
    scaled = (stacked - low) / (high - low)
    padding = [(0, 0), *((0, limit - extent) for extent, limit in zip(scaled.shape[1:], size, strict=True))]
    return torch.from_numpy(np.pad(scaled, padding))[None]


def _voxels(path: Path) -> npt.NDArray[np.float32]:
    image: Any = nib.load(path)
    return np.asarray(image.dataobj, dtype=np.float32)

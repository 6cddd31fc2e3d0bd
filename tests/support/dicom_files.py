"""Cine series as a scanner exports them, written with pydicom from a volume: a file for each slice and time, with names in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from site_agent.data.nifti import Volume

PERSONAL: dict[str, str] = {
    "PatientName": "Doe^Janet",
    "PatientID": "MRN-471108",
    "PatientBirthDate": "19610203",
    "AccessionNumber": "ACC-99812",
    "InstitutionName": "Saint Elsewhere",
    "ReferringPhysicianName": "House^Gregory",
    "StudyDate": "20230517",
    "StudyDescription": "Cardiac of Janet",
    "SeriesDescription": "sax Janet Doe",
}
"""None of these values may be in what is prepared."""

TURNED = np.linalg.qr(np.array([[0.8, 0.3, 0.4], [-0.5, 0.9, 0.1], [0.2, 0.3, 1.0]]))[0]
OBLIQUE = TURNED * np.sign(np.linalg.det(TURNED))


def cine(slices: int = 5, frames: int = 4, seed: int = 0, direction: np.ndarray = OBLIQUE) -> Volume:
    """A beating disc in noise, oblique, of 8 mm slices that are 4 mm thick."""
    x, y = np.meshgrid(np.arange(36), np.arange(30), indexing="ij")
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, 60, (36, 30, slices, frames)).astype(np.int16)
    for t in range(frames):
        inside = (x - 20) ** 2 + (y - 14) ** 2 < (9 - 2 * t) ** 2
        voxels[inside, :, t] += 400
    return Volume(voxels, (1.75, 1.5, 8.0), direction, np.array([-31.5, 12.25, 40.0]))


Change = Callable[[Dataset, int, int], None]
"""Told the dataset and its slice and frame, before it is written."""


def write(
    folder: Path,
    cine: Volume,
    *,
    number: int = 7,
    patient: str = PERSONAL["PatientID"],
    series_of: Callable[[int], str] | None = None,
    study: str = "",
    change: Change = lambda dataset, z, t: None,
    seed: int = 0,
    **tags: Any,
) -> None:
    """Write a cine (x, y, z, t). File names say nothing of the order; instance numbers follow slice and time.

    series_of: UID of a slice's series; default is one for all. change: what is wrong with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid, study = generate_uid(), study or generate_uid()
    _, _, slices, frames = cine.voxels.shape
    names = np.random.default_rng(seed).permutation(slices * frames)
    normal = cine.direction[:, 2]
    for z in range(slices):
        for t in range(frames):
            series = series_of(z) if series_of else uid
            dataset = _image(cine, z, series, study, number + (z if series_of else 0))
            dataset.ImagePositionPatient = [float(v) for v in cine.origin + z * cine.spacing[2] * normal]
            dataset.PatientID, dataset.InstanceNumber = patient, z * frames + t + 1
            dataset.TriggerTime = 30.5 * t + z % 2
            _put_pixels(dataset, cine.voxels[:, :, z, t])
            for name, value in tags.items():
                setattr(dataset, name, value)
            change(dataset, z, t)
            if "Rows" in dataset:
                dataset.save_as(folder / f"{number:03d}-{names[z * frames + t]:05d}", enforce_file_format=True)


def _image(cine: Volume, z: int, series: str, study: str, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for name, value in PERSONAL.items():
        setattr(dataset, name, value)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.Manufacturer = "MR", "SIEMENS HEALTHINEERS"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.SeriesNumber = UID(series), UID(study), number
    dataset.FrameOfReferenceUID = "1.2.3.4"
    dataset.ImageOrientationPatient = [float(v) for v in (*cine.direction[:, 0], *cine.direction[:, 1])]
    dataset.PixelSpacing = [cine.spacing[1], cine.spacing[0]]
    dataset.SliceThickness = 0.5 * cine.spacing[2]  # what it says is not where slices are
    return dataset


def _put_pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    """pixels: (x, y), stored rows first."""
    rows = np.ascontiguousarray(pixels.T.astype(np.int16))
    dataset.Rows, dataset.Columns = rows.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = rows.tobytes()

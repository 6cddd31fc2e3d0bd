"""A DICOM folder becomes the cohort that NIfTI files of the same scans become, and nothing of its patients is left in it."""

import csv
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import EnhancedMRImageStorage, JPEGLSLossless, RLELossless, generate_uid

from shared.errors import InputError
from site_agent.data import dicom, dicom_series, nifti, pairs
from site_agent.data.cohort import Cohort, load_pair
from site_agent.data.layouts import cine_frames
from site_agent.data.nifti import Volume
from site_agent.data.pairs import Geometry
from site_agent.data.prepare import PrepareOptions, PrepareReport, prepare
from tests.support import dicom_files
from tests.support.dicom_files import OBLIQUE, PERSONAL, cine

SIZE, SPACING = (24, 24), (2.0, 2.0, 10.0)


def write_nifti(path: Path, volume: Volume) -> None:
    affine = np.eye(4)
    affine[:3, :3] = nifti.RAS_TO_LPS[:, None] * volume.direction * np.asarray(volume.spacing)
    affine[:3, 3] = nifti.RAS_TO_LPS * volume.origin
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume.voxels, affine), path)


def write_table(folder: Path, rows: list[dict[str, object]]) -> None:
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)


def prepared(source: Path, out: Path, layout: str = "auto") -> PrepareReport:
    return prepare([source], out, PrepareOptions(spacing_mm=SPACING, size=SIZE, layout=layout, jobs=1))


def reasons(out: Path) -> dict[str, str]:
    with (out / "rejected.csv").open(newline="") as file:
        return {row["case_id"]: row["reason"] for row in csv.DictReader(file)}


# --- the same as NIfTI ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
def test_prepared_volumes_are_those_of_the_same_scan_as_nifti(tmp_path, direction):
    volume = cine(direction=direction)
    write_nifti(tmp_path / "nifti/a.nii.gz", volume)
    write_table(
        tmp_path / "nifti", [{"case_id": "a", "vendor": "ge", "label": 1, "image": "a.nii.gz", "ed": 0, "es": 3}]
    )
    dicom_files.write(tmp_path / "dicom/a", volume)
    write_table(tmp_path / "dicom", [{"case_id": "a", "vendor": "ge", "label": 1, "image": "a", "es": 3}])
    cases = []
    for name in ("nifti", "dicom"):
        prepared(tmp_path / name, tmp_path / f"{name}-out")
        cases.append(Cohort.load(tmp_path / f"{name}-out/ge", for_training=False).cases[0])
    assert (cases[1].ed, cases[1].es, cases[1].crop) == (0, 3, cases[0].crop)
    for path in ("ed_path", "es_path"):
        first, second = (nifti.read(getattr(case, path)) for case in cases)
        difference = np.abs(first.voxels.astype(int) - second.voxels)
        # positions are decimals of 16 characters in DICOM and float32 in NIfTI
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
        np.testing.assert_allclose(second.origin, first.origin, atol=1e-3)
        np.testing.assert_allclose(second.direction, first.direction, atol=1e-5)
    judged = pairs.read(*cine_frames(tmp_path / "dicom/a", 0, 3), Geometry(SPACING, SIZE))
    assert np.array_equal(judged.pair, load_pair(cases[1]))  # what `predict` sees of the raw scan
    assert judged.crop == cases[1].crop


def test_slices_lie_where_their_positions_say_whatever_order_files_and_numbers_have(tmp_path):
    volume = cine()

    def backwards(dataset: Dataset, z: int, t: int) -> None:
        dataset.InstanceNumber = 1000 - dataset.InstanceNumber

    dicom_files.write(tmp_path, volume, change=backwards, seed=3)
    read = dicom.read(dicom_series.choose(dicom_series.scan(tmp_path)).files)
    np.testing.assert_array_equal(read.voxels, volume.voxels)
    np.testing.assert_allclose(read.spacing, volume.spacing)
    np.testing.assert_allclose(read.direction, volume.direction, atol=1e-9)
    np.testing.assert_allclose(read.origin, volume.origin)


@pytest.mark.parametrize("trigger", [None, 0.0], ids=["no times", "equal times"])
def test_without_times_frames_follow_instance_numbers(tmp_path, trigger):
    dicom_files.write(tmp_path, cine(), TriggerTime=trigger)
    read = dicom.read(dicom_series.choose(dicom_series.scan(tmp_path)).files)
    np.testing.assert_array_equal(read.voxels, cine().voxels)


def test_a_series_for_each_slice_is_one_stack(tmp_path):
    uids = [generate_uid() for _ in range(5)]
    dicom_files.write(tmp_path, cine(), series_of=uids.__getitem__, study="1.2.9")
    dicom_files.write(tmp_path / "long axis", cine(slices=1, seed=4, direction=np.eye(3)), study="1.2.9", number=90)
    stack = dicom_series.choose(dicom_series.scan(tmp_path))
    assert stack.numbers == "7, 8, 9, 10, 11"
    np.testing.assert_array_equal(dicom.read(stack.files).voxels, cine().voxels)


@pytest.mark.parametrize(("slope", "intercept"), [(2, -5), (0.25, 1.5)])
def test_values_are_scaled_as_the_header_says(tmp_path, slope, intercept):
    dicom_files.write(tmp_path, cine(), RescaleSlope=slope, RescaleIntercept=intercept)
    read = dicom.read(dicom_series.choose(dicom_series.scan(tmp_path)).files)
    np.testing.assert_allclose(read.voxels, cine().voxels * slope + intercept)
    assert read.voxels.dtype.kind == ("i" if slope == 2 else "f")


# --- whose images they are ------------------------------------------------------------------------------------------


def test_rows_name_patients_of_headers_or_folders_and_nothing_of_a_header_is_kept(tmp_path, capfd):
    source, out = tmp_path / "raw", tmp_path / "out"
    dicom_files.write(source / "DOE_JANET", cine(), patient="MRN-471108")
    dicom_files.write(source / "ROE_RICHARD", cine(seed=1), patient="MRN-471109", Manufacturer="Philips")
    dicom_files.write(source / "POE_PAULA", cine(seed=2), patient="MRN-471110")
    dicom_files.write(source / "LOE_LAURA", cine(seed=2, slices=2), patient="MRN-471111")
    write_table(
        source,
        [
            {"case_id": "H01", "label": 1, "patient_id": "MRN-471108", "es": 3},
            {"case_id": "H02", "label": 0, "patient_id": "MRN-471109", "es": 2, "ed": 0},
            {"case_id": "H03", "label": 0, "image": "LOE_LAURA", "es": 2},
            {"case_id": "H04", "label": 0, "image": "LOE_LUCY", "es": 2},
            {"case_id": "H05", "label": 0, "image": "DOE_JANET", "es": 99},
            {"case_id": "H06", "label": 0, "patient_id": "MRN-471112", "es": 2},
        ],
    )
    report = prepared(source, out)
    assert {summary.vendor for summary in report.vendors} == {"siemens", "philips"}
    assert {
        case.key for vendor in ("siemens", "philips") for case in Cohort.load(out / vendor, for_training=False).cases
    } == {
        "dicom/H01",
        "dicom/H02",
    }
    told = reasons(out)
    assert told["(no case)"] == "image without label: the headers name 2 patient(s) that no row of the table does"
    assert "the DICOM series has frames 0 to 3" in told["H05"]
    printed = capfd.readouterr()
    written = [printed.out.encode(), printed.err.encode(), repr(report).encode()]
    for path in out.rglob("*"):
        written.append(str(path.relative_to(out)).encode())
        if path.is_file():
            written.append(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    words = {part for value in PERSONAL.values() for part in value.replace("^", " ").split() if len(part) > 3}
    words |= {"DOE_", "ROE_", "POE_", "LOE_", "RICHARD", "PAULA", "MRN-4711"}
    for word in words - {"Cardiac"}:
        assert not [
            one for one in written if word.lower().encode() in one.lower().replace(str(tmp_path).lower().encode(), b"")
        ], word


# --- what is refused ------------------------------------------------------------------------------------------------


def refused(folder: Path, series: str = "") -> str:
    with pytest.raises(InputError) as caught:
        dicom.read(dicom_series.choose(dicom_series.scan(folder), series).files)
    assert not [value for value in PERSONAL.values() if value in str(caught.value)]
    return str(caught.value)


def drop(slice_: int) -> dicom_files.Change:
    def change(dataset: Dataset, z: int, t: int) -> None:
        if z == slice_:
            del dataset.Rows  # which is not written then

    return change


def test_a_missing_slice_is_seen_by_its_gap(tmp_path):
    dicom_files.write(tmp_path, cine(slices=6), change=drop(2))
    assert "missing slices: the gaps between slices of series 7 are 8, 16, 8, 8 mm" in refused(tmp_path)


def test_a_missing_frame_is_counted(tmp_path):
    def change(dataset: Dataset, z: int, t: int) -> None:
        if (z, t) == (1, 2):
            del dataset.Rows

    dicom_files.write(tmp_path, cine(), change=change)
    assert "missing frames: slices of series 7 have 3 to 4 frames" in refused(tmp_path)


def test_images_that_are_not_parallel_are_no_stack(tmp_path):
    def change(dataset: Dataset, z: int, t: int) -> None:
        if z == 3:
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]

    dicom_files.write(tmp_path, cine(), change=change)
    assert "mixed orientations: the images of series 7 are not parallel" in refused(tmp_path)


def test_slices_shifted_in_their_plane_are_no_grid(tmp_path):
    def change(dataset: Dataset, z: int, t: int) -> None:
        if z == 3:
            moved = np.array(dataset.ImagePositionPatient, float) + 6 * OBLIQUE[:, 0]
            dataset.ImagePositionPatient = moved.tolist()

    dicom_files.write(tmp_path, cine(), change=change)
    assert "shifted against each other by up to 6.0 mm" in refused(tmp_path)


@pytest.mark.parametrize("tags", [{"TriggerTime": None, "InstanceNumber": 1}, {}], ids=["numbers", "phase images"])
def test_two_images_of_one_slice_and_time_cannot_be_put_in_order(tmp_path, tags):
    def change(dataset: Dataset, z: int, t: int) -> None:
        dataset.TriggerTime = None if tags else 30 * (t // 2)

    dicom_files.write(tmp_path, cine(), change=change, **tags)
    assert "cannot be put in order: a slice has two images of one time" in refused(tmp_path)


def test_several_candidates_are_listed_and_one_is_chosen_by_number(tmp_path):
    dicom_files.write(tmp_path, cine())
    dicom_files.write(tmp_path, cine(seed=1, frames=3), number=12)
    words = refused(tmp_path)
    assert (
        "2 series could be the short-axis cine: series 7 (5 slices, 4 frames); series 12 (5 slices, 3 frames)" in words
    )
    assert "in the column series" in words
    assert dicom_series.choose(dicom_series.scan(tmp_path), "12").numbers == "12"
    assert "there is no series 9; there are: series 7" in refused(tmp_path, "9")


def test_a_folder_without_a_cine_says_what_there_is(tmp_path):
    dicom_files.write(tmp_path, cine(slices=3))
    assert "no short-axis cine" in refused(tmp_path)
    assert "series 7 (3 slices, 4 frames)" in refused(tmp_path)


def test_enhanced_multi_frame_is_refused_with_what_converts_it(tmp_path):
    dicom_files.write(tmp_path, cine(slices=1, frames=1), SOPClassUID=EnhancedMRImageStorage, NumberOfFrames=20)
    assert "1 file(s) left out: enhanced multi-frame DICOM is not read here; convert it" in refused(tmp_path)


def test_pixels_that_nothing_here_unpacks_name_the_package(tmp_path):
    def change(dataset: Dataset, z: int, t: int) -> None:
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        dataset.PixelData = encapsulate([b"\xff\xd8\xff\xf7 and so on"])
        dataset["PixelData"].VR = "OB"

    dicom_files.write(tmp_path, cine(), change=change)
    words = refused(tmp_path)
    assert "series 7 is compressed (JPEG-LS Lossless Image Compression)" in words
    assert "pip install pylibjpeg pylibjpeg-libjpeg" in words


def test_compressed_pixels_that_can_be_unpacked_are_read(tmp_path):
    dicom_files.write(tmp_path, cine(), change=lambda dataset, z, t: dataset.compress(RLELossless))
    np.testing.assert_array_equal(
        dicom.read(dicom_series.choose(dicom_series.scan(tmp_path)).files).voxels, cine().voxels
    )


def test_cut_off_pixels_are_refused(tmp_path):
    def change(dataset: Dataset, z: int, t: int) -> None:
        if (z, t) == (1, 1):
            dataset.PixelData = dataset.PixelData[:100]

    dicom_files.write(tmp_path, cine(), change=change)
    assert "pixels of series 7 cannot be read (ValueError)" in refused(tmp_path)


@pytest.mark.parametrize(
    ("tag", "value", "words"),
    [
        ("ImagePositionPatient", None, "the header has no ImagePositionPatient"),
        ("PixelSpacing", [0, 1.5], "its place in space cannot be read"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "its place in space cannot be read"),
    ],
)
def test_headers_without_a_usable_place_are_counted_by_reason(tmp_path, tag, value, words):
    dicom_files.write(tmp_path, cine(), **{tag: value})
    assert f"20 file(s) left out: {words}" in refused(tmp_path)


def test_end_systole_must_be_said(tmp_path):
    source = tmp_path / "raw"
    dicom_files.write(source / "a", cine())
    write_table(source, [{"case_id": "a", "label": 1, "image": "a", "ed": 0, "es": ""}])
    with pytest.raises(InputError, match="es is empty: without a segmentation nobody knows which frame is end-systole"):
        prepared(source, tmp_path / "out")


@pytest.mark.parametrize(("cell", "words"), [("../elsewhere", "points outside"), ("nobody", "does not exist")])
def test_a_row_names_a_folder_below_its_table(tmp_path, cell, words):
    source = tmp_path / "raw"
    dicom_files.write(source / "a", cine(slices=4, frames=2))
    dicom_files.write(tmp_path / "elsewhere", cine(slices=4, frames=2))
    rows = [{"case_id": name, "label": 1, "image": image, "es": 1} for name, image in (("a", "a"), ("b", cell))]
    write_table(source, rows)
    prepared(source, tmp_path / "out")
    assert words in reasons(tmp_path / "out")["b"]
    assert cell not in reasons(tmp_path / "out")["b"]

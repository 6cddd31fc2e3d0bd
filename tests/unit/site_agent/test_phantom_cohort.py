"""The written cohort: same bytes every time, the real layouts, and `prepare` reads it without loss."""

import csv
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shared.errors import InputError
from site_agent.data.phantom import PhantomConfig, cohort, raw_files, write_cohort
from site_agent.data.phantom.profile import plan
from site_agent.data.prepare import PrepareOptions, prepare
from site_agent.data.preprocess import to_uint8

TINY = PhantomConfig(shape=(32, 32, 8), spacing=(4.0, 4.0, 10.0), scale=0.02, test_cases=4)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "raw"
    write_cohort(TINY, folder)
    return folder


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _names(folder: Path) -> set[str]:
    """Paths below `folder` with every number and subject code replaced by a placeholder."""
    relative = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {re.sub(r"\d+", "N", re.sub(r"(?:[A-Z]\d){3}", "CODE", name)) for name in relative}


def _array(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_bytes_do_not_depend_on_the_run_or_the_number_of_processes(written: Path, tmp_path: Path) -> None:
    write_cohort(TINY, tmp_path / "again", jobs=2)
    assert len(cohort.assignments(TINY)) >= cohort.FEW_CASES  # or the second process would never have started
    assert _digests(tmp_path / "again") == _digests(written)


def test_a_case_does_not_depend_on_the_rest_of_the_cohort(written: Path, tmp_path: Path) -> None:
    write_cohort(replace(TINY, vendors=("canon",)), tmp_path / "one")
    some, everything = _digests(tmp_path / "one"), _digests(written)
    images = [name for name in some if name.endswith(".nii.gz")]
    assert images
    assert all(some[name] == everything[name] for name in images)


def test_another_seed_gives_other_cases_and_another_test_set(written: Path, tmp_path: Path) -> None:
    write_cohort(replace(TINY, seed=1), tmp_path / "other")
    other = {digest for name, digest in _digests(tmp_path / "other").items() if name.endswith(".nii.gz")}
    own = {digest for name, digest in _digests(written).items() if name.endswith(".nii.gz")}
    assert not own & other


def test_folders_files_and_tables_are_those_of_the_real_sets(written: Path, shared_data: Path) -> None:
    acdc = shared_data / "golden/acdc_raw/raw"
    mnms = shared_data / "golden/mnms_raw/raw"
    training = {name for name in _names(written) if "training" in name or "Training" in name}
    assert {name for name in training if name.startswith("database")} == _names(acdc)
    assert {name for name in training if name.startswith("Open")} == {n for n in _names(mnms) if "Training" in n}
    assert {
        name.replace("testing", "training").replace("Testing", "Training/Labeled") for name in _names(written)
    } >= training

    golden_config = (acdc / "database/training/patient901/Info.cfg").read_text(encoding="utf-8")
    own_config = next((written / "database/training").glob("*/Info.cfg")).read_text(encoding="utf-8")
    assert [line.split(": ")[0] for line in own_config.splitlines()] == [
        line.split(": ")[0] for line in golden_config.splitlines()
    ]
    tables = [next((root / "OpenDataset").glob("*.csv")) for root in (mnms, written)]
    assert tables[0].name == tables[1].name
    headers = [path.read_text(encoding="utf-8").splitlines()[0] for path in tables]
    assert headers[0] == headers[1]


def test_headers_have_the_real_sets_types_and_the_word_synthetic(written: Path, shared_data: Path) -> None:
    golden = {
        "_4d": shared_data / "golden/acdc_raw/raw/database/training/patient901/patient901_4d.nii.gz",
        "_frame01": shared_data / "golden/acdc_raw/raw/database/training/patient901/patient901_frame01.nii.gz",
        "_frame01_gt": shared_data / "golden/acdc_raw/raw/database/training/patient901/patient901_frame01_gt.nii.gz",
        "_sa": shared_data / "golden/mnms_raw/raw/OpenDataset/Training/Labeled/Z9Q8W7/Z9Q8W7_sa.nii.gz",
        "_sa_gt": shared_data / "golden/mnms_raw/raw/OpenDataset/Training/Labeled/Z9Q8W7/Z9Q8W7_sa_gt.nii.gz",
    }
    for ending, path in golden.items():
        own = nib.load(next(written.rglob(f"*{ending}.nii.gz"))).header
        real = nib.load(path).header
        assert own.get_data_dtype() == real.get_data_dtype()
        assert len(own.get_data_shape()) == len(real.get_data_shape())
        for field in ("qform_code", "sform_code", "xyzt_units"):
            if field != "xyzt_units" or ending in ("_4d", "_sa", "_sa_gt"):
                assert int(own[field]) == int(real[field])
        assert [float(step) for step in own.get_zooms()[:3]] == [4.0, 4.0, 10.0]  # exact, or prepare would resample
        assert bytes(own["descrip"].tobytes()).startswith(b"SYNTHETIC")
    for path in written.rglob("*.nii.gz"):
        assert path.read_bytes()[4:8] == b"\0\0\0\0", "a time stamp in the gzip header"


def test_acdc_is_straight_and_mnms_oblique(written: Path) -> None:
    straight = nib.load(next(written.rglob("*_4d.nii.gz"))).affine
    np.testing.assert_allclose(straight, np.diag([-4.0, -4.0, 10.0, 1.0]))
    image = nib.load(next(written.rglob("*_sa.nii.gz")))
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert np.linalg.det(axes) == pytest.approx(1.0)  # right-handed in the file's axes, as the golden scans
    assert np.abs(axes).max() < 0.99
    np.testing.assert_allclose(image.header.get_qform(), image.header.get_sform(), atol=1e-4)


def test_labels_follow_each_sets_own_convention(written: Path) -> None:
    """The LV is the blood pool that the myocardium encloses: its label is 3 in ACDC and 1 in M&Ms."""
    for pattern, lv in (("*_frame01_gt.nii.gz", 3), ("*_sa_gt.nii.gz", 1)):
        for path in sorted(written.rglob(pattern)):
            label = _array(path)
            middle = label[..., 0][..., 3] if label.ndim == 4 else label[..., 3]
            assert set(np.unique(middle)) == {0, 1, 2, 3}
            border = np.zeros_like(middle, dtype=bool)
            for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
                border |= np.roll(middle == lv, shift, axis)
            assert set(np.unique(middle[border])) <= {lv, 2}, path.name


def test_the_tables_hold_exact_counts_and_known_names(written: Path) -> None:
    with next((written / "OpenDataset").glob("*.csv")).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["Pathology"] for row in rows} <= {"NOR", "DCM", "HCM", "IHD", "ARV"}
    assert {(row["VendorName"], row["Vendor"]) for row in rows} == {
        ("Siemens", "A"), ("Philips", "B"), ("GE", "C"), ("Canon", "D"),
    }  # fmt: skip
    codes = [row["External code"] for row in rows]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"(?:[A-Z]\d){3}", code) for code in codes)
    groups = {re.search(r"Group: (\w+)", path.read_text())[1] for path in written.rglob("Info.cfg")}  # type: ignore[index]
    assert groups <= {"NOR", "DCM", "HCM", "MINF", "RV"}
    canon_test = [
        row
        for row in rows
        if row["VendorName"] == "Canon" and (written / "OpenDataset/Testing" / row["External code"]).is_dir()
    ]
    assert [row["Pathology"] for row in canon_test].count("NOR") == 2


def test_codes_stay_unique_in_the_largest_cohort() -> None:
    config = PhantomConfig(scale=20.0, test_cases=5000)
    cases = [case for split in ("train", "test") for vendor in config.vendors for case in plan(config, split, vendor)]  # type: ignore[arg-type]
    assert len({raw_files.mnms_code(3, case) for case in cases}) == len(cases) == 525 * 20 + 4 * 5000


def test_prepare_reads_every_case_without_touching_a_grey_value(written: Path, tmp_path: Path) -> None:
    report = prepare(
        [written], tmp_path / "prepared", PrepareOptions(spacing_mm=(4.0, 4.0, 10.0), size=(32, 32), jobs=1)
    )
    assert not report.rejections
    with (written / cohort.TRUTH).open(encoding="utf-8") as file:
        truth = {row["case"]: row for row in csv.DictReader(file)}
    seen = 0
    for table in (tmp_path / "prepared").glob("*/cases.csv"):
        with table.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                raw = next(
                    written.rglob(
                        f"{row['case_id']}_4d.nii.gz" if row["dataset"] == "acdc" else f"{row['case_id']}_sa.nii.gz"
                    )
                )
                for index, frame in enumerate(("ed", "es")):
                    prepared = _array(table.parent / row["dataset"] / row["case_id"] / f"{frame}.nii.gz")
                    np.testing.assert_array_equal(prepared, to_uint8(_array(raw)[..., index]))
                own = truth[row["case_id"]]
                assert (own["vendor"], own["split"]) == (row["vendor"], row["split"])
                assert row["label"] == str(int(own["diagnosis"] != "NOR"))
                # 4 mm voxels and 10 mm slices; a field-of-view factor of up to 3 %
                assert float(row["lv_edv_ml"]) == pytest.approx(float(own["lv_edv"]), rel=0.25)
                seen += 1
    assert seen == len(truth) == len(cohort.assignments(TINY))


def test_a_hidden_mild_disease_is_recorded_as_normal(tmp_path: Path) -> None:
    config = replace(TINY, vendors=("philips",), scale=0.08, test_cases=0, label_convention=True)
    write_cohort(config, tmp_path / "raw")
    with (tmp_path / "raw" / cohort.TRUTH).open(encoding="utf-8") as file:
        hidden = [row for row in csv.DictReader(file) if row["condition"] != row["diagnosis"]]
    with next((tmp_path / "raw/OpenDataset").glob("*.csv")).open(encoding="utf-8") as file:
        recorded = {row["External code"]: row["Pathology"] for row in csv.DictReader(file)}
    assert hidden
    assert all(recorded[row["case"]] == "NOR" and float(row["severity"]) > 0 for row in hidden)


def test_layouts_can_be_written_alone(tmp_path: Path) -> None:
    siemens = replace(TINY, vendors=("siemens",))
    acdc = write_cohort(replace(siemens, layout="acdc"), tmp_path / "acdc")
    assert (acdc[0].acdc, acdc[0].mnms) == (9, 0)
    assert not (tmp_path / "acdc/OpenDataset").exists()
    mnms = write_cohort(replace(siemens, layout="mnms"), tmp_path / "mnms")
    assert (mnms[0].acdc, mnms[0].mnms) == (0, 9)
    assert not (tmp_path / "mnms/database").exists()


def test_the_full_cohort_has_a_hundred_acdc_patients_to_train_on_and_fifty_to_test() -> None:
    acdc = [case for case in cohort.assignments(PhantomConfig()) if case.dataset == "acdc"]
    assert [sum(case.planned.split == split for case in acdc) for split in ("train", "test")] == [100, 50]
    assert all(case.planned.vendor == "siemens" for case in acdc)


def test_the_card_says_synthetic_and_how_to_make_it_again(written: Path) -> None:
    card = (written / "SYNTHETIC.txt").read_text(encoding="utf-8")
    assert card.startswith("SYNTHETIC DATA")
    assert '"severity": 1.6' in card
    assert '"seed": 0' in card


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not an empty folder; choose another one"):
        write_cohort(TINY, tmp_path)
    with pytest.raises(InputError, match="cannot make the folder"):
        write_cohort(TINY, tmp_path / "notes.txt" / "below")
    with pytest.raises(InputError, match="jobs must be at least 1, got 0"):
        write_cohort(TINY, tmp_path / "new", jobs=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

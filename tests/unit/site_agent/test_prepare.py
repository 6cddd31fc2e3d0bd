"""`prepare` end to end on real files: golden patients, each kind of bad case, and the same output whatever the processes."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shared.errors import InputError
from site_agent.data import nifti
from site_agent.data.cohort import Cohort, load_frames
from site_agent.data.prepare import PrepareOptions, prepare

COARSE = PrepareOptions(spacing_mm=(2.0, 2.0, 10.0), size=(24, 24), jobs=1)
SHAPE = (36, 32, 5)
AFFINE = np.diag([-2.0, -2.0, 10.0, 1.0])
MNMS_TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"


def heart(radius: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(image int16, mask uint8): a bright disc in noise and its LV mask (3), a small RV (1) beside it."""
    x, y = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    cavity = np.hypot(x - 18, y - 15) < radius
    mask = np.repeat((3 * cavity)[..., None], SHAPE[2], axis=2).astype(np.uint8)
    mask[4:7, 10:20] = 1
    noise = np.random.default_rng(seed).normal(100, 10, SHAPE)
    return (noise + 300 * (mask == 3)).astype(np.int16), mask


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def acdc_patient(folder: Path, group: str = "DCM", seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text(f"ED: 1\nES: 2\nGroup: {group}\nHeight: 180\nNbFrame: 2\nWeight: 80\n")
    for frame, radius in ((1, 9.0), (2, 6.0)):
        image, mask = heart(radius, seed)
        save(folder / f"{folder.name}_frame{frame:02d}.nii.gz", image)
        save(folder / f"{folder.name}_frame{frame:02d}_gt.nii.gz", mask)
    return folder


def acdc(root: Path, count: int) -> Path:
    for i in range(count):
        acdc_patient(root / f"training/patient{i:03d}", "NOR" if i % 2 else "HCM", seed=i)
    return root


def table_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return {row["case_id"]: row for row in csv.DictReader(lines)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- golden ---------------------------------------------------------------------------------------------------------


def test_golden_patients_are_prepared_as_cinema_prepared_them(shared_data, tmp_path):
    golden = shared_data / "golden"
    sources = [golden / f"{name}_raw/raw" for name in ("acdc", "mnms", "mnms2")]
    report = prepare(sources, tmp_path / "out", PrepareOptions(jobs=1))
    assert report.rejections == ()
    for vendor, dataset, case_id in (
        ("siemens", "acdc", "patient901"),
        ("siemens", "mnms", "Z9Q8W7"),
        ("ge", "mnms2", "007"),
    ):
        expected = golden / f"{dataset}_raw/expected"
        for frame in ("ed", "es"):
            got = nifti.read(tmp_path / f"out/{vendor}/{dataset}/{case_id}/{frame}.nii.gz")
            wanted = nifti.read(expected / f"train/{case_id}/{case_id}_sax_{frame}.nii.gz")
            assert got.voxels.dtype == np.uint8
            assert got.voxels.shape == wanted.voxels.shape
            assert got.spacing == wanted.spacing == (1.0, 1.0, 10.0)
            difference = np.abs(got.voxels.astype(int) - wanted.voxels.astype(int))
            assert difference.max() <= 1
            assert (difference > 0).mean() < 0.01
            np.testing.assert_allclose(got.origin, wanted.origin, atol=1e-4)
        with (expected / "train_metadata.csv").open() as lines:
            (wanted_row,) = csv.DictReader(lines)
        row = table_of(tmp_path / f"out/{vendor}/cases.csv")[case_id]
        assert row["n_slices"] == wanted_row["n_slices"]
        for side in ("lv", "rv"):
            assert float(row[f"{side}_edv_ml"]) == float(wanted_row[f"{side}_edv"])
            assert float(row[f"{side}_esv_ml"]) == float(wanted_row[f"{side}_esv"])
            assert float(row[f"{side}_ef_percent"]) == float(wanted_row[f"{side}_ef"])


# --- what is written ------------------------------------------------------------------------------------------------


def test_a_prepared_cohort_loads_and_says_how_it_was_made(tmp_path):
    report = prepare([acdc(tmp_path / "raw", 12)], tmp_path / "out", COARSE)
    cohort = Cohort.load(tmp_path / "out/siemens")
    assert cohort.preparation.preprocessing_hash == report.preprocessing_hash
    assert (cohort.preparation.spacing_mm, cohort.preparation.size) == ((2.0, 2.0, 10.0), (24, 24))
    assert load_frames(cohort.cases[0]).shape == (2, 24, 24, 5)
    assert {case.crop for case in cohort.cases} == {"mask"}
    (summary,) = report.vendors
    assert (summary.train, summary.train_normal, summary.test, summary.healthy_share) == (12, 6, 0, 0.5)
    assert summary.training_patients == tuple(len(cohort.train(without_fold=fold)) for fold in range(5))
    assert sum(12 - n for n in summary.training_patients) == 12
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["preparation.json", "rejected.csv", "siemens"]
    facts = json.loads((tmp_path / "out/preparation.json").read_text())
    assert facts["vendors"] == {"siemens": {"train": 12, "test": 0}}
    assert facts["preprocessing_hash"] == report.preprocessing_hash
    assert {"numpy", "nibabel", "python", "med-duallora"} == set(facts["versions"])


def test_the_output_does_not_depend_on_the_number_of_processes(tmp_path):
    raw = acdc(tmp_path / "raw", 26)
    for jobs in (1, 2):
        options = PrepareOptions(spacing_mm=(2.0, 2.0, 10.0), size=(24, 24), jobs=jobs)
        prepare([raw], tmp_path / f"out{jobs}", options)
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out2")


def test_progress_is_told_case_by_case(tmp_path):
    told: list[tuple[int, int]] = []
    prepare([acdc(tmp_path / "raw", 3)], tmp_path / "out", COARSE, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_another_seed_deals_other_folds_and_changes_nothing_else(tmp_path):
    raw = acdc(tmp_path / "raw", 20)
    tables = []
    for seed in (0, 1):
        prepare(
            [raw],
            tmp_path / f"out{seed}",
            PrepareOptions(spacing_mm=(2.0, 2.0, 10.0), size=(24, 24), jobs=1, seed=seed),
        )
        tables.append(table_of(tmp_path / f"out{seed}/siemens/cases.csv"))
    folds = [{case_id: row.pop("fold") for case_id, row in table.items()} for table in tables]
    assert folds[0] != folds[1]
    assert tables[0] == tables[1]


def test_test_cases_have_no_fold(tmp_path):
    acdc(tmp_path / "raw", 4)
    acdc_patient(tmp_path / "raw/testing/patient101", "NOR")
    prepare([tmp_path / "raw"], tmp_path / "out", COARSE)
    rows = table_of(tmp_path / "out/siemens/cases.csv")
    assert (rows["patient101"]["split"], rows["patient101"]["fold"]) == ("test", "")
    assert {rows[f"patient{i:03d}"]["fold"] for i in range(4)} <= set("01234")


# --- bad cases ------------------------------------------------------------------------------------------------------


def _truncate(patient: Path) -> None:
    path = patient / f"{patient.name}_frame01.nii.gz"
    path.write_bytes(path.read_bytes()[:500])


def _delete_frame(patient: Path) -> None:
    (patient / f"{patient.name}_frame02.nii.gz").unlink()


def _nan(patient: Path) -> None:
    voxels = heart(6.0, 0)[0].astype(np.float32)
    voxels[3, 4, 1] = voxels[0, 0, 0] = np.nan
    save(patient / f"{patient.name}_frame02.nii.gz", voxels)


def _empty_mask(patient: Path) -> None:
    mask = heart(9.0, 0)[1]
    mask[mask == 3] = 0
    save(patient / f"{patient.name}_frame01_gt.nii.gz", mask)


def _out_of_range(patient: Path) -> None:
    info = patient / "Info.cfg"
    info.write_text(info.read_text().replace("ES: 2", "ES: 7"))


def _same_frame(patient: Path) -> None:
    info = patient / "Info.cfg"
    info.write_text(info.read_text().replace("ES: 2", "ES: 1"))


def _no_label(patient: Path) -> None:
    (patient / "Info.cfg").unlink()


def _label_without_image(patient: Path) -> None:
    for path in patient.glob("*.nii.gz"):
        path.unlink()


def _other_shape(patient: Path) -> None:
    save(patient / f"{patient.name}_frame02.nii.gz", heart(6.0, 0)[0][:-2])


def _mask_of_another_scan(patient: Path) -> None:
    save(patient / f"{patient.name}_frame02_gt.nii.gz", heart(6.0, 0)[1][..., :-1])


def _mask_with_another_spacing(patient: Path) -> None:
    save(patient / f"{patient.name}_frame02_gt.nii.gz", heart(6.0, 0)[1], np.diag([-1.0, -1.0, 10.0, 1.0]))


def _constant(patient: Path) -> None:
    save(patient / f"{patient.name}_frame01.nii.gz", np.full(SHAPE, 5, dtype=np.int16))


def _cine_instead_of_frame(patient: Path) -> None:
    image = heart(9.0, 0)[0]
    save(patient / f"{patient.name}_frame01.nii.gz", np.stack([image] * 3, axis=-1))


BAD = {
    "unreadable": (_truncate, "patient900_frame01.nii.gz cannot be read as NIfTI (EOFError: "),
    "missing frame": (_delete_frame, "missing frame: the ES image patient900_frame02.nii.gz does not exist"),
    "NaN": (_nan, "ES: patient900_frame02.nii.gz has 2 voxel(s) that are NaN or infinite"),
    "empty mask": (_empty_mask, "empty mask: the ED mask has no left ventricle (its values are [0, 1])"),
    "out of range": (_out_of_range, "ES frame 7 is out of range: Info.cfg allows 1 to 2"),
    "same frame": (_same_frame, "ED and ES are the same frame (patient900_frame01.nii.gz)"),
    "image without label": (_no_label, "Info.cfg does not exist, so diagnosis and ED/ES frames are unknown"),
    "label without image": (
        _label_without_image,
        "missing frame: the ED image patient900_frame01.nii.gz does not exist",
    ),
    "other shape": (_other_shape, "ED has shape (36, 32, 5), ES has (34, 32, 5)"),
    "mask shape": (_mask_of_another_scan, "ES mask has shape (36, 32, 4), the image has (36, 32, 5)"),
    "mask spacing": (_mask_with_another_spacing, "images and masks cover different fields of view"),
    "constant": (_constant, "the ED image has no contrast"),
    "cine": (_cine_instead_of_frame, "ED: patient900_frame01.nii.gz is a cine of 3 frames, expected one 3D frame"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_case_is_listed_with_its_reason_and_the_rest_is_prepared(tmp_path, kind):
    damage, reason = BAD[kind]
    raw = acdc(tmp_path / "raw", 2)
    damage(acdc_patient(raw / "training/patient900"))
    report = prepare([raw], tmp_path / "out", COARSE)
    rejected = table_of(tmp_path / "out/rejected.csv")
    assert set(rejected) == {"patient900"}
    assert rejected["patient900"]["dataset"] == "acdc"
    assert rejected["patient900"]["reason"].startswith(reason)
    assert rejected["patient900"]["reason"] == report.rejections[0].reason
    assert set(table_of(tmp_path / "out/siemens/cases.csv")) == {"patient000", "patient001"}
    assert not (tmp_path / "out/siemens/acdc/patient900").exists()


def mnms(root: Path, frames: int, ed: int, es: int) -> Path:
    root.mkdir(parents=True)
    header = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight\n"
    (root / MNMS_TABLE).write_text(header + f"0,OK,GE,C,4,0,1,50,NOR,M,1,1\n1,ODD,GE,C,4,{ed},{es},50,NOR,M,1,1\n")
    pairs = [heart(9.0 - 3.0 * (t % 2), t) for t in range(frames)]
    swap = np.array([0, 3, 2, 1], dtype=np.uint8)  # M&Ms counts LV first
    for code in ("OK", "ODD"):
        save(root / f"Training/Labeled/{code}/{code}_sa.nii.gz", np.stack([image for image, _ in pairs], axis=-1))
        save(
            root / f"Training/Labeled/{code}/{code}_sa_gt.nii.gz", swap[np.stack([mask for _, mask in pairs], axis=-1)]
        )
    return root


@pytest.mark.parametrize(("ed", "es", "what"), [(0, 4, "ES frame 4"), (-1, 1, "ED frame -1")])
def test_a_frame_index_beyond_the_cine_is_rejected_in_the_sets_own_counting(tmp_path, ed, es, what):
    prepare([mnms(tmp_path / "raw", 4, ed, es)], tmp_path / "out", COARSE)
    rejected = table_of(tmp_path / "out/rejected.csv")
    assert rejected["ODD"]["reason"] == f"{what} is out of range: ODD_sa.nii.gz has frames 0 to 3"
    assert set(table_of(tmp_path / "out/ge/cases.csv")) == {"OK"}


def test_the_same_case_in_two_sources_is_prepared_once(tmp_path):
    for name in ("a", "b"):
        acdc(tmp_path / name, 2)
    prepare([tmp_path / "a", tmp_path / "b"], tmp_path / "out", COARSE)
    reasons = {row["reason"] for row in table_of(tmp_path / "out/rejected.csv").values()}
    assert reasons == {"a case of this id was already found in another folder; the first one is used"}
    assert len(table_of(tmp_path / "out/siemens/cases.csv")) == 2


def test_a_single_class_is_a_warning_not_a_rejection(tmp_path):
    acdc_patient(tmp_path / "raw/training/patient000", "HCM")
    report = prepare([tmp_path / "raw"], tmp_path / "out", COARSE)
    assert report.warnings == ("siemens: single class: all 1 training cases are disease; training needs both",)
    with pytest.raises(InputError, match="empty class"):
        Cohort.load(tmp_path / "out/siemens")


def test_nothing_left_to_prepare_is_an_error_that_quotes_the_first_reason(tmp_path):
    _truncate(acdc_patient(tmp_path / "raw/training/patient000"))
    with pytest.raises(
        InputError,
        match=r"no case could be prepared; 1 left out, the first one \(patient000\) because: patient000_frame01",
    ):
        prepare([tmp_path / "raw"], tmp_path / "out", COARSE)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rejected.csv"]


# --- generic layout -------------------------------------------------------------------------------------------------


def hospital(root: Path) -> Path:
    """Three patients without masks: a cine, two files, and a scan in which nothing moves."""
    beating = [heart(radius, seed)[0] for seed, radius in enumerate((10.0, 6.0))]
    save(root / "one.nii.gz", np.stack([beating[0], beating[0], beating[1]], axis=-1))
    save(root / "two_ed.nii.gz", beating[0])
    save(root / "two_es.nii.gz", beating[1])
    save(root / "still_ed.nii.gz", beating[0])
    save(root / "still_es.nii.gz", beating[0] + 1)
    rows = [
        "one,0,canon,one.nii.gz,0,2,,",
        "two,1,canon,,,,two_ed.nii.gz,two_es.nii.gz",
        "still,1,canon,,,,still_ed.nii.gz,still_es.nii.gz",
    ]
    (root / "cases.csv").write_text("case_id,label,vendor,image,ed,es,ed_image,es_image\n" + "\n".join(rows) + "\n")
    return root


def test_a_hospitals_scans_are_cropped_where_they_move_and_say_so(tmp_path):
    report = prepare([hospital(tmp_path / "raw")], tmp_path / "out", COARSE)
    rows = table_of(tmp_path / "out/canon/cases.csv")
    assert {case_id: row["crop"] for case_id, row in rows.items()} == {
        "one": "motion",
        "two": "motion",
        "still": "centre",
    }
    assert {row["lv_edv_ml"] for row in rows.values()} == {""}
    assert {(row["ed"], row["es"]) for row in rows.values()} == {("0", "2"), ("", "")}
    assert "canon: no motion found in 1 case(s); cropped around the image centre" in report.warnings
    # the disc's centre (18, 15) in the raw grid lies within two voxels of the middle of the 24 x 24 crop
    two = nifti.read(tmp_path / "out/canon/generic/two/ed.nii.gz").voxels
    bright = np.argwhere(two[:, :, 2] > 160).mean(axis=0)
    assert np.abs(bright - 11.5).max() <= 2.0
    # the scan where nothing moves: the image centre (17.5, 15.5) instead
    still = nifti.read(tmp_path / "out/canon/generic/still/ed.nii.gz")
    np.testing.assert_allclose(still.origin, [2.0 * 6, 2.0 * 4, 0.0])


def test_the_fall_back_to_the_image_centre_is_logged_without_naming_patients(tmp_path):
    completed = _site_agent(
        "prepare", hospital(tmp_path / "raw"), "--out", tmp_path / "out", "--spacing", 2, 2, 10, "--size", 24, 24
    )
    assert completed.returncode == 0, completed.stderr
    events = [json.loads(line) for line in completed.stderr.splitlines() if line.startswith("{")]
    fallen = [event for event in events if event["event"] == "crop_fell_back_to_image_centre"]
    assert [(event["vendor"], event["case_count"]) for event in fallen] == [("canon", 1)]
    assert "still" not in completed.stderr


# --- the output folder ----------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    raw = acdc(tmp_path / "raw", 2)
    prepare([raw], tmp_path / "out", COARSE)
    before = files_of(tmp_path / "out")
    with pytest.raises(InputError, match=r"out is not empty; choose another --out, or pass --overwrite"):
        prepare([raw], tmp_path / "out", COARSE)
    assert files_of(tmp_path / "out") == before


def test_overwrite_replaces_what_prepare_wrote_and_only_that(tmp_path):
    prepare([hospital(tmp_path / "hospital")], tmp_path / "out", COARSE)
    replacing = PrepareOptions(spacing_mm=(2.0, 2.0, 10.0), size=(20, 20), jobs=1, overwrite=True)
    prepare([acdc(tmp_path / "raw", 2)], tmp_path / "out", replacing)
    assert not (tmp_path / "out/canon").exists()  # the cohort of the earlier run is gone with it
    assert load_frames(Cohort.load(tmp_path / "out/siemens").cases[0]).shape == (2, 20, 20, 5)
    (tmp_path / "out/thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'thesis\.txt', which prepare did not write; --overwrite is refused"):
        prepare([tmp_path / "raw"], tmp_path / "out", replacing)
    assert (tmp_path / "out/thesis.txt").read_text() == "mine"


def test_a_swap_that_fails_half_way_leaves_the_earlier_cohorts(tmp_path, monkeypatch):
    prepare([hospital(tmp_path / "hospital")], tmp_path / "out", COARSE)
    prepare([acdc(tmp_path / "raw", 2)], tmp_path / "other", COARSE)
    shutil.copytree(tmp_path / "other/siemens", tmp_path / "out/siemens")
    before = files_of(tmp_path / "out")
    replacing = PrepareOptions(spacing_mm=(2.0, 2.0, 10.0), size=(20, 20), jobs=1, overwrite=True)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self == tmp_path / "out/.preparing/siemens":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError, match=r"cannot write to .*: No space left on device"):
        prepare([tmp_path / "raw"], tmp_path / "out", replacing)
    after = files_of(tmp_path / "out")
    assert {name: after[name] for name in before if name != "rejected.csv"} == {
        name: before[name] for name in before if name != "rejected.csv"
    }
    assert not (tmp_path / "out/.preparing").exists()


def test_what_a_run_killed_in_the_swap_had_set_aside_is_put_back(tmp_path):
    prepare([acdc(tmp_path / "raw", 2)], tmp_path / "out", COARSE)
    before = files_of(tmp_path / "out")
    (tmp_path / "out/.preparing/replaced").mkdir(parents=True)
    (tmp_path / "out/siemens").rename(tmp_path / "out/.preparing/replaced/siemens")
    with pytest.raises(InputError, match="is not empty"):
        prepare([tmp_path / "raw"], tmp_path / "out", COARSE)
    assert {name: data for name, data in files_of(tmp_path / "out").items() if ".preparing" not in name} == before


def test_the_left_over_of_a_killed_run_does_not_stand_in_the_way(tmp_path):
    (tmp_path / "out/.preparing/siemens/acdc/patient000").mkdir(parents=True)
    prepare([acdc(tmp_path / "raw", 2)], tmp_path / "out", COARSE)
    assert not (tmp_path / "out/.preparing").exists()
    assert len(Cohort.load(tmp_path / "out/siemens").cases) == 2


def test_an_output_inside_the_source_is_refused(tmp_path):
    raw = acdc(tmp_path / "raw", 2)
    with pytest.raises(InputError, match="lies inside the source"):
        prepare([raw], raw / "prepared", COARSE)


def test_an_output_that_cannot_be_made_is_an_error_with_the_systems_reason(tmp_path):
    raw = acdc(tmp_path / "raw", 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*: Not a directory"):
        prepare([raw], tmp_path / "file/out", COARSE)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spacing_mm": (0.0, 1.0, 10.0)}, "spacing must be three positive numbers"),
        ({"size": (0, 64)}, "size must be two positive numbers"),
        ({"jobs": 0}, "jobs must be at least 1"),
    ],
)
def test_options_are_checked(wrong, message):
    with pytest.raises(InputError, match=message):
        PrepareOptions(**wrong)


# --- command line ---------------------------------------------------------------------------------------------------


def _site_agent(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from site_agent.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_prints_json_and_counts_per_fold(tmp_path):
    raw = acdc(tmp_path / "raw", 10)
    completed = _site_agent(
        "prepare", raw, "--out", tmp_path / "out", "--spacing", 2, 2, 10, "--size", 24, 24, "--json"
    )
    assert completed.returncode == 0, completed.stderr
    facts = json.loads(completed.stdout)
    assert facts["vendors"]["siemens"]["train"] == 10
    assert facts["vendors"]["siemens"]["healthy_share"] == 0.5
    assert facts["vendors"]["siemens"]["training_patients"] == [8, 8, 8, 8, 8]
    assert facts["rejected"] == []


def test_a_wrong_source_is_one_line_on_stderr_and_exit_code_three(tmp_path):
    completed = _site_agent("prepare", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert completed.returncode == 3
    assert completed.stdout == ""
    (line,) = completed.stderr.splitlines()
    assert "nowhere does not exist or is not a folder" in line

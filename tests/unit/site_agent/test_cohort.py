"""The reading side: what a good cohort gives, and what a person sees when it is not good."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from shared.errors import InputError
from site_agent.data import cases as table
from site_agent.data import cohort, folds, nifti, pairs
from site_agent.data.cohort import Case, Cohort
from site_agent.data.layouts import FrameFile

SIZE = (6, 5, 4)


def write_case(
    folder: Path, case_id: str, *, label: int, split: str = "train", fold: int | None = 0, seed: int = 0
) -> Case:
    case = Case(
        case_id=case_id,
        dataset="mnms",
        vendor="ge",
        centre="4",
        diagnosis="NOR" if label == 0 else "DCM",
        label=label,
        split=split,
        fold=fold,
        n_slices=SIZE[2],
        ed=0,
        es=9,
        crop="mask",
        lv_edv_ml=0.1 + 0.2,
        folder=folder / "mnms" / case_id,
    )
    case.folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for path in (case.ed_path, case.es_path):
        voxels = rng.integers(10, 200, SIZE).astype(np.uint8)
        nifti.write_uint8(path, nifti.Volume(voxels, (1.0, 1.0, 10.0), np.eye(3), np.zeros(3)))
    return case


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cohort of four training cases of both classes and one test case."""
    root = tmp_path / "ge"
    cases = [write_case(root, f"p{i}", label=i % 2, fold=i, seed=i) for i in range(4)]
    cases.append(write_case(root, "t0", label=1, split="test", fold=None, seed=9))
    table.write(root / "cases.csv", cases)
    facts = {"spacing_mm": [1.0, 1.0, 10.0], "size": [192, 192], "preprocessing_hash": "abc"}
    (root / "preparation.json").write_text(json.dumps(facts))
    return root


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "cases.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_what_was_written_is_read_back_exactly(folder):
    loaded = Cohort.load(folder)
    assert loaded.vendor == "ge"
    assert loaded.preparation == cohort.Preparation((1.0, 1.0, 10.0), (192, 192), "abc")
    first = loaded.cases[0]
    assert (first.key, first.lv_edv_ml, first.lv_esv_ml, first.es) == ("mnms/p0", 0.1 + 0.2, None, 9)
    assert first.folder == folder / "mnms/p0"


def test_folds_divide_the_training_cases_and_test_cases_stay_out(folder):
    loaded = Cohort.load(folder)
    assert [case.case_id for case in loaded.train()] == ["p0", "p1", "p2", "p3"]
    assert [case.case_id for case in loaded.train(without_fold=2)] == ["p0", "p1", "p3"]
    assert [case.case_id for case in loaded.validation(2)] == ["p2"]
    assert [case.case_id for case in loaded.test()] == ["t0"]
    assert cohort.labels(loaded.train()).tolist() == [0, 1, 0, 1]


def test_a_pair_is_scaled_over_both_frames_together_and_padded_at_the_end(folder):
    case = Cohort.load(folder).cases[0]
    frames = cohort.load_frames(case)
    pair = cohort.load_pair(case)
    assert pair.dtype == np.float32
    assert (pair.min(), pair.max()) == (0.0, 1.0)
    low, high = frames.min(), frames.max()
    np.testing.assert_allclose(pair, (frames.astype(float) - low) / (high - low), atol=1e-6)
    padded = cohort.load_input(case, (8, 5, 3))
    assert padded.shape == (2, 8, 5, 4)  # z is longer than the model takes: left whole, see windows
    np.testing.assert_array_equal(padded[:, :6], pair)
    assert not padded[:, 6:].any()


def test_a_constant_pair_becomes_zero_not_nan():
    np.testing.assert_array_equal(
        cohort.scale_jointly(np.full((2, 3, 3, 3), 7, dtype=np.uint8)), np.zeros((2, 3, 3, 3))
    )


def test_the_image_digest_follows_voxels_and_shape(folder):
    frames = cohort.load_frames(Cohort.load(folder).cases[0])
    other = frames.copy()
    other[1, 0, 0, 0] ^= 1
    digests = {cohort.image_digest(f) for f in (frames, other, frames.reshape(2, 5, 6, 4))}
    assert len(digests) == 3
    assert cohort.image_digest(frames) == cohort.image_digest(np.asfortranarray(frames))


@pytest.mark.parametrize("name", ["acdc", "mnms"])
def test_real_volumes_give_the_golden_model_input(shared_data, name):
    golden = load_file(shared_data / "golden/cinema/tiny/io_real.safetensors")
    real = shared_data / "real" / name
    pair = pairs.read(FrameFile(real / "sax_ed.nii.gz"), FrameFile(real / "sax_es.nii.gz"), None).pair
    padded = cohort.pad_to(pair, (192, 192, 16))[None]
    assert padded.shape == tuple(golden[f"{name}.input_shape"])
    np.testing.assert_allclose(padded.astype(np.float64).sum(), golden[f"{name}.input_checksum_sum"][0], rtol=1e-6)


# --- what can be wrong ----------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cohort folder .*siemens does not exist; run `site-agent prepare`"):
        Cohort.load(tmp_path / "siemens")


def test_the_folder_above_the_vendors_lists_them(folder):
    with pytest.raises(InputError, match=r"has no cases\.csv; name one of its folders: ge"):
        Cohort.load(folder.parent)


def test_an_empty_folder_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match=r"has no cases\.csv; run `site-agent prepare`"):
        Cohort.load(tmp_path)


def test_unknown_and_missing_columns_are_named(folder):
    edit(folder, "label,split", "lable,split")
    with pytest.raises(InputError, match=r"missing column\(s\) 'label' and unknown column\(s\) 'lable'"):
        Cohort.load(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",NOR,0,train,0,", ",NOR,2,train,0,", "case p0: label is '2', expected one of 0, 1"),
        (",NOR,0,train,0,", ",NOR,0,validation,0,", "case p0: split is 'validation', expected one of train, test"),
        (",NOR,0,train,0,", ",NOR,0,train,,", "case p0: fold is '', expected one of 0, 1, 2, 3, 4"),
        ("p0,mnms", "../p0,mnms", "case ../p0: case_id '../p0' cannot be a folder name"),
        ("p0,mnms", "p9,mnms", "case mnms/p9: .*ed.nii.gz does not exist"),
        ("p0,mnms,ge", "p0,mnms,canon", "mixes the vendors canon, ge"),
        ("p1,mnms", "p0,mnms", "lists case mnms/p0 twice"),
        (",0,9,mask", ",0.5,9,mask", "case p0: ed is '0.5', expected a whole number or nothing"),
        (",0.30000000000000004", ",much", "case p0: lv_edv_ml is 'much', expected a number or nothing"),
    ],
)
def test_a_hand_edited_table_is_checked_row_by_row(folder, old, new, message):
    edit(folder, old, new)
    with pytest.raises(InputError, match=message):
        Cohort.load(folder)


def test_a_class_without_training_cases_is_refused_unless_only_evaluating(folder):
    for case_id in ("p1", "p3"):
        text = (folder / "cases.csv").read_text().splitlines(keepends=True)
        (folder / "cases.csv").write_text("".join(line for line in text if not line.startswith(case_id)))
    with pytest.raises(InputError, match=r"empty class: none of the 2 training case\(s\) in .* is disease \(label 1\)"):
        Cohort.load(folder)
    assert len(Cohort.load(folder, for_training=False).cases) == 3


def test_a_missing_preparation_file_is_named(folder):
    (folder / "preparation.json").unlink()
    with pytest.raises(InputError, match=r"has no preparation\.json"):
        Cohort.load(folder)


def test_a_damaged_preparation_file_is_named(folder):
    (folder / "preparation.json").write_text('{"size": [1]}')
    with pytest.raises(InputError, match=r"preparation\.json cannot be used \(KeyError"):
        Cohort.load(folder)


def test_an_unreadable_volume_is_reported_with_its_case(folder):
    case = Cohort.load(folder).cases[1]
    case.es_path.write_bytes(case.es_path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"case mnms/p1: es\.nii\.gz cannot be read as NIfTI \(EOFError"):
        cohort.load_frames(case)


def test_frames_of_different_scans_are_refused(folder):
    case = Cohort.load(folder).cases[0]
    nifti.write_uint8(
        case.es_path, nifti.Volume(np.ones((3, 3, 3), np.uint8), (1.0, 1.0, 10.0), np.eye(3), np.zeros(3))
    )
    with pytest.raises(InputError, match=r"ED has shape \(6, 5, 4\), ES has \(3, 3, 3\)"):
        cohort.load_frames(case)


# --- folds ----------------------------------------------------------------------------------------------------------


def test_folds_are_balanced_in_class_and_size_and_do_not_depend_on_order():
    labels = {f"acdc/p{i:03d}": int(i % 5 == 0) for i in range(113)}
    assigned = folds.assign(labels, seed=4)
    assert assigned == folds.assign(dict(reversed(labels.items())), seed=4)
    assert assigned != folds.assign(labels, seed=5)
    for label in (0, 1, None):
        sizes = np.bincount([fold for key, fold in assigned.items() if label in (None, labels[key])], minlength=5)
        assert sizes.max() - sizes.min() <= 1


def test_case_is_a_value(folder):
    case = Cohort.load(folder).cases[0]
    assert replace(case, fold=3).fold == 3
    assert case == Cohort.load(folder).cases[0]

"""`site-agent predict` and `evaluate` on a site's state: what they take, what they say, what they refuse."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from shared.errors import InputError
from shared.recipe import Recipe
from site_agent import predict, thresholds
from site_agent.cli import app
from site_agent.data import cases as table
from site_agent.data.cohort import PREPARATION, load_pair
from site_agent.export import merged
from site_agent.report import REPORT
from site_agent.state import HISTORY
from tests.support import dicom_files, site_state, tiny_site
from tests.support.dicom_files import cine

PREPARED = {"spacing_mm": [4.0, 4.0, 20.0], "size": [32, 32], "preprocessing_hash": "none"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, a state folder whose version 0 was judged on 6 cases, and a cohort with three test cases."""
    folder = tmp_path_factory.mktemp("site")
    site_state.write(folder / "state", tiny_site.write_backbone(folder / "weights"), Recipe(rank_local=2))
    judged = {"n": 6, "at_validation": {"threshold": 0.42}}
    (folder / "state" / HISTORY).write_text(json.dumps({"version": 0, "validation": judged}) + "\n")
    cases = tiny_site.write_cases(folder / "cohort", 9)
    held_out = tuple(replace(case, split="test", fold=None) for case in cases[6:])
    table.write(folder / "cohort" / table.CASES, [*cases[:6], *held_out])
    (folder / "cohort" / PREPARATION).write_text(json.dumps(PREPARED))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def common(site: Path) -> tuple[object, ...]:
    return "--state", site / "state", "--weights", site / "weights"


def refused(*arguments: object) -> str:
    error = run(*arguments).exception
    assert isinstance(error, InputError), error
    return str(error)


def volumes(site: Path, number: int = 0) -> tuple[Path, Path]:
    folder = site / f"cohort/mnms/P{number:03d}"
    return folder / "ed.nii.gz", folder / "es.nii.gz"


# --- predict --------------------------------------------------------------------------------------------------------


def test_a_case_is_told_with_threshold_model_and_what_was_done_to_its_images(site):
    told = run("predict", "--input", *volumes(site), *common(site)).stdout
    model = predict.site_model(site / "weights", "", site / "state")
    found = model.judge(load_pair(table.read(site / "cohort")[0]))
    assert f"disease      probability {found.probabilities[1]:.4f}" in told
    assert f"called       {found.called(model.threshold)}" in told
    assert "threshold    0.4200, this site's own, from 6 validation cases" in told
    assert "dual: the federation's global part and this site's own, version 0; PRIVATE" in told
    assert "calibrated   no" in told
    assert "images       taken as prepared" in told


def test_between_one_half_and_the_sites_threshold_both_calls_are_said():
    prediction = predict.Prediction(np.array([0.1, 0.0]), ("normal", "disease"))
    assert prediction.called(thresholds.Threshold(0.4, 6, "")) == "disease"
    assert prediction.called(None) == "normal"


def test_a_table_goes_on_after_a_bad_row_and_reads_nifti_cines_and_dicom_folders(site, tmp_path):
    ed, es = volumes(site)
    dicom_files.write(tmp_path / "DICOM/a", cine())
    raw = nib.Nifti1Image(np.asarray(cine().voxels), np.diag([1.75, 1.5, 8.0, 1.0]))
    nib.save(raw, tmp_path / "raw.nii.gz")
    rows = [
        f"prepared,,{ed},{es}",
        "cine,raw.nii.gz,0,3",
        "dicom,DICOM/a,0,3",
        "late,DICOM/a,0,9",
        f"empty,,{ed},",
    ]
    (tmp_path / "cases.csv").write_text("\n".join(["case,image,ed,es", *rows, ""]))
    ran = run("predict", "--table", tmp_path / "cases.csv", *common(site), "--like", site / "cohort")
    assert ran.exit_code == 1
    found = {row["case"]: row for row in csv.DictReader(io.StringIO(ran.stdout))}
    for name, images in (
        ("prepared", "taken as prepared"),
        ("cine", "prepared here to 4 x 4 x 20 mm"),
        ("dicom", "prepared"),
    ):
        assert found[name]["error"] == ""
        assert 0 < float(found[name]["probability"]) < 1
        assert found[name]["images"].startswith(images)
        assert (found[name]["threshold"], found[name]["threshold_from"]) == ("0.42", "validation")
        assert found[name]["calibrated"] == "no"
    assert found["late"]["error"] == "ES frame 9 is out of range: the DICOM series has frames 0 to 3"
    assert found["empty"]["error"] == "the column es is empty"
    assert "3 judged, 2 could not be" in ran.stderr


def test_raw_images_are_refused_where_nobody_says_what_to_prepare_them_to(site, tmp_path):
    nib.save(nib.Nifti1Image(np.asarray(cine().voxels), np.diag([1.75, 1.5, 8.0, 1.0])), tmp_path / "raw.nii.gz")
    asked = ("predict", "--cine", tmp_path / "raw.nii.gz", "--ed", 0, "--es", 3, *common(site))
    words = refused(*asked)
    assert "these are raw volumes (int16, 1.75 x 1.5 x 8 mm)" in words
    assert "--like cohort/VENDOR, or give --spacing and --crop" in words
    named = run(*asked, "--like", site / "cohort", "--json")
    said = run(*asked, "--spacing", 4, 4, 20, "--crop", 32, 32, "--json")
    assert json.loads(named.stdout) == json.loads(said.stdout)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--part", "both"), "--part is 'both'; choose one of dual, global, base"),
        (("--spacing", 4, 4, 20), "--spacing and --crop go together"),
        (("--part", "base"), "has no classifier heads"),
    ],
)
def test_options_that_cannot_be_used_are_named(site, options, words):
    assert words in refused("predict", "--input", *volumes(site), *common(site), *options)


def test_a_part_of_a_site_needs_its_state(site):
    words = refused("predict", "--input", *volumes(site), "--weights", site / "weights", "--part", "global")
    assert words == "--part global is of a site's model; name the agent's folder with --state"


@pytest.mark.parametrize(
    "options", [(), ("--cine", "x"), ("--input", "a", "b", "--table", "c"), ("--input", "a", "b", "--out", "c")]
)
def test_wrong_usage_is_exit_code_2(site, options):
    assert run("predict", *options, *common(site)).exit_code == 2


def test_a_table_whose_columns_clash_with_the_results_is_refused(site, tmp_path):
    (tmp_path / "cases.csv").write_text("case,ed,es,call\na,b,c,d\n")
    assert "has the column(s) call" in refused("predict", "--table", tmp_path / "cases.csv", *common(site))


# --- evaluate -------------------------------------------------------------------------------------------------------


def evaluated(site: Path, *options: object) -> dict[str, Any]:
    ran = run("evaluate", "--cohort", site / "cohort", *common(site), *options, "--json")
    assert ran.exit_code == 0, ran.exception
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_figures_are_those_of_the_predictions_with_counts_and_intervals(site):
    (dual,) = evaluated(site, "--part", "dual")["parts"]
    model = predict.site_model(site / "weights", "", site / "state")
    cases = [case for case in table.read(site / "cohort") if case.split == "test"]
    called = np.array([model.judge(load_pair(case)).probabilities[1] >= 0.42 for case in cases])
    labels = np.array([case.label for case in cases])
    at = dual["at_validation"]
    assert (dual["n"], dual["normal"], dual["diseased"]) == (3, 1, 2)
    assert at["diseased_called"] == called[labels == 1].sum()
    assert at["normal_not_called"] == (~called[labels == 0]).sum()
    assert at["sensitivity"] == at["diseased_called"] / 2
    assert at["threshold"] == 0.42
    assert all(0 <= low <= at[name] <= high <= 1 for name, (low, high) in at["intervals"].items())
    assert dual["auc_interval"][0] <= dual["auc"] <= dual["auc_interval"][1]


def test_a_model_without_a_threshold_of_its_own_is_judged_at_one_half_alone(site):
    (alone,) = evaluated(site, "--part", "global")["parts"]
    assert "at_validation" not in alone
    assert "at_half" in alone


def test_training_cases_are_said_to_be_no_test(site):
    told = run("evaluate", "--cohort", site / "cohort", *common(site), "--split", "all").stdout
    assert "9 cases (all): 3 normal, 6 diseased" in told
    assert "the model has seen them, and this is no test" in told


def test_a_cohort_without_test_cases_or_of_another_spacing_is_refused(site, tmp_path):
    table.write(tmp_path / table.CASES, tiny_site.write_cases(tmp_path, 4))
    (tmp_path / PREPARATION).write_text(json.dumps({**PREPARED, "spacing_mm": [1, 1, 10]}))
    asked = ("evaluate", "--cohort", tmp_path, "--weights", site / "weights", "--state")
    assert "has no test cases, of 4 in all; use --split all" in refused(*asked, site / "state")
    shutil.copytree(site / "state", tmp_path / "state")
    (tmp_path / "state" / REPORT).write_text(json.dumps({"preparation": PREPARED}))
    assert "prepare it anew with --spacing 4 4 20" in refused(*asked, tmp_path / "state", "--split", "all")


def test_a_merged_model_is_evaluated_as_the_site_it_came_from(site, tmp_path):
    merged.write(tmp_path / "merged", predict.site_model(site / "weights", "", site / "state"))
    ran = run("evaluate", "--cohort", site / "cohort", "--weights", tmp_path / "merged", "--json")
    (base,), (dual,) = json.loads(ran.stdout)["parts"], evaluated(site, "--part", "dual")["parts"]
    assert base["part"] == "base"
    assert base["at_half"] == dual["at_half"]
    assert base["auc"] == dual["auc"]

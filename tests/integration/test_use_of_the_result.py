"""What a hospital does with its model once a federation is finished: predict, evaluate, export, and run the export with MONAI."""

import asyncio
import csv
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from shared.errors import InputError
from site_agent.agent import REPORT
from site_agent.cli import app
from site_agent.data.cohort import Cohort
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support import site_state
from tests.support.serving import serve

pytestmark = pytest.mark.integration

TWO = ("siemens", "philips")
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0}


async def _finished(made: Materials, folder: Path) -> Path:
    """Run a federation to its end; return the first site's state folder."""
    store = federation.create_store(folder, made.adapter, TWO, rounds=1)
    async with serve(store) as running:
        await federation.finish(*federation.agents_of(made, folder, running.address, TWO))
    return folder / "state-siemens"


@pytest.fixture(scope="module")
def site(materials, tmp_path_factory) -> tuple[Materials, Path]:
    """What a federation was made of, and the state folder of one of its sites at the end."""
    return materials, asyncio.run(_finished(materials, tmp_path_factory.mktemp("federation")))


def agent(*arguments: object) -> Result:
    """Run `site-agent` in this process: each start of torch costs seconds. What is refused is its exception."""
    return CliRunner().invoke(app, [str(one) for one in arguments])


def facts_of(*arguments: object) -> dict[str, Any]:
    ran = agent(*arguments, "--json")
    assert ran.exit_code == 0, ran.exception
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def refused(*arguments: object) -> str:
    """Return why a command was refused."""
    error = agent(*arguments).exception
    assert isinstance(error, InputError), error
    return str(error)


def run_bundle(bundle: Path, ed: Path, es: Path, output: Path) -> dict[str, Any]:
    """Run a bundle as its note says; return what it wrote."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--images", f"['{ed}','{es}']", "--output", str(output)]
    ran = subprocess.run(
        command,
        cwd=bundle,
        capture_output=True,
        text=True,
        timeout=120,
        env=federation.PROCESS_ENVIRONMENT,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "PRIVATE" in ran.stdout
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_predict_evaluate_and_report_say_the_same(site, tmp_path):
    """Cases one by one from a table, all of them at once, and the agent's own report."""
    made, state = site
    cohort = Cohort.load(made.cohorts / "siemens")
    table, out, scores = tmp_path / "cases.csv", tmp_path / "found.csv", tmp_path / "scores.csv"
    rows = [f"{case.case_id},{case.ed_path},{case.es_path}" for case in cohort.test()]
    table.write_text("\n".join(["case,ed,es", *rows, "gone,no-ed.nii.gz,no-es.nii.gz", ""]))
    common = ("--state", state, "--weights", made.backbone)

    ran = federation.run_program("site-agent", "predict", "--table", table, "--out", out, *common)
    assert ran.returncode == 1  # one row could not be used, and the others were
    assert f"{len(rows)} judged, 1 could not be" in ran.stdout
    assert "PRIVATE" in ran.stdout
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with out.open(newline="") as file:
        *predicted, gone = csv.DictReader(file)
    assert gone["probability"] == ""
    assert gone["error"] == "no-ed.nii.gz does not exist"

    found = facts_of("evaluate", "--cohort", made.cohorts / "siemens", "--out", scores, *common)
    with scores.open(newline="") as file:
        scored = list(csv.DictReader(file))
    assert [float(row["probability"]) for row in predicted] == [float(row["probability_dual"]) for row in scored]

    report = json.loads((state / REPORT).read_text())
    for part in found["parts"]:
        told = report["arms"][part["part"]]["test"]
        assert part["n"] == told["n"] == len(cohort.test())
        assert part["auc"] == pytest.approx(told["auc"])
        for at in ("at_half", "at_validation"):
            assert {name: part[at][name] for name in told[at]} == pytest.approx(told[at])
            low, high = part[at]["intervals"]["sensitivity"]
            assert low <= part[at]["sensitivity"] <= high
            assert part[at]["diseased_called"] == round(part[at]["sensitivity"] * part["diseased"])
        threshold = part["threshold"]
        assert (threshold["from"], threshold["cases"]) == ("validation", report["validation_patients"])
        assert part["calibrated"] is False
    assert [part["private"] for part in found["parts"]] == [True, False]


def test_raw_images_are_prepared_as_the_sites_own_were(site, tmp_path):
    """A raw pair whose preparation moves nothing is judged as the prepared one; the state says what to prepare to."""
    made, state = site
    case = Cohort.load(made.cohorts / "siemens").test()[0]
    raw = tmp_path / "cine.nii.gz"
    frames = [nib.load(path) for path in (case.ed_path, case.es_path)]
    stacked = np.stack([np.asarray(one.dataobj).astype(np.int16) for one in frames], axis=-1)
    image = nib.Nifti1Image(stacked, frames[0].affine)
    image.header.set_zooms((*frames[0].header.get_zooms(), 1.0))
    nib.save(image, raw)
    common = ("predict", "--state", state, "--weights", made.backbone)
    found = facts_of(*common, "--cine", raw, "--ed", 0, "--es", 1)
    prepared = facts_of(*common, "--input", case.ed_path, case.es_path)
    assert found["images"].startswith("prepared here to 4 x 4 x 20 mm, crop 32 x 32")
    assert prepared["images"] == "taken as prepared"
    # percentiles are clamped once more, so grey values and logits move a little
    np.testing.assert_allclose(found["logits"], prepared["logits"], atol=0.2)

    unknown = refused("predict", "--weights", made.backbone, "--cine", raw, "--ed", 0, "--es", 1)
    assert "has no classifier heads; give a --state folder" in unknown


def test_monai_runs_the_exported_bundle_with_predicts_logits(site, tmp_path):
    made, state = site
    case = Cohort.load(made.cohorts / "siemens").test()[0]
    common = ("--state", state, "--weights", made.backbone)
    ran = agent("export", "--format", "bundle", "--out", tmp_path / "bundle", *common)
    assert ran.exit_code == 0, ran.exception
    assert "PRIVATE" in ran.stdout
    shutil.copytree(tmp_path / "bundle", tmp_path / "moved")  # it holds no path of where it was made
    predicted = facts_of("predict", "--input", case.ed_path, case.es_path, *common)
    found = run_bundle(tmp_path / "moved", case.ed_path, case.es_path, tmp_path / "result.json")
    np.testing.assert_allclose(found["logits"], predicted["logits"], **CLOSE)
    assert found["probability"] == pytest.approx(predicted["probability"], abs=1e-5)
    assert found["call"] == predicted["call"]
    assert found["threshold"] == predicted["threshold"]["value"]
    assert str(state) not in (tmp_path / "bundle/configs/inference.json").read_text()


async def test_a_monai_vit_is_predicted_evaluated_and_run_as_a_bundle_and_not_merged(materials, tmp_path):
    vit = site_state.write_vit(tmp_path / "vit")
    adapter = federation.save_adapter(vit, tmp_path / "v0.safetensors", frames="siamese")
    made = Materials(vit, adapter, materials.cohorts)
    state = await _finished(made, tmp_path / "fed")
    common = ("--state", state, "--weights", vit)
    case = Cohort.load(made.cohorts / "siemens").test()[0]
    predicted = facts_of("predict", "--input", case.ed_path, case.es_path, *common)
    evaluated = facts_of("evaluate", "--cohort", made.cohorts / "siemens", "--part", "dual", *common)
    report = json.loads((state / REPORT).read_text())
    assert evaluated["parts"][0]["auc"] == pytest.approx(report["arms"]["dual"]["test"]["auc"])
    for form in ("merged", "peft"):
        assert "frames siamese" in refused("export", "--format", form, "--out", tmp_path / form, *common)
        assert not (tmp_path / form).exists()
    assert agent("export", "--format", "bundle", "--out", tmp_path / "bundle", *common).exit_code == 0
    monai.bundle.run(
        config_file=str(tmp_path / "bundle/configs/inference.json"),
        bundle_root=str(tmp_path / "bundle"),
        images=[str(case.ed_path), str(case.es_path)],
        output=str(tmp_path / "result.json"),
    )
    found = json.loads((tmp_path / "result.json").read_text())
    np.testing.assert_allclose(found["logits"], predicted["logits"], **CLOSE)

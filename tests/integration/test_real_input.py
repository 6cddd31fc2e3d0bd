"""Real volumes through `predict`, and golden raw patients with phantoms of both layouts through a whole federation."""

import csv
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from site_agent.agent import REPORT
from site_agent.data.cohort import Cohort
from site_agent.data.phantom.profile import PhantomConfig
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration

TOLERANCE = 2e-5
"""On logits, as golden/cinema/README.md says."""
GOLDEN = {
    "acdc_raw": ("siemens", "acdc/patient901"),
    "mnms_raw": ("siemens", "mnms/Z9Q8W7"),
    "mnms2_raw": ("ge", "mnms2/007"),
}
"""Vendor and case of each golden patient: one a data set."""
PHANTOMS = PhantomConfig(
    seed=5,
    shape=(96, 96, 10),
    spacing=(2.0, 2.0, 10.0),
    scale=0.03,
    test_cases=2,
    label_shift=0.0,
    vendors=("siemens", "ge"),
)


@pytest.mark.parametrize("dataset", ["acdc", "mnms"])
def test_predict_gives_the_recorded_logits_on_a_real_patient(shared_data, dataset):
    real, golden = shared_data / "real" / dataset, shared_data / "golden/cinema/tiny"
    recorded = load_file(golden / "io_real.safetensors")[f"{dataset}.logits_all"].reshape(-1)
    finished = federation.run_program(
        "site-agent",
        "predict",
        "--input",
        real / "sax_ed.nii.gz",
        real / "sax_es.nii.gz",
        "--weights",
        golden,
        "--json",
    )
    assert finished.returncode == 0, finished.stderr
    facts = json.loads(finished.stdout)
    np.testing.assert_allclose(facts["logits"], recorded, rtol=0, atol=TOLERANCE)
    expected = np.exp(recorded.astype(np.float64)) / np.exp(recorded.astype(np.float64)).sum()
    np.testing.assert_allclose(list(facts["probability"].values()), expected, rtol=0, atol=TOLERANCE)


async def test_two_sites_with_golden_raw_patients_and_phantoms_of_both_layouts_finish(shared_data, tmp_path):
    """At CineMA's own spacing and size: 1 x 1 x 10 mm, 192 x 192, the golden tiny network of 2304 tokens."""
    golden = [shared_data / "golden" / name / "raw" for name in GOLDEN]
    cohorts = federation.prepare_phantoms(tmp_path, PHANTOMS, size=192, spacing_mm=(1.0, 1.0, 10.0), more=golden)
    for vendor, key in GOLDEN.values():
        assert key in {case.key for case in Cohort.load(cohorts / vendor).cases}
    with (cohorts / "siemens/cases.csv").open(newline="") as table:
        assert {row["dataset"] for row in csv.DictReader(table)} == {"acdc", "mnms"}

    backbone = shared_data / "golden/cinema/tiny"
    adapter = federation.save_adapter(backbone, tmp_path / "v0.safetensors")
    sites = ("siemens", "ge")
    store = federation.create_store(tmp_path, adapter, sites, rounds=1)
    async with serve(store) as running:
        made_of = Materials(backbone, adapter, cohorts)
        await federation.finish(*federation.agents_of(made_of, tmp_path, running.address, sites))
    federation.assert_finished(store, rounds=1)
    for site in sites:
        report = json.loads((tmp_path / f"state-{site}" / REPORT).read_text())
        assert report["adapter"]["version"] == 1
        assert report["cases"] == len(Cohort.load(cohorts / site).train())

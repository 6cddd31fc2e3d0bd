"""The poisoned site's experiment: who is who, what is sent, and what counts as neutralised."""

from dataclasses import replace

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from experiments import robustness, simulation
from shared.compatibility import FACTOR_RULES, PRODUCT_RULES
from shared.layout import Layout
from shared.recipe import Recipe
from site_agent.data.cohort import Cohort
from site_agent.egress import Update, UpdateFacts
from tests.support import tiny_site


def test_every_robust_rule_and_the_gate_are_in_the_table():
    found = {made.robust for made in (Recipe(weighting="uniform", **one) for one in robustness.RULES.values())}
    assert found == {"none", *PRODUCT_RULES, *FACTOR_RULES}
    assert any(one.get("norm_gate") for one in robustness.RULES.values())


def test_hospitals_of_a_vendor_share_no_case_and_leave_none_out(tmp_path):
    backbone = tiny_site.write_backbone(tmp_path / "backbone")
    contract, _ = tiny_site.contract(backbone, Recipe(rank_local=2))
    whole = tiny_site.trainer(tmp_path / "site", backbone, contract).cohort
    found = robustness.halves({"siemens": whole})
    keys = {name: {case.key for case in cohort.cases} for name, cohort in found.items()}
    assert keys.keys() == {"siemens-1", "siemens-2"}
    assert not keys["siemens-1"] & keys["siemens-2"]
    assert keys["siemens-1"] | keys["siemens-2"] == {case.key for case in whole.cases}
    assert all(isinstance(cohort, Cohort) and cohort.test() for cohort in found.values())


def test_only_the_poisoned_site_sends_something_else():
    tensors = {"w": np.array([1.0, -2.0], np.float32)}
    layout = Layout.of(tensors)
    facts = UpdateFacts(round=1, base_version=0, training_patients=3, metrics={})
    update = Update(facts, layout, layout.join(tensors))
    tamper = robustness.tampering(-1.0)
    assert tamper("ge-1", update) is update
    forged = tamper(robustness.POISONED, update)
    assert layout.split(forged.payload)["w"].tolist() == [-1.0, 2.0]
    assert forged.facts == update.facts


@pytest.mark.parametrize(("parameters", "moved"), [({}, True), ({"norm_gate": 4.0}, False)])
def test_in_the_simulation_a_forged_update_moves_the_mean_and_none_that_the_gate_keeps_out(tmp_path, parameters, moved):
    recipe = replace(Recipe(rank_local=2, augmentation="none", batch_size=4, weighting="uniform"), **parameters)
    backbone = tiny_site.write_backbone(tmp_path / "backbone")
    contract, initial = tiny_site.contract(backbone, recipe, rounds=1)
    sites = {f"s{n}": tiny_site.trainer(tmp_path / f"site{n}", backbone, contract) for n in range(6)}

    def far(site, update):
        values = update.layout.split(update.payload)
        forged = {name: (100 * value).astype(np.float32) for name, value in values.items()}
        return replace(update, payload=update.layout.join(forged)) if site == "s2" else update

    def final(tamper):
        *_, last = simulation.federate(contract, initial, sites, tamper)
        return np.concatenate([value.ravel() for value in last.version.tensors.values()])

    honest, forged = final(lambda site, update: update), final(far)
    start = np.concatenate([value.ravel() for value in initial.tensors.values()])
    step = np.linalg.norm(honest - start)
    assert (np.linalg.norm(forged - honest) > 3 * step) == moved


def cells(values):
    return [
        {"rule": rule, "attack": attack, "seed": seed, "at_validation": value}
        for (rule, attack), of in values.items()
        for seed, value in enumerate(of)
    ]


def test_neutralised_means_not_below_the_interval_of_clean_runs():
    far, near, low = [0.5, 0.5, 0.5], [0.81, 0.8, 0.79], [0.71, 0.7, 0.69]
    clean = [0.78, 0.80, 0.82]
    lines, rows = robustness.summary(
        cells(
            {("mean", attack): clean if attack == "nobody" else far for attack in robustness.ATTACKS}
            | {("krum, f = 1", attack): near for attack in robustness.ATTACKS}
            | {("median", attack): low for attack in robustness.ATTACKS}
        )
    )
    both = ["100 times", "turned round"]
    assert [row["neutralised"] for row in rows] == [[], both, both]
    assert [row["as_good_as_mean"] for row in rows] == [[], both, []]
    assert rows[0]["low"] == pytest.approx(0.8 - 4.302653 * 0.02 / 3**0.5, abs=1e-6)
    assert lines[2].endswith("-")
    wanted = (
        "| krum, f = 1 | 0.800 | 0.800 | 0.800 | 0.775 to 0.825 | 100 times, turned round | 100 times, turned round |"
    )
    assert wanted in robustness.markdown(rows)


def test_an_unknown_rule_is_refused_with_those_there_are():
    app = Typer()
    app.command()(robustness.main)
    found = CliRunner().invoke(app, ["--out", "x", "--rule", "mode"])
    assert found.exit_code == 3
    assert "no rule is called 'mode'; there are: mean; mean, norm gate 4" in found.output

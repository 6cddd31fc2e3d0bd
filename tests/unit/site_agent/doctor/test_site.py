"""Contract, weights, data and a training step of a site of a few thousand numbers, made wrong in one way."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from shared.contract import Contract
from shared.recipe import Recipe
from site_agent.consent import Pins
from site_agent.data import cases as table
from site_agent.doctor import checks, contract, data, training
from site_agent.doctor.finding import Examined
from site_agent.models.backbone import Prefix
from site_agent.training.activations import Activations
from site_agent.training.views import View
from tests.support import private_site, tiny_site
from tests.support.doctored import examined

PREPARATION = '{"spacing_mm": [4.0, 4.0, 20.0], "size": [32, 32], "preprocessing_hash": "none"}'


@dataclass(frozen=True)
class Site:
    """A folder with backbone, cohort, and the contract of its federation."""

    folder: Path
    contract: Contract

    def examined(self, **more: object) -> Examined:
        """The site, with the contract known, unless `more` says otherwise."""
        return examined(self.folder, None, **{"contract": self.contract, **more})

    def looked_through(self, **more: object) -> Examined:
        """The same with its data read."""
        site = self.examined(**more)
        assert data.cases(site).status == "PASS"
        return site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    backbone = tiny_site.write_backbone(tmp_path / "backbone")
    table.write(tmp_path / "cohort" / "cases.csv", tiny_site.write_cases(tmp_path / "cohort", 12))
    (tmp_path / "cohort" / "preparation.json").write_text(PREPARATION)
    recipe = Recipe(rank_local=2, batch_size=4, augmentation="none")
    return Site(tmp_path, tiny_site.contract(backbone, recipe)[0])


# --- contract -----------------------------------------------------------------------------------------------------------


def kept(site: Site, agreed: Contract) -> Examined:
    """The site with this contract in its state folder, and no aggregator heard."""
    (site.folder / "state").mkdir(exist_ok=True)
    (site.folder / "state" / "contract.json").write_bytes(agreed.to_bytes())
    return site.examined(contract=None)


def test_the_contract_that_was_agreed_to_passes(site: Site) -> None:
    found = contract.hashes(kept(site, site.contract))
    assert (found.status, found.facts["contract"]) == ("PASS", site.contract.sha256)


def test_without_any_contract_nothing_is_claimed(site: Site) -> None:
    found = contract.hashes(site.examined(contract=None))
    assert (found.status, found.blocks) == ("SKIP", True)


@pytest.mark.parametrize(
    ("pins", "said"),
    [
        (Pins(base_model="0" * 12), "base_model: this site's site.toml says 000000000000"),
        (Pins(recipe="full"), "recipe: this site's site.toml says 'full'"),
        (Pins(at_most={"local_epochs": 1}), "recipe parameter local_epochs"),
        (Pins(sites_at_least=3), "sites_at_least"),
        (Pins(epsilon=8.0), "epsilon"),
    ],
)
def test_a_site_toml_that_pins_something_else_fails_by_name(site: Site, pins: Pins, said: str) -> None:
    one = kept(site, site.contract)
    one.config = replace(one.config, agreed=pins)
    found = contract.hashes(one)
    assert found.status == "FAIL"
    assert said in found.words


def test_another_federation_than_site_toml_names_fails(site: Site) -> None:
    one = kept(site, site.contract)
    one.config = replace(one.config, federation="lungs")
    assert contract.hashes(one).words == "site.toml names federation 'lungs', the aggregator serves 'hearts'"


def test_a_damaged_contract_and_a_missing_file_fail(site: Site) -> None:
    one = kept(site, site.contract)
    (site.folder / "state" / "contract.json").write_bytes(b"{")
    assert contract.hashes(one).status == "FAIL"
    assert contract.hashes(site.examined(contract_file=site.folder / "none.json")).status == "FAIL"


# --- weights and data ---------------------------------------------------------------------------------------------------


def test_the_federations_weights_pass_and_others_fail_with_both_hashes(site: Site) -> None:
    wanted = site.contract.manifest.metadata.base_model_sha256[:12]
    assert data.base_weights(site.examined()).words == f"{wanted}, as the contract says"
    assert data.base_weights(site.examined(contract=None)).words == f"{wanted}; there is no contract to compare it with"
    other = tiny_site.write_backbone(site.folder / "other", seed=2)
    found = data.base_weights(site.examined(weights=other))
    assert found.status == "FAIL"
    assert f"the federation's is {wanted}" in found.words


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_weights_that_cannot_be_read_fail(site: Site, damage: str) -> None:
    path = site.folder / "backbone" / "model.safetensors"
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(whole[: len(whole) // 2])
    assert data.base_weights(site.examined()).status == "FAIL"


def test_cases_are_read_and_counted(site: Site) -> None:
    found = data.cases(site.examined())
    assert found.status == "PASS"
    assert found.facts == {"cases": 12, "training": 9, "validation": 3, "test": 0, "read": 12, "unreadable": 0}


def test_a_corrupted_case_fails_and_is_named_on_the_screen_alone(site: Site) -> None:
    path = site.folder / "cohort" / "mnms" / "P004" / "ed.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = data.cases(site.examined())
    assert (found.status, found.words) == ("FAIL", "1 of 12 cases cannot be read")
    assert "P004" in found.private
    assert "P004" not in f"{found.words}{found.remedy}{found.facts}"


def test_a_table_that_names_a_missing_case_fails_without_naming_it_in_words(site: Site) -> None:
    (site.folder / "cohort" / "mnms" / "P003" / "es.nii.gz").unlink()
    found = data.cases(site.examined())
    assert found.status == "FAIL"
    assert "P003" in found.private
    assert "P003" not in f"{found.words}{found.remedy}"


def test_a_cohort_without_one_class_fails(site: Site) -> None:
    ill = [case for case in table.read(site.folder / "cohort") if case.label]
    table.write(site.folder / "cohort" / "cases.csv", ill)
    assert data.cases(site.examined()).status == "FAIL"


def test_no_case_for_validation_is_warned_of(site: Site) -> None:
    rest = [case for case in table.read(site.folder / "cohort") if case.fold != 2]
    table.write(site.folder / "cohort" / "cases.csv", rest)
    assert data.cases(site.examined(validation_fold=2)).status == "WARN"


def slow_disk(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], object]) -> None:
    """Let every image wait before its first byte comes."""
    read_bytes = Path.read_bytes

    def slow(path: Path) -> bytes:
        if path.suffix == ".gz":
            wait()
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", slow)


def test_cases_that_take_too_long_to_read_are_read_in_part_and_all_of_it_is_estimated(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_disk(monkeypatch, lambda: time.sleep(0.01))
    monkeypatch.setattr(data, "READ_S", 0.05)  # of 15
    found = data.cases(site.examined())
    assert found.status == "WARN"
    read, took_s = found.facts["read"], found.facts["read_s"]
    assert 1 <= read <= 3
    assert 0.05 < took_s < 1
    assert f"{read} of them were read in {took_s:.1f} s, and are sound; all would take about" in found.words
    assert "put `cohort` on a local disk" in found.remedy


def test_a_disk_that_does_not_answer_fails_the_data_in_its_time_and_the_step_is_not_tried(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    slow_disk(monkeypatch, answers.wait)
    of_data, of_step = (next(check for check in checks.CHECKS if check.name == name) for name in ("data", "step"))
    assert of_data.limit_s > data.READ_S
    found, step = checks.examine(site.examined(), checks=[replace(of_data, limit_s=0.1), of_step])
    answers.set()
    assert (found.finding.status, found.finding.words) == ("FAIL", "it did not end within 0.1 s")
    assert "look at it, or at the file server it comes from" in found.finding.remedy
    assert (step.finding.status, step.finding.words) == ("SKIP", "not tried: needs data")


# --- a training step ----------------------------------------------------------------------------------------------------


def test_a_step_is_trained_and_nothing_is_written(site: Site) -> None:
    one = site.looked_through()
    before = sorted(site.folder.rglob("*"))
    found = training.one_step(one)
    assert found.status == "PASS"
    assert found.facts["steps"] == 2 * 3  # two epochs of nine cases, four at a time
    assert 0 < found.facts["step_s"] < found.facts["later_round_s"] < found.facts["first_round_s"]
    assert sorted(site.folder.rglob("*")) == before


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(name="feddpa-lora", batch_size=4),
        Recipe(name="head-only", rank_local=0, views=0),
        replace(private_site.RECIPE, dp_delta=1e-3),
    ],
    ids=["fused", "views never kept", "differential privacy"],
)
def test_a_step_of_any_method_is_timed(site: Site, recipe: Recipe) -> None:
    agreed, _ = tiny_site.contract(site.folder / "backbone", recipe)
    found = training.one_step(site.looked_through(contract=agreed))
    assert found.status == "PASS", found.private
    assert found.facts["step_s"] > 0
    assert (found.facts["first_round_s"] == found.facts["later_round_s"]) == (recipe.views == 0)


def test_a_step_is_timed_with_any_numbers_where_version_0_was_not_drawn(site: Site) -> None:
    found = training.one_step(site.looked_through(contract=replace(site.contract, adapter_digest="0" * 64)))
    assert found.status == "PASS", found.private


def slow_at_first(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the first view take so long, as it does where kernels are chosen and memory is fetched in it."""
    compute, seen = Activations._compute, list[View]()

    def slow(self: Activations, view: View, frames: np.ndarray) -> Prefix:
        if not seen:
            time.sleep(seconds)
        seen.append(view)
        return compute(self, view, frames)

    monkeypatch.setattr(Activations, "_compute", slow)


def test_what_warms_up_is_no_part_of_a_views_time_however_long_it_takes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "ENOUGH_S", 0.1)
    slow_at_first(monkeypatch, 0.3)
    found = training.one_step(site.looked_through())
    assert found.facts["frozen_view_s"] < 0.2
    assert not found.facts["at_most"]
    assert "trains for about" in found.words


def test_with_no_time_left_for_another_view_the_first_is_a_bound_and_said_to_be_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_at_first(monkeypatch, 0.1)
    found = training.one_step(site.looked_through(ends_at=time.monotonic()))
    assert found.facts["frozen_view_s"] >= 0.1
    assert found.facts["at_most"]
    assert "trains for at most" in found.words


def test_a_step_that_warms_up_is_left_out_too_unless_time_is_up() -> None:
    for ends_at, steps in ((math.inf, 2), (0.0, 1)):
        watch = training.Watch(ends_at, _all=-1e9)  # more than enough time has passed
        while not watch.begins():
            watch.ended(6)
        assert len(watch.took) == steps


def test_a_bound_beyond_the_deadline_is_no_verdict(site: Site) -> None:
    timed = training.Timed(view_s=9.0, step_s=9.0, steps=6, first_views=27, later_views=27, at_most=True)
    agreed = replace(site.contract, policy=replace(site.contract.policy, deadline_s=10.0))
    found = training.judged(timed, agreed, "cpu")
    assert found.status == "WARN"
    assert "run this again" in found.remedy


@pytest.mark.parametrize(
    ("deadline_s", "status"),
    [(1e-4, "FAIL"), (3600.0, "PASS")],
)
def test_a_round_that_takes_longer_than_its_deadline_fails(site: Site, deadline_s: float, status: str) -> None:
    policy = replace(site.contract.policy, deadline_s=deadline_s)
    one = site.looked_through(contract=replace(site.contract, policy=policy))
    assert training.one_step(one).status == status


def test_a_first_round_that_takes_longer_than_the_deadline_is_warned_of(site: Site) -> None:
    timed = training.Timed(view_s=1.0, step_s=0.1, steps=6, first_views=27, later_views=2)
    assert (timed.later_round_s, timed.first_round_s) == (pytest.approx(2.6), pytest.approx(27.6))
    for deadline_s, status in ((2.5, "FAIL"), (5.1, "WARN"), (27.5, "WARN"), (27.7, "PASS")):
        agreed = replace(site.contract, policy=replace(site.contract.policy, deadline_s=deadline_s))
        assert training.judged(timed, agreed, "cpu").status == status, deadline_s


def test_weights_of_another_network_fail_the_step_in_words(site: Site) -> None:
    other = tiny_site.write_backbone(site.folder / "other", seed=2)
    found = training.one_step(site.looked_through(weights=other))
    assert (found.status, found.words) == ("FAIL", "training cannot begin")
    assert "base model has hash" in found.private

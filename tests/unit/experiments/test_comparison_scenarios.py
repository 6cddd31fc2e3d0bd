"""Which cases a run trains on, sets thresholds by and holds out."""

from collections import Counter
from dataclasses import replace

import pytest

from experiments.comparison import scenarios
from experiments.comparison.scenarios import SCENARIOS, TUNING_SEED, VALIDATION_FOLD, Phantom, Real
from shared.errors import InputError
from site_agent.data import cases as table
from site_agent.data.phantom import VENDORS
from tests.support import tiny_site

FOLDS = 5


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return Phantom(folder=tmp_path_factory.mktemp("phantom"), scale=0.05, test_cases=2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two vendors' prepared cohorts, some of the cases called test cases by their data set."""
    folder = tmp_path_factory.mktemp("real")
    for seed, (vendor, count) in enumerate({"siemens": 23, "canon": 17}.items()):
        written = tiny_site.write_cases(folder / vendor, count, seed=seed)
        cases = [
            replace(c, vendor=vendor, **({"split": "test", "fold": None} if i % 7 == 0 else {}))
            for i, c in enumerate(written)
        ]
        table.write(folder / vendor / table.CASES, cases)
        (folder / vendor / "preparation.json").write_text(
            '{"spacing_mm": [4, 4, 20], "size": [32, 32], "preprocessing_hash": "none"}'
        )
    return folder


def held_out(sites):
    return {(site, case.key) for site, one in sites.cohorts.items() for case in one.test()}


# --- phantom --------------------------------------------------------------------------------------------------------


def test_every_run_has_a_cohort_and_held_out_cases_of_its_own(phantom):
    from site_agent.data.cohort import image_digest, load_frames

    def digests(sites):
        return {image_digest(load_frames(case)) for one in sites.cohorts.values() for case in one.cases}

    first, second = phantom.sites("shifted", 0), phantom.sites("shifted", 1)
    assert set(first.cohorts) == set(VENDORS)
    assert not digests(first) & digests(second)
    assert all(len(one.test()) == 2 for one in first.cohorts.values())


def test_a_cohort_is_made_once(phantom):
    before = phantom.sites("shifted", 0).cohorts["ge"].folder.stat().st_mtime_ns
    assert phantom.sites("shifted", 0).cohorts["ge"].folder.stat().st_mtime_ns == before


def test_settings_are_chosen_on_a_cohort_that_no_run_has(phantom):
    tuning = phantom.tuning_sites()
    assert tuning.seed == TUNING_SEED
    assert all(len(one.test()) == 8 for one in tuning.cohorts.values())
    seeds = [scenarios.first_seed(name) + run for name in SCENARIOS for run in range(100)]
    assert len(seeds) == len(set(seeds))
    assert TUNING_SEED not in seeds


def test_the_scenarios_differ_in_what_they_say():
    configs = {name: config for name, (_, config) in SCENARIOS.items()}
    same = configs["homogeneous"]
    assert (same.style, same.label_shift, same.mix_shift) == (0.0, 0.0, 0.0)
    assert (configs["shifted"].style, configs["shifted"].label_shift, configs["shifted"].mix_shift) == (1.0, 1.0, 1.0)
    assert replace(configs["convention"], label_convention=False) == configs["shifted"]
    assert replace(configs["wall-bias"], wall_bias=0.0) == configs["shifted"]


def test_an_unknown_scenario_is_refused_with_those_there_are(phantom):
    with pytest.raises(InputError, match="no scenario is called 'snow'; there are: homogeneous, shifted"):
        phantom.sites("snow", 0)


# --- real cohorts ---------------------------------------------------------------------------------------------------


def test_every_patient_is_held_out_once_in_a_shuffle_and_never_trained_on_meanwhile(prepared):
    source = Real(folder=prepared)
    found = Counter()
    for run in range(FOLDS):
        sites = source.sites("real", run)
        assert sites.fold == run
        for one in sites.cohorts.values():
            training, validation, test = one.train(VALIDATION_FOLD), one.validation(VALIDATION_FOLD), one.test()
            keys = [case.key for case in (*training, *validation, *test)]
            assert len(keys) == len(set(keys)) == len(one.cases)
            assert validation
        found.update(held_out(sites))
    assert set(found.values()) == {1}
    assert len(found) == 40


def test_folds_are_stratified_by_vendor_and_label(prepared):
    counts = Counter()
    for run in range(FOLDS):
        for site, one in Real(folder=prepared).sites("real", run).cohorts.items():
            for case in one.test():
                counts[site, case.label, run] += 1
    for site, label in {(site, label) for site, label, _ in counts}:
        of_runs = [counts[site, label, run] for run in range(FOLDS)]
        assert max(of_runs) - min(of_runs) <= 1, (site, label)


def test_another_shuffle_deals_the_cases_out_anew_and_the_same_run_is_the_same_again(prepared):
    source = Real(folder=prepared)
    assert held_out(source.sites("real", 0)) == held_out(source.sites("real", 0))
    assert held_out(source.sites("real", 0)) != held_out(source.sites("real", FOLDS))


def test_a_patient_that_is_in_twice_is_refused_by_name(prepared, tmp_path):
    for vendor in ("siemens", "canon"):
        folder = tmp_path / vendor
        written = tiny_site.write_cases(folder, 15, seed=4)
        table.write(folder / table.CASES, [replace(case, vendor=vendor) for case in written])
        (folder / "preparation.json").write_text((prepared / "canon/preparation.json").read_text())
    with pytest.raises(InputError, match="cases canon/mnms/P000 and siemens/mnms/P000 have the same images"):
        Real(folder=tmp_path).check()
    Real(folder=prepared).check()


def test_a_vendor_with_fewer_cases_of_a_class_than_folds_is_refused(prepared, tmp_path):
    written = tiny_site.write_cases(tmp_path / "ge", 12)
    table.write(tmp_path / "ge" / table.CASES, written)
    (tmp_path / "ge/preparation.json").write_text((prepared / "canon/preparation.json").read_text())
    with pytest.raises(InputError, match=r"vendor ge has 4 normal case\(s\), and 5 folds need one each"):
        Real(folder=tmp_path).sites("real", 0)


def test_a_folder_without_cohorts_says_how_to_make_them(tmp_path):
    with pytest.raises(InputError, match="holds no prepared cohorts; run `site-agent prepare RAW --out"):
        Real(folder=tmp_path).sites("real", 0)

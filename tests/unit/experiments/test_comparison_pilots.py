"""Pilots run where nothing else does, go on where they stopped, and are shown with what is there."""

import pytest

from experiments.comparison import pilots
from experiments.comparison.plan import WEIGHTS, Plan
from experiments.comparison.scenarios import PILOT_SEEDS, SCENARIOS, TUNING_SEED, first_seed
from shared.errors import InputError


def test_no_run_and_no_tuning_sees_a_pilot_cohort():
    runs = {first_seed(scenario) + run for scenario in SCENARIOS for run in range(1000)}
    assert not set(PILOT_SEEDS) & (runs | {TUNING_SEED})


def test_variants_have_names_of_their_own_and_scenarios_there_are():
    keys = [one.key for one in pilots.VARIANTS]
    assert len(set(keys)) == len(keys)
    assert set(pilots.SCENARIOS) <= set(SCENARIOS)


def test_pilots_go_on_where_they_stopped_and_the_table_shows_what_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pilots, "SCENARIOS", ("homogeneous",))
    plan = Plan(out=tmp_path, weights=WEIGHTS, scale=0.02, test_cases=2, rounds=1)
    pilots.run(plan, 1, ["fedit16"])
    assert "[2/2] homogeneous/fedit16/901" in capsys.readouterr().out
    pilots.run(plan, 1, ["fedit16"])
    again = capsys.readouterr().out
    assert "[1/" not in again
    lines = pilots.table(tmp_path, ["fedit16", "d12r4-l2e3-s1"])
    assert len(lines[2].split()) == 4
    assert lines[3].split() == ["d12r4-l2e3-s1", "-"]


def test_a_variant_there_is_not_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match=r"no variant is called 'fedit17'; there are: fedit16, fedit16-m\.5"):
        pilots.run(Plan(out=tmp_path, weights=WEIGHTS), 1, ["fedit17"])

"""Running cells: what is finished stays, what is missing is run, one at a time or several, here or by a scheduler."""

import dataclasses
import json
import re

import pytest
from typer.testing import CliRunner

from experiments.comparison import (
    cells,
    config,
    contenders,
    engine,
    extensions,
    plan,
    records,
    tasks,
    tuning,
    unseen,
)
from experiments.comparison.__main__ import app
from experiments.comparison.plan import WEIGHTS, Plan, Planned
from shared.errors import InputError
from site_agent.data.phantom import VENDORS
from tests.support import comparison_folder

METHODS = ("fedit-r8", "med-duallora")
FIGURES = {"auc_site_mean": 0.8, "balanced_accuracy_validation_site_mean": 0.7}


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """A comparison of two methods on two runs, all settings chosen."""
    made = Plan(
        out=tmp_path_factory.mktemp("comparison"),
        weights=WEIGHTS,
        scale=0.02,
        test_cases=2,
        rounds=1,
        runs=2,
        other_runs=1,
    )
    config.freeze(made)
    choices = {one.key: {"chosen": 0, "settings": [{}] * len(one.settings)} for one in contenders.CONTENDERS}
    (made.out / tuning.CHOSEN).write_text(json.dumps(choices))
    return made


def wanted(trial):
    return [tasks.placed(trial, Planned("shifted", run, method)) for run in (0, 1) for method in METHODS]


@pytest.fixture(scope="module")
def finished(trial):
    assert engine.run(trial, wanted(trial), 1, "the comparison") == []
    return trial


def test_every_cell_leaves_its_record_and_a_prediction_of_each_held_out_case(finished):
    for task in wanted(finished):
        cell = records.read(task.record)
        predictions = records.read_predictions(task.record.with_suffix(".csv"))
        assert (cell.method, cell.run, cell.scenario) == (task.planned.method, task.planned.run, "shifted")
        assert len(predictions) == len({(one.site, one.case) for one in predictions}) == 2 * len(VENDORS)
        assert cell.bytes_up > 0
        assert cell.seconds > 0
        assert len(cell.rounds) == 1
        assert cell.versions == config.versions()


def test_what_is_finished_is_not_run_again_and_what_is_missing_is(finished, capsys):
    every = wanted(finished)
    lost = every[1]
    before = {task.record: task.record.stat().st_mtime_ns for task in every}
    gone = lost.record.with_suffix(".csv").read_bytes()
    lost.record.unlink()
    assert engine.run(finished, every, 2, "the comparison") == []
    line = r"\[4/4 of the comparison\] shifted/med-duallora/0  AUC 0\.\d{3}, balanced accuracy 0\.\d{3}; \d+ s\n"
    assert re.fullmatch(line, capsys.readouterr().out)
    after = {task.record: task.record.stat().st_mtime_ns for task in every}
    assert [record for record in before if before[record] != after[record]] == [lost.record]
    assert lost.record.with_suffix(".csv").read_bytes() == gone


def test_a_cell_by_itself_has_the_same_numbers(finished):
    task = wanted(finished)[2]
    held = task.record.with_suffix(".csv").read_bytes()
    task.record.unlink()
    task.record.with_suffix(".csv").unlink()
    done = CliRunner().invoke(
        app,
        [
            "run",
            "--out",
            str(finished.out),
            "--scale",
            "0.02",
            "--rounds",
            "1",
            "--test-cases",
            "2",
            "--cell",
            str(task.planned),
        ],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    assert task.record.with_suffix(".csv").read_bytes() == held


@pytest.mark.parametrize("text", ["shifted", "shifted/fedit-r8", "shifted/fedit-r8/x", "//3"])
def test_a_cell_that_cannot_be_read_is_refused(text):
    with pytest.raises(InputError, match="--cell takes scenario/method/run"):
        Planned.parse(text)


def test_a_cell_that_is_none_of_the_comparison_s_is_refused_with_what_there_is(trial):
    with pytest.raises(InputError, match="no scenario is called 'snow'; there are: tuning, homogeneous, shifted"):
        tasks.parsed(trial, "snow/ours/0")
    with pytest.raises(InputError, match="no run of a method 'fedsgd' is planned in shifted; `run --list` names"):
        tasks.parsed(trial, "shifted/fedsgd/0")
    with pytest.raises(InputError, match="no run of a method 'ffa' is planned in homogeneous"):
        tasks.parsed(trial, "homogeneous/ffa/0")
    assert str(tasks.parsed(trial, "unseen/ours/0").planned) == "unseen/ours/0"
    assert tasks.parsed(trial, "tuning/fedit-r16~2/0").tuning


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("shifted/ours/2", "are 2 runs"),
        ("shifted/ffa/1", "is 1 run"),
        ("unseen/ours/1", "is 1 run"),
        ("tuning/ours~0/1", "is 1 run"),
    ],
)
def test_a_run_beyond_those_planned_is_refused_with_their_number(trial, text, runs):
    with pytest.raises(
        InputError, match=f"{text} is not planned: there {runs} of it, counted from 0; .*--other-runs plan more"
    ):
        tasks.parsed(trial, text)


def test_a_cell_that_fails_is_said_and_holds_nobody_up(trial, tmp_path):
    broken = dataclasses.replace(trial, out=tmp_path)
    config.freeze(broken)
    (tmp_path / tuning.CHOSEN).write_text((trial.out / tuning.CHOSEN).read_text())
    unknown, good = (tasks.placed(broken, Planned(scenario, 0, "fedit-r8")) for scenario in ("snow", "shifted"))
    failed = engine.run(broken, [unknown, good], 1, "the comparison")
    assert len(failed) == 1
    assert failed[0].startswith("snow/fedit-r8/0: no scenario is called 'snow'")
    assert good.done


def test_the_core_meets_every_scenario_and_the_others_the_shifted_one():
    whole = list(plan.cells(Plan(out=WEIGHTS, weights=WEIGHTS), ("core", "other", "extension")))
    assert len(whole) == len(set(whole))
    core = [one for one in whole if one.method == "ours" and one.scenario != unseen.UNSEEN]
    assert len(core) == 4 * 10
    assert {(one.scenario, one.run) for one in whole if one.method == "ffa"} == {("shifted", run) for run in range(5)}


def test_siamese_frames_are_no_switch_where_they_are_what_all_have():
    phantoms = Plan(out=WEIGHTS, weights=WEIGHTS)
    patients = dataclasses.replace(phantoms, data=WEIGHTS, frames="siamese")
    synthetic, real = ({one.method for one in plan.cells(each, ("extension",))} for each in (phantoms, patients))
    assert synthetic - real == {"med-duallora+siamese", "fedit-r16+siamese"}


OPTIONS = ("--scale", "0.02", "--rounds", "1", "--test-cases", "2")


def test_a_scheduler_gets_the_cells_of_tuning_first_and_the_others_when_those_have_ended(trial, finished, tmp_path):
    def listed(out):
        done = CliRunner().invoke(app, ["run", "--out", str(out), *OPTIONS, "--list"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    assert listed(tmp_path / "new") == [f"tuning/{one.key}/0" for one in tuning.candidates()]
    later = listed(finished.out)
    assert "shifted/ours/3" in later
    assert "unseen/ours/0" in later
    assert not {f"shifted/{method}/{run}" for method in METHODS for run in (0, 1)} & set(later)


def test_a_cell_before_settings_are_chosen_is_refused_with_what_to_do(trial, tmp_path):
    words = ["run", "--out", str(tmp_path), *OPTIONS, "--cell", "shifted/ours/0"]
    with pytest.raises(InputError, match=r"not chosen yet: 4 of 4 cells of tuning are missing; .*--list"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["local-only", "centralised", "med-duallora+picked", "med-duallora-all"])
def test_cells_that_are_no_plain_federation_score_the_same_cases(finished, method):
    task, plain = (tasks.placed(finished, Planned("shifted", 0, one)) for one in (method, "fedit-r8"))
    engine.run_one(finished, task)
    found, expected = (records.read_predictions(one.record.with_suffix(".csv")) for one in (task, plain))
    assert {(one.site, one.case, one.label) for one in found} == {(one.site, one.case, one.label) for one in expected}
    cell = records.read(task.record)
    together = method not in ("local-only", "centralised")
    assert (cell.bytes_up > 0, bool(cell.digest)) == (together, together)
    assert len(cell.blocks) == (6 if method == "med-duallora-all" else 2)
    if method == "local-only":  # a model of its own for each site
        assert set(cell.rounds[0].norm_ratio) <= set(VENDORS)
    if method == "centralised":  # one threshold for all sites, which share one model
        assert len({one.threshold for one in found}) == 1


# --- choosing settings ----------------------------------------------------------------------------------------------


def test_the_setting_with_the_highest_mean_of_both_figures_is_chosen_and_the_first_of_equal_ones():
    def rows(*merits):
        return [dict.fromkeys(tuning.FIGURES_USED, merit) for merit in merits]

    assert tuning._best(rows(0.7, 0.9, 0.8, 0.9)) == 1
    assert tuning._best([{"a": 0.9, "b": 0.5}, {"a": 0.6, "b": 0.9}]) == 1


def test_settings_are_chosen_from_their_cells(trial, tmp_path, monkeypatch):
    """Two settings of one method, run and chosen between: the choice is the one with the higher mean of both figures."""
    one = contenders.find("fedit-r8")
    monkeypatch.setattr(tuning, "CONTENDERS", (dataclasses.replace(one, settings=one.settings[1:3]),))
    small = dataclasses.replace(trial, out=tmp_path)
    tried = tasks.of_tuning(small, ["fedit-r8"])
    assert [str(task.planned) for task in tried] == ["tuning/fedit-r8~0/0", "tuning/fedit-r8~1/0"]
    for task in tried:
        engine.run_one(small, task)
    tuning.choose(tmp_path, ["fedit-r8"])
    held = json.loads((tmp_path / tuning.CHOSEN).read_text())["fedit-r8"]
    merits = [sum(setting[name] for name in tuning.FIGURES_USED) for setting in held["settings"]]
    assert held["chosen"] == merits.index(max(merits))
    assert [setting["what"] for setting in held["settings"]] == ["lr_global 0.005", "lr_global 0.01"]
    assert tasks.of_tuning(small, ["fedit-r8"]) == []
    assert {len(records.read_predictions(task.record.with_suffix(".csv"))) for task in tried} == {8 * len(VENDORS)}


def give_settings(out, methods):
    """Write cells of tuning whose best setting is the third of every method."""
    for one in tuning.candidates():
        method, _, number = one.key.partition(tuning.MARK)
        if method in methods:
            rows = comparison_folder.predictions(0, [1.0, 2.0, -1.0, 1.0 if number != "2" else -2.0], [1, 1, 0, 0])
            records.write(out / tuning.FOLDER, comparison_folder.cell(tuning.SCENARIO, one.key, 0), rows)


def test_only_what_is_wanted_is_tuned_and_what_others_need_is_added_later(trial, tmp_path):
    """One group after another, in any order, choose what all of them at once do."""
    core = [one.key for one in contenders.CONTENDERS if one.group == "core"]
    both = [*core, "fedex", "ditto-2x", "med-duallora+gate"]
    parts, whole = (dataclasses.replace(trial, out=tmp_path / name) for name in ("parts", "whole"))
    assert len(tasks.of_tuning(parts, core)) == 28
    assert len(tasks.of_tuning(parts, ["fedit-r16+capped", "ours"])) == 8
    for out, steps in ((parts.out, (["ditto-2x"], core, both)), (whole.out, (both,))):
        give_settings(out, {tuning.origin(key) for key in both})
        for methods in steps:
            tuning.choose(out, methods)
    assert (parts.out / tuning.CHOSEN).read_bytes() == (whole.out / tuning.CHOSEN).read_bytes()
    held = json.loads((whole.out / tuning.CHOSEN).read_text())
    assert list(held) == [*core, "fedex", "ditto"]
    assert {one["chosen"] for one in held.values()} == {2}
    assert tasks.of_tuning(whole, both) == []
    assert {task.planned.method[:3] for task in tasks.of_tuning(whole, [*both, "ffa"])} == {"ffa"}


def test_choices_that_are_there_are_taken_as_they_are(tmp_path):
    held = json.dumps({one.key: {"chosen": 1, "settings": [{}, {}]} for one in contenders.CONTENDERS})
    (tmp_path / tuning.CHOSEN).write_text(held)
    tuning.choose(tmp_path, [one.key for one in extensions.everyone()])
    assert (tmp_path / tuning.CHOSEN).read_text() == held


def test_the_edge_of_what_was_tried_is_said():
    one = contenders.find("fedit-r16")
    assert [tuning.edge(one, k) for k in range(4)] == ["lr_global lowest of 4", "", "", "lr_global highest of 4"]
    assert tuning.edge(contenders.find("fedprox"), 0) == "proximal lowest of 2, lr_global lowest of 2"


def test_estimates_follow_what_cells_took_here(finished, tmp_path):
    new = dataclasses.replace(finished, out=tmp_path)
    one, full = (tasks.placed(new, Planned("shifted", 5, method)) for method in ("ours", "full"))
    cohort = tasks.COHORT_S * new.scale
    assert tasks.estimate_s(new, [one], 1) == pytest.approx(tasks.USUAL_S * new.scale + cohort)
    assert tasks.estimate_s(new, [one, full], 2) == pytest.approx((10 * tasks.USUAL_S * new.scale + cohort) / 2)
    assert not tasks.finished(new)
    record = records.Cell(
        scenario="shifted", method="full", run=0, seconds=90.0, steps=1, bytes_up=1, bytes_down=1, digest="", rounds=()
    )
    records.write(tmp_path / "cells" / "shifted", record, [])
    assert tasks.finished(new)
    assert tasks.estimate_s(new, [full], 1) == pytest.approx(90 + cohort)
    assert tasks.estimate_s(new, [one], 1) == pytest.approx(10 + cohort)


def test_what_was_chosen_is_what_later_cells_get(trial, tmp_path):
    choices = json.loads((trial.out / tuning.CHOSEN).read_text())
    choices["fedit-r16"]["chosen"] = 3
    (tmp_path / tuning.CHOSEN).write_text(json.dumps(choices))
    common = {"local_epochs": 2}
    wanted = contenders.find("fedit-r16").settings[3]
    for key in ("fedit-r16", "fedit-r16+uniform"):
        assert tuning.tuned(tmp_path, key).made_recipe(common).lr_global == wanted.recipe["lr_global"]
    assert tuning.tuned(tmp_path, "fedit-r16+uniform").made_recipe(common).weighting == "uniform"
    assert tuning.tuned(tmp_path, "ditto-2x").doubled


# --- a vendor that was left out -------------------------------------------------------------------------------------


def test_a_vendor_that_was_left_out_is_served_by_the_others_and_adapts_to_few_of_its_training_cases(trial, monkeypatch):
    monkeypatch.setattr(unseen, "SHOTS", (0, 4))
    sites, taken = dataclasses.replace(trial, scale=0.3, out=trial.out / "more").source.sites("homogeneous", 0), []
    federate = cells.federate

    def watched(bench, contender, of, seed):
        taken.append(set(of))
        return federate(bench, contender, of, seed)

    monkeypatch.setattr(cells, "federate", watched)
    found = {
        cell.method: rows for cell, rows in unseen.run(trial.bench(6, 96), contenders.find("med-duallora"), sites, 0)
    }
    assert taken == [set(VENDORS) - {vendor} for vendor in VENDORS]
    assert list(found) == [f"med-duallora@{shots}" for shots in unseen.SHOTS]
    for rows in found.values():
        assert {(one.site, one.case) for one in rows} == {
            (site, case.key) for site, one in sites.cohorts.items() for case in one.test()
        }
        assert {one.threshold for one in rows} == {0.0}
    margins = {method: [one.margin for one in rows] for method, rows in found.items()}
    assert margins["med-duallora@0"] != margins["med-duallora@4"]


@pytest.mark.parametrize("count", [0, 4, 8])
def test_shots_are_training_cases_half_of_each_class(trial, count):
    cohort = (
        Plan(out=trial.out, weights=WEIGHTS, scale=0.1, test_cases=2).source.sites("homogeneous", 0).cohorts["siemens"]
    )
    few = unseen._few(cohort, count, 3)
    assert len({case.key for case in few}) == count
    assert sum(case.label for case in few) == count // 2
    assert {case.key for case in few} <= {case.key for case in cohort.train(without_fold=0)}

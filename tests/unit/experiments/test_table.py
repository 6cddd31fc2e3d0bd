"""Demos side by side: figures by seed, and targets judged by what the issue asks."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import table
from experiments.demo import summaries
from shared.errors import InputError
from tests.support import demo_findings as made


def summary(seed: int = 0, total_s: float = 80.0, **changes: Any) -> dict[str, Any]:
    return summaries.build(made.findings(seed, **changes), made.seconds(total_s))


def written(folder: Path, value: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(value))
    return folder


def with_auc(value: dict[str, Any], auc: float) -> dict[str, Any]:
    value["mean"]["dual"]["auc"] = auc
    return value


def test_rows_hold_each_seed_and_their_mean() -> None:
    runs = [with_auc(summary(0), 0.84), with_auc(summary(1), 0.90)]
    row = next(r for r in table.rows(runs) if (r["over"], r["figure"], r["arm"]) == ("mean", "AUC", "dual"))
    assert row["by_seed"] == {"0": 0.84, "1": 0.90}
    assert row["mean"] == pytest.approx(0.87)
    assert "0.870" in "\n".join(table.text(runs))


def test_all_targets_hold_for_good_runs() -> None:
    reference = {site: made.figures(0.9) for site in made.SITES}
    for site in made.SITES:
        reference[site]["at_half"]["balanced_accuracy"] = 0.83
    found = table.targets([summary(0, reference=reference)])
    assert [target.holds for target in found] == [True, True, True, True, True]


def test_one_weak_seed_breaks_the_target_for_every_seed() -> None:
    found = table.targets([with_auc(summary(0), 0.819), with_auc(summary(1), 0.95)])
    assert found[0].holds is False
    assert "0.819" in found[0].found


def test_a_gain_over_probe_is_judged_on_average() -> None:
    weak, strong = with_auc(summary(0), 0.84), with_auc(summary(1), 0.84)
    weak["mean"]["probe"]["auc"], strong["mean"]["probe"]["auc"] = 0.84, 0.80
    assert table.targets([weak, strong])[2].holds is True
    strong["mean"]["probe"]["auc"] = 0.82
    assert table.targets([weak, strong])[2].holds is False


def test_time_is_judged_on_an_idle_machine_only() -> None:
    slow_and_busy = summary(0, 400.0, others_cpu_s=300.0)
    assert table.targets([slow_and_busy])[-1].holds is None
    assert table.targets([slow_and_busy, summary(1, 80.0)])[-1].holds is True
    assert table.targets([slow_and_busy, summary(1, 151.0)])[-1].holds is False


def test_what_was_not_run_is_not_judged() -> None:
    assert table.targets([summary()])[3].holds is None
    assert "not judged" in "\n".join(table.target_lines(table.targets([summary()])))


def test_runs_are_sorted_by_seed_and_only_seeds_may_differ(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a", summary(3)), written(tmp_path / "b", summary(1))
    assert [s["seed"] for s in table.load([one, two])] == [1, 3]
    with pytest.raises(InputError, match="seed comes twice"):
        table.load([one, written(tmp_path / "c", summary(3))])
    with pytest.raises(InputError, match="different settings"):
        table.load([one, written(tmp_path / "d", summary(2, rounds=5))])


def test_an_unfinished_demo_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not finished; run make demo OUT="):
        table.load([tmp_path])

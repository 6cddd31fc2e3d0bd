"""A demo takes away only what a demo wrote, and finds a wrong option before any work."""

from pathlib import Path

import pytest

from experiments.demo import commands
from experiments.demo.commands import FILES, FOLDERS, DemoConfig
from shared.errors import InputError


def test_an_earlier_demo_is_put_aside(tmp_path: Path) -> None:
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("old")
    for name in FILES:
        (tmp_path / name).write_text("old")
    commands.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [commands.REPLACED, commands.AGGREGATOR]
    assert list((tmp_path / commands.AGGREGATOR).iterdir()) == []
    assert len(list((tmp_path / commands.REPLACED).rglob("old"))) == len(FOLDERS)


def test_a_folder_with_anything_else_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match=r"'thesis.tex', which no demo wrote"):
        commands.clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "thesis.tex"]


def test_a_wrong_recipe_parameter_is_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no parameter 'vews'"):
        DemoConfig(out=tmp_path, weights=tmp_path, recipe=("vews=2",))


def test_planned_cases_are_the_profile_times_scale_and_the_test_sets(tmp_path: Path) -> None:
    assert commands.planned_cases(DemoConfig(out=tmp_path, weights=tmp_path)) == 273 + 125 + 77 + 50 + 4 * 100


def test_phantom_setting_is_the_fixed_one(tmp_path: Path) -> None:
    words = commands.phantom(DemoConfig(out=tmp_path, weights=tmp_path, seed=4)).words
    text = " ".join(words)
    assert "--seed 4" in text
    assert "--size 64 64 8 --spacing 2.0 2.0 10.0" in text
    assert (
        "--severity 1.6 --noise 0.6 --jitter 0.6 --style 1.0 --label-shift 1.0 --mix-shift 1.0 --wall-bias 0.0" in text
    )
    assert "--label-convention" not in text

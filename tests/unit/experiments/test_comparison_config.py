"""A folder is gone on with by the plan that it was begun with, and by whatever versions, which are told apart."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.comparison import config, tuning
from experiments.comparison.plan import WEIGHTS, Plan
from shared.errors import InputError

STUDY = "0dcb3e74ca660b2fb205bb895527cfa2a674e7286b16b8218a4546397a2e79ba"
"""contenders_sha256 in the config.json of the study that docs/comparison.md reports on."""


@pytest.fixture
def begun(tmp_path: Path) -> Plan:
    made = Plan(out=tmp_path / "comparison", weights=WEIGHTS, rounds=2)
    assert not config.is_begun(made)
    config.freeze(made)
    return made


def test_the_same_plan_goes_on_with_more_runs_too(begun: Plan) -> None:
    held = (begun.out / config.CONFIG).read_bytes()
    config.freeze(replace(begun, runs=20, other_runs=0))
    assert (begun.out / config.CONFIG).read_bytes() == held


def test_another_plan_is_refused_with_what_differs(begun: Plan) -> None:
    with pytest.raises(InputError) as refused:
        config.is_begun(replace(begun, rounds=3, weights_size="base"))
    assert "holds another comparison (weights_size: none there, base here; rounds: 2 there, 3 here)" in str(
        refused.value
    )


def test_a_folder_may_move_and_knows_its_files_by_what_is_in_them(begun: Plan, tmp_path: Path) -> None:
    copied = shutil.copytree(WEIGHTS, tmp_path / "weights")
    assert config.is_begun(replace(begun, weights=copied))
    (copied / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"\(weights: [0-9a-f]{12} there, [0-9a-f]{12} here\)"):
        config.is_begun(replace(begun, weights=copied))
    with pytest.raises(InputError, match=r"there is no \*.safetensors at .*nowhere; correct the path"):
        config.is_begun(replace(begun, weights=tmp_path / "nowhere"))


def test_a_folder_of_other_methods_is_refused(begun: Plan) -> None:
    path = begun.out / config.CONFIG
    path.write_text(path.read_text().replace(config.contenders_digest(), "0" * 64))
    with pytest.raises(InputError, match="methods, switches or scenarios: of another version of the code"):
        config.is_begun(begun)


def test_the_study_that_is_reported_on_can_be_gone_on_with() -> None:
    """A recipe number that is added, and off, belongs in OFF: else finished cells of all folders are refused."""
    assert config.contenders_digest() == STUDY


def test_a_damaged_plan_is_named(begun: Plan) -> None:
    (begun.out / config.CONFIG).write_text("{")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        config.is_begun(begun)


def test_other_versions_are_named(begun: Plan) -> None:
    assert config.other_versions(begun.out) == ""
    path = begun.out / config.CONFIG
    held = json.loads(path.read_text())
    held["versions"] |= {"torch": "1.0", "gone": "2.0"}
    path.write_text(json.dumps(held))
    here = config.versions()["torch"]
    assert config.other_versions(begun.out) == f"torch: 1.0 there, {here} here; gone: 2.0 there, none here"
    assert config.is_begun(begun)


@pytest.mark.parametrize(
    "text",
    ["x", "[]", '{"ours": 3}', '{"ours": {"settings": []}}', '{"ours": {"chosen": 4, "settings": [{}, {}, {}, {}]}}'],
    ids=["no JSON", "a list", "no choice", "no number", "a setting that was not tried"],
)
def test_a_damaged_choice_of_settings_says_that_it_is_made_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / tuning.CHOSEN).write_text(text)
    with pytest.raises(InputError, match=r"tuned.json is damaged.*; remove it and give the command again"):
        tuning.read(tmp_path)

"""The contenders: that all can run, have one budget and the same steps, and are documented."""

import re
from pathlib import Path

import pytest

from experiments.comparison import contenders, extensions
from experiments.comparison.contenders import CONTENDERS, MOST_SETTINGS, Contender, Setting
from experiments.comparison.extensions import everyone
from shared.contract import Contract, RoundPolicy
from shared.errors import InputError
from shared.methods import METHODS
from shared.recipe import INSTALLED
from site_agent.models import weights
from site_agent.models.convvit import ConvViT
from site_agent.new_adapter import init_adapter
from site_agent.training import schedule
from tests.support import tiny_site

DOCS = Path(__file__).parents[3] / "docs/methods.md"
COMMON = {"local_epochs": 2, "augmentation": "none"}
CASES = 70


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny_site.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def one_frame(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("one-frame"), tiny_site.CONFIG.for_frames("siamese")
    weights.save_backbone(folder, config, ConvViT(config, heads=False).state_dict())
    return folder


def contract_of(one: Contender, backbone: Path) -> Contract:
    initial = init_adapter(backbone, "", one.choices({"frames": "stacked"}, tiny_site.CONFIG.enc_depth, 12))
    return Contract(
        federation="f",
        adapter_digest=initial.digest,
        manifest=initial.manifest,
        recipe=one.made_recipe(COMMON),
        policy=RoundPolicy(),
    )


@pytest.mark.parametrize("one", everyone(), ids=lambda one: one.key)
def test_recipe_and_adapter_of_every_contender_and_setting_fit_each_other(one, backbone, one_frame):
    for setting in one.settings:
        contract_of(one.with_setting(setting), one_frame if one.one_frame else backbone)


def test_the_issue_s_methods_are_all_there_once():
    keys = [one.key for one in everyone()]
    assert len(keys) == len(set(keys))
    core = {one.key for one in CONTENDERS if one.group == "core"}
    assert core == {"local-only", "centralised", "head-only", "fedit-r8", "fedit-r16", "med-duallora", "ours"}
    assert {one.method for one in CONTENDERS} == set(INSTALLED)


def test_every_method_has_the_same_budget_of_settings():
    assert {len(one.settings) for one in CONTENDERS} == {MOST_SETTINGS}
    for one in CONTENDERS:
        assert len({setting.text for setting in one.settings}) == MOST_SETTINGS, one.key


def test_all_take_the_same_steps_but_the_doubled_ones_which_take_twice_as_many():
    steps = {one.key: schedule.steps_of(CASES, one.made_recipe(COMMON)) for one in everyone()}
    doubled = {key for key in steps if key.endswith("-2x")}
    assert doubled == {f"{one.key}-2x" for one in CONTENDERS if len(METHODS[one.method].passes) > 1}
    usual = {count for key, count in steps.items() if key not in doubled}
    assert len(usual) == 1
    assert {steps[key] for key in doubled} == {2 * usual.pop()}


def test_the_rank_matched_have_as_many_trained_low_rank_numbers_as_two_parts(backbone):
    def trained(key: str) -> int:
        one = contenders.find(key)
        adapter = one.choices({}, 3, 12)
        return adapter.rank + int(one.recipe["rank_local"])

    assert {trained(key) for key in ("local-only", "centralised", "fedit-r16", "med-duallora", "ours")} == {16}
    assert trained("fedit-r8") == 8


def test_settings_replace_the_contender_s_own_numbers():
    one = contenders.find("fedit-r8").with_setting(Setting(recipe={"lr_global": 0.5}, adapter={"rank": 3}))
    assert (one.made_recipe(COMMON).lr_global, one.choices({}, 2, 12).rank) == (0.5, 3)


def test_a_setting_names_the_local_rate_of_methods_with_a_local_part_alone():
    said = {
        key: one.said(one.settings[0]) for one in CONTENDERS if (key := one.key) in ("fedit-r8", "feddpa", "fedprox")
    }
    assert said == {
        "fedit-r8": "lr_global 0.002",
        "feddpa": "lr_global 0.002, lr_local 0.002",
        "fedprox": "proximal 0.01, lr_global 0.005",
    }


def test_switches_change_what_they_say_and_keep_the_rest():
    basis = contenders.find("med-duallora").with_setting(Setting(recipe={"lr_global": 0.5}))
    made = extensions.extend(basis, "med-duallora+gate+exact")
    recipe = made.made_recipe(COMMON)
    assert (recipe.gate, recipe.name, recipe.lr_global) == (True, "fedex-lora", 0.5)
    assert made.choices({}, 2, 12).residual_rank == 12
    with pytest.raises(InputError, match="no switch is called 'magic'; there are: shared-head, private-head"):
        extensions.extend(basis, "med-duallora+magic")


def test_what_is_about_the_local_part_is_not_tried_without_one():
    tried = {one.key for one in extensions.EXTENDED}
    assert "med-duallora+orthogonal" in tried
    assert "fedit-r16+orthogonal" not in tried
    assert "fedit-r16+uniform" in tried


def test_every_method_is_tried_at_the_same_learning_rates():
    """A method whose number of its own takes half of the budget has the two in the middle."""
    for one in CONTENDERS:
        if one.key in ("head-only", "full"):
            continue
        rates = {one.with_setting(setting).made_recipe(COMMON).lr_global for setting in one.settings}
        assert rates in (set(contenders.RATES), set(contenders.MIDDLE_RATES)), one.key


def test_our_recipe_is_taken_apart():
    taken = {one.key for one in extensions.EXTENDED if one.key.startswith("ours")}
    assert taken == {"ours+no-prior", "ours+equal-rates", "ours+equal-ranks"}
    tuned = contenders.find("ours")
    for setting in tuned.settings:
        ours = tuned.with_setting(setting)
        parts = [extensions.extend(ours, key).made_recipe(COMMON) for key in sorted(taken)]
        assert [one.lr_local for one in parts] == [2e-3, 5e-3, 2e-3]
        assert [one.rank_local for one in parts] == [8, 4, 4]
        assert [one.shrinkage_patients > 0 for one in parts] == [True, True, False]


def test_two_passes_cannot_share_an_odd_number_of_epochs():
    with pytest.raises(InputError, match="local_epochs must be even, got 3"):
        contenders.find("ditto").made_recipe({"local_epochs": 3})


def test_a_method_there_is_not_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="no method is called 'fedsgd'; there are: local-only, centralised"):
        contenders.find("fedsgd")


@pytest.mark.parametrize("name", INSTALLED)
def test_the_documentation_has_a_row_with_the_source_of_every_recipe(name):
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}`")]
    assert rows, name
    for source in re.findall(r"arXiv:\d{4}\.\d{5}", METHODS[name].source)[:1]:
        assert any(source in row for row in rows), source

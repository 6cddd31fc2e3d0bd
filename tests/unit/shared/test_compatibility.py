"""Choices that exclude each other are refused before there is a contract, each with what to change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shared import compatibility
from shared.errors import InputError
from shared.recipe import Recipe
from tests.support.methods import PRIVATE

REFUSED: dict[str, list[tuple[Mapping[str, Any], str]]] = {
    "mode alternating": [({"mode": "alternating", "rank_local": 0}, "rank_local 0: half of the steps would train nothing")],
    "rank_local 0": [({"rank_local": 0, "orthogonality": 1.0}, "orthogonality is about the local part")],
    "head-only, full": [({"name": "full"}, "rank_local must be 0")],
    "orthogonality, proximal, gate": [({"name": "ditto-lora", "orthogonality": 1.0}, "orthogonality must be 0")],
    "rules on products": [
        ({"name": "flex-lora", "server_lr": 0.5}, "aggregates products: server_lr must be 1, got 0.5"),
        ({"robust": "geometric-median", "broadcast_codec": "bf16"}, "robust rule geometric-median aggregates products"),
        ({"robust": "krum", "attackers": 1, "server_optimiser": "adam"}, "server_optimiser must be sgd, got adam"),
    ],
    "server optimisers": [({"server_optimiser": "adam", "broadcast_codec": "bf16"}, "loses nothing, got bf16")],
    "mode non-interference": [
        ({"mode": "non-interference", "gate": True}, "gate must be false, got true"),
        ({"mode": "non-interference", "name": "fedsa-lora"}, "'fedsa-lora' keeps a factor of it"),
        ({"mode": "non-interference", "name": "feddpa-lora"}, "says itself what is trained when: mode must be joint"),
    ],
    "differential privacy": [
        ({**PRIVATE, "mode": "joint"}, "mode must be non-interference, got joint"),
        ({**PRIVATE, "name": "med-duallora"}, "recipe must be ffa-lora, got med-duallora"),
        ({**PRIVATE, "dp_epsilon": 0.0}, "set dp_epsilon above 0"),
        ({**PRIVATE, "class_balanced": True}, "class_balanced must be false, got true"),
        ({**PRIVATE, "logit_adjustment": True}, "logit_adjustment must be false, got true"),
    ],
    "dp_epsilon": [({"dp_epsilon": 1.0}, "without noise epsilon is unbounded")],
    "robust rules on products": [
        ({"name": "fedsa-lora", "robust": "geometric-median"}, "needs every site's products"),
        ({"name": "head-only", "rank_local": 0, "robust": "krum", "attackers": 1}, "sends none; choose median"),
    ],
    "robust rules": [({"name": "fedex-lora", "robust": "geometric-median"}, "robust must be none")],
    "median, trimmed-mean": [
        ({"robust": "median"}, "counts every site once: weighting must be uniform, got patients"),
        ({"robust": "median", "name": "flex-lora", "weighting": "uniform"}, "aggregates products"),
    ],
    "attackers": [
        ({"attackers": 1}, "robust rule none is not told a number of attackers"),
        ({"robust": "krum"}, "set attackers to at least 1"),
    ],
    "cosine_least": [({"cosine_least": 0.5}, "is for robust rule cosine-gate, and robust is none")],
}  # fmt: skip


@pytest.mark.parametrize(("choice", "case"), [(choice, case) for choice, cases in REFUSED.items() for case in cases])
def test_what_excludes_each_other_is_refused_with_what_to_change(choice: str, case: tuple[dict[str, Any], str]) -> None:
    parameters, message = case
    assert message in refusal(parameters)
    entry = next(one for one in compatibility.CONFLICTS if one.choice == choice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compatibility, "CONFLICTS", tuple(one for one in compatibility.CONFLICTS if one is not entry))
        assert message not in refusal(parameters)  # it is this entry that says so


def refusal(parameters: Mapping[str, Any]) -> str:
    try:
        Recipe(**parameters)
    except InputError as error:
        return str(error)
    return ""


def test_every_entry_of_the_table_has_a_case_here_and_a_row_in_the_documentation() -> None:
    assert {one.choice for one in compatibility.CONFLICTS} == REFUSED.keys()
    text = (Path(__file__).parents[3] / "docs" / "security.md").read_text(encoding="utf-8")
    for one in compatibility.CONFLICTS:
        assert f"| {one.choice} | {one.excludes} |" in text


def test_a_private_recipe_and_every_robust_rule_can_be_had() -> None:
    assert Recipe(**PRIVATE).dp_noise
    for robust in (*compatibility.PRODUCT_RULES, *compatibility.FACTOR_RULES):
        attackers = 1 if robust in compatibility.COUNTED_RULES else 0
        one = Recipe(robust=robust, attackers=attackers, weighting="uniform")  # type: ignore[arg-type]
        assert one.rule == ("products" if robust in compatibility.PRODUCT_RULES else "factors")


@pytest.mark.parametrize(
    ("robust", "attackers", "updates", "together"),
    [
        ("none", 0, 5, 5),
        ("krum", 1, 5, 1),
        ("multi-krum", 1, 8, 5),
        ("trimmed-distance", 2, 5, 3),
        ("geometric-median", 0, 5, 5),
        ("cosine-gate", 0, 5, 1),
        ("median", 0, 5, 1),
        ("median", 0, 6, 2),
        ("trimmed-mean", 1, 5, 3),
    ],
)
def test_a_robust_rule_may_make_a_result_of_fewer_updates_than_a_round_has(
    robust, attackers, updates, together
) -> None:
    one = Recipe(robust=robust, attackers=attackers, weighting="uniform")
    assert compatibility.blended(one, updates) == together

"""Methods: what each stands for, with which numbers and adapters it can be, and what is said where it cannot."""

import json
from dataclasses import MISSING, fields, replace
from typing import Any

import pytest

from shared import recipe
from shared.adapter import AdapterMetadata
from shared.errors import InputError
from shared.methods import LOCAL, METHODS, PARTS
from shared.recipe import Recipe
from tests.support import adapters, methods

LATER: dict[str, Any] = {
    "broadcast_codec": "bf16",
    "topk_share": 0.1,
    "view_epochs": 3,
    "augmentation": "narrow",
    "weight_cap": 2.0,
    "logit_adjustment": True,
    "proximal": 0.01,
    "ditto_lambda": 0.5,
    "orthogonality": 0.25,
    "local_decay": 1e-3,
    "shrinkage_patients": 4.0,
    "local_norm_cap": 0.2,
    "gate": True,
    "server_optimiser": "adam",
    "server_beta1": 0.5,
    "server_beta2": 0.75,
    "server_tau": 0.125,
    "robust": "geometric-median",
    "attackers": 2,
    "cosine_least": 0.25,
    "norm_gate": 4.0,
    "dp_noise": 1.5,
    "dp_clip": 0.5,
    "dp_delta": 1e-6,
    "dp_epsilon": 4.0,
}
"""Every parameter that protocol 1.1 did not have, with a value that is not its default."""
WITHOUT = {"attackers", "cosine_least", "dp_noise", "dp_epsilon", "robust"}
"""Of them, those that need others beside them, or are not for every rule."""
LOSSLESS = {"broadcast_codec": "f32"}
"""A server optimiser takes no other."""
BESIDE: dict[str, dict[str, Any]] = {
    "attackers": {"robust": "krum"},
    "cosine_least": {"robust": "cosine-gate"},
    "dp_noise": methods.PRIVATE,
    "dp_epsilon": methods.PRIVATE,
}
"""What a parameter needs beside it."""


# --- what travels of a recipe -----------------------------------------------------------------------------------------


def test_parameters_at_their_default_are_left_out_of_the_text_and_others_stand_in_it() -> None:
    first = set(Recipe().to_jsonable())
    assert first == {field.name for field in fields(Recipe)} - LATER.keys()
    for name, value in LATER.items():
        beside = BESIDE.get(name, {})
        one = Recipe(**{**beside, name: value}).to_jsonable()
        assert set(one) == {*first, name, *(beside.keys() & LATER.keys())}, name
        assert one[name] == value


@pytest.mark.parametrize("name", recipe.INSTALLED)
def test_every_parameter_travels_and_comes_back(name: str) -> None:
    base = methods.recipe(name)
    for parameter, value in {**LATER, "weighting": "capped"}.items():
        try:
            one = replace(base, **{parameter: value})
        except InputError:
            continue  # not with this method
        back = recipe.make(name, json.loads(one.parameters()))
        assert back == one
        assert back.parameters() == one.parameters()
        as_text = {
            key: str(v).lower() if isinstance(v, bool) else str(v) for key, v in json.loads(one.parameters()).items()
        }
        assert recipe.make(name, as_text) == one


def test_all_of_them_at_once_travel_and_come_back() -> None:
    one = Recipe(**{**{k: v for k, v in LATER.items() if k not in WITHOUT}, **LOSSLESS, "weighting": "capped"})
    assert recipe.make(one.name, json.loads(one.parameters())) == one
    strict = Recipe(**methods.PRIVATE, robust="krum", attackers=1)
    assert recipe.make(strict.name, json.loads(strict.parameters())) == strict


def test_no_parameter_is_forgotten_here() -> None:
    """A parameter that is added must say here whether contracts of before have it in their text."""
    assert all(field.default is not MISSING for field in fields(Recipe))
    assert len(fields(Recipe)) == 19 + len(LATER)


# --- what a method is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_source_and_formula_and_serves_what_it_trains(name: str) -> None:
    method = METHODS[name]
    assert "arXiv:" in method.source
    assert method.formula
    trained = frozenset().union(*(phase.trained for phase in method.passes))
    assert trained == (PARTS if method.federated else LOCAL)
    assert method.federated == (name in recipe.INSTALLED) == (name != "adaptation")
    assert method.serves & trained
    assert all(phase.trained <= phase.active for phase in method.passes)
    assert method.kept <= frozenset().union(*method.trained)


def test_alternating_shares_one_pass_between_two_phases_and_other_methods_take_a_pass_for_each() -> None:
    def trained(one: Recipe) -> list[list[set[str]]]:
        return [[set(phase.trained) for phase in phases] for phases in one.passes()]

    both, first, second = {"global", "local"}, {"global"}, {"local"}
    assert trained(Recipe()) == [[both]]
    assert trained(Recipe(mode="alternating")) == [[first, second]]
    for name in ("feddpa-lora", "fdlora", "ditto-lora"):
        assert trained(Recipe(name=name)) == [[first], [second]]


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        (
            "feddpa-lora",
            {"mode": "alternating"},
            "recipe 'feddpa-lora' says itself what is trained when: mode must be joint",
        ),
        (
            "adaptation",
            {"mode": "alternating"},
            "recipe 'adaptation' says itself what is trained when: mode must be joint",
        ),
        ("feddpa-lora", {"rank_local": 0}, "recipe 'feddpa-lora' trains a local part: rank_local must be at least 1"),
        ("fdlora", {"rank_local": 0}, "rank_local must be at least 1"),
        ("ditto-lora", {"rank_local": 0}, "rank_local must be at least 1"),
        ("full", {"rank_local": 8}, "recipe 'full' has no low-rank parts: rank_local must be 0"),
        (
            "med-duallora",
            {"rank_local": 0, "orthogonality": 1},
            "orthogonality is about the local part, and rank_local is 0",
        ),
        ("med-duallora", {"rank_local": 0, "local_decay": 1}, "local_decay is about the local part"),
        ("med-duallora", {"rank_local": 0, "shrinkage_patients": 1}, "shrinkage_patients is about the local part"),
        ("med-duallora", {"rank_local": 0, "local_norm_cap": 1}, "local_norm_cap is about the local part"),
        (
            "fdlora",
            {"orthogonality": 1},
            "recipe 'fdlora' has no step in which both parts count: orthogonality must be 0",
        ),
        ("ditto-lora", {"orthogonality": 1}, "has no step in which both parts count: orthogonality must be 0"),
        ("adaptation", {"rank_local": 0}, "recipe 'adaptation' trains a local part: rank_local must be at least 1"),
        ("adaptation", {"proximal": 1}, "recipe 'adaptation' trains nothing that is shared: proximal must be 0"),
        ("fdlora", {"gate": True}, "recipe 'fdlora' fits weights of its own: gate must be false"),
        ("head-only", {"gate": True, "rank_local": 0}, "trains no low-rank part: gate must be false"),
        ("full", {"gate": True, "rank_local": 0}, "recipe 'full' trains no low-rank part: gate must be false"),
        ("flex-lora", {"server_lr": 0.5}, "recipe 'flex-lora' aggregates products: server_lr must be 1, got 0.5"),
        ("fedex-lora", {"server_optimiser": "adam"}, "aggregates products: server_optimiser must be sgd, got adam"),
        ("fedex-lora", {"broadcast_codec": "int8"}, "aggregates products: broadcast_codec must be f32, got int8"),
        (
            "med-duallora",
            {"server_optimiser": "yogi", "broadcast_codec": "int8"},
            "server_optimiser yogi needs a broadcast_codec that loses nothing, got int8",
        ),
    ],
)
def test_numbers_that_contradict_each_other_are_refused_with_what_to_change(
    name: str, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        recipe.make(name, parameters)


def adapter(name: str = "med-duallora", **changes: Any) -> AdapterMetadata:
    """Metadata with which the method runs, but for the changes."""
    made, _ = adapters.fitting(name)
    return replace(made.manifest.metadata, **changes)


@pytest.mark.parametrize("name", recipe.INSTALLED)
def test_every_method_takes_the_adapter_that_is_made_for_it(name: str) -> None:
    made, parameters = adapters.fitting(name)
    recipe.make(name, parameters).check_adapter(made.manifest.metadata)


@pytest.mark.parametrize("name", [name for name in recipe.INSTALLED if any(METHODS[name].trained)])
def test_a_method_that_trains_factors_wants_an_adapter_that_has_some(name: str) -> None:
    parameters = adapters.fitting(name)[1]
    with pytest.raises(InputError, match=f"recipe '{name}' trains low-rank factors .* rank 0; use a higher rank"):
        recipe.make(name, parameters).check_adapter(adapter(name, rank=0))


def test_parts_are_held_apart_only_where_there_are_two() -> None:
    one = Recipe(name="adaptation", orthogonality=1.0)
    one.check_adapter(adapter())
    with pytest.raises(
        InputError, match=r"orthogonality .* and the adapter has rank 0; use a higher rank, or orthogonality 0"
    ):
        one.check_adapter(adapter(rank=0))


def test_full_fine_tuning_wants_weights_that_are_named() -> None:
    with pytest.raises(InputError, match="names none; make one with `site-agent init-adapter --dense all`"):
        Recipe(name="full", rank_local=0).check_adapter(adapter())


def test_a_residual_goes_with_an_exact_rule_and_with_no_other() -> None:
    with pytest.raises(InputError, match=r"needs an adapter with a residual; .* --residual-rank 16`"):
        Recipe(name="fedex-lora").check_adapter(adapter())
    for name in ("med-duallora", "flex-lora"):
        with pytest.raises(InputError, match=r"has no use for an adapter with a residual; .* --residual-rank 0`"):
            Recipe(name=name).check_adapter(adapter("fedex-lora"))


@pytest.mark.parametrize(
    ("parameters", "changes", "got"),
    [
        ({"rank_local": 3}, {}, "2, 4 and global\\+local, got 3, 4 and global\\+local"),
        ({"alpha_local": 8}, {}, "2, 4 and global\\+local, got 2, 8 and global\\+local"),
        ({}, {"head_policy": "global"}, "2, 4 and global\\+local, got 2, 4 and global"),
        ({}, {"rank": 8, "alpha": 16.0}, "8, 16 and global\\+local, got 2, 4 and"),
    ],
)
def test_a_personal_part_has_the_shape_of_the_shared_one(
    parameters: dict[str, Any], changes: dict[str, Any], got: str
) -> None:
    right = adapters.fitting("ditto-lora")[1]
    with pytest.raises(InputError, match=f"rank_local, alpha_local and head policy must be {got}"):
        recipe.make("ditto-lora", {**right, **parameters}).check_adapter(adapter("ditto-lora", **changes))

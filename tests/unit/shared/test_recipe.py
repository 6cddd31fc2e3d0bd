"""Recipes: only installed ones, only known numbers, and one text for one set of numbers."""

import json
import math

import pytest

from shared import recipe
from shared.errors import InputError
from shared.recipe import Recipe
from tests.support import methods


def test_parameters_travel_and_come_back_as_the_same_recipe() -> None:
    one = Recipe(rank_local=4, lr_local=1e-3, class_balanced=False, mode="alternating", weighting="uniform")
    parameters = json.loads(one.parameters())
    assert "name" not in parameters
    assert recipe.make(one.name, parameters) == one
    assert recipe.make(one.name, parameters).parameters() == one.parameters()


def test_numbers_may_be_text_as_on_a_command_line() -> None:
    made = recipe.make(
        "med-duallora", {"rank_local": "4", "alpha_local": "8", "class_balanced": "false", "mode": "alternating"}
    )
    assert (made.rank_local, made.alpha_local, made.class_balanced, made.mode) == (4, 8.0, False, "alternating")


def test_a_whole_number_and_the_same_float_are_one_recipe() -> None:
    assert Recipe(alpha_local=16).parameters() == Recipe(alpha_local=16.0).parameters()
    assert recipe.make("med-duallora", {"alpha_local": 16}).parameters() == Recipe(alpha_local=16.0).parameters()


def test_a_recipe_that_is_not_installed_says_what_is() -> None:
    with pytest.raises(InputError) as caught:
        recipe.make("fed-magic", {})
    assert str(caught.value) == (
        "recipe 'fed-magic' is not installed here (installed: med-duallora, ffa-lora, fedsa-lora, rolora, fedex-lora, "
        "flex-lora, feddpa-lora, fdlora, ditto-lora, head-only, full); upgrade med-duallora"
    )


def test_an_unknown_parameter_says_which_there_are() -> None:
    with pytest.raises(
        InputError,
        match=r"recipe 'med-duallora' has no parameter 'rank' \(it has: alpha_local, attackers, augmentation",
    ):
        recipe.make("med-duallora", {"rank": 4})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rank_local", "four", "recipe parameter rank_local must be a whole number, got 'four'"),
        ("rank_local", 4.5, "recipe parameter rank_local must be a whole number, got '4.5'"),
        ("rank_local", True, "recipe parameter rank_local must be a whole number, got 'True'"),
        ("rank_local", None, "recipe parameter rank_local must be a whole number, got 'None'"),
        ("lr_local", [1], r"recipe parameter lr_local must be a number, got '\[1\]'"),
        ("lr_local", 10**400, "recipe parameter lr_local must be a number, got '10{79}'"),
        ("class_balanced", "yes", "recipe parameter class_balanced must be true or false, got 'yes'"),
        ("class_balanced", [], r"recipe parameter class_balanced must be true or false, got '\[\]'"),
        ("mode", "both", "recipe parameter mode must be one of joint, alternating, non-interference, got 'both'"),
        ("weighting", "steps", "recipe parameter weighting must be one of patients, capped, uniform, got 'steps'"),
        ("weight_cap", 0, "recipe parameter weight_cap must be positive, got 0"),
        ("server_optimiser", "lion", "server_optimiser must be one of sgd, momentum, adam, yogi, got 'lion'"),
        ("server_beta1", 1, r"recipe parameter server_beta1 must be at least 0 and below 1, got 1"),
        ("server_beta2", -0.1, r"recipe parameter server_beta2 must be at least 0 and below 1, got -0.1"),
        ("server_tau", 0, "recipe parameter server_tau must be positive, got 0"),
        ("logit_adjustment", "maybe", "recipe parameter logit_adjustment must be true or false, got 'maybe'"),
        ("gate", 2, "recipe parameter gate must be true or false, got '2'"),
        ("proximal", -1, "recipe parameter proximal must not be negative, got -1"),
        ("ditto_lambda", -1, "recipe parameter ditto_lambda must not be negative, got -1"),
        ("orthogonality", math.nan, "recipe parameter orthogonality must not be negative, got nan"),
        ("local_decay", -1, "recipe parameter local_decay must not be negative, got -1"),
        ("shrinkage_patients", math.inf, "recipe parameter shrinkage_patients must not be negative, got inf"),
        ("local_norm_cap", -1, "recipe parameter local_norm_cap must not be negative, got -1"),
        ("codec", "zip", r"recipe parameter codec must be one of f32, f32\+zstd, bf16, .*topk\+zstd, got 'zip'"),
        ("broadcast_codec", "zip", r"recipe parameter broadcast_codec must be one of f32, .*, got 'zip'"),
        ("topk_share", 0, r"recipe parameter topk_share must be above 0 and at most 1, got 0.0"),
        ("topk_share", 1.5, r"recipe parameter topk_share must be above 0 and at most 1, got 1.5"),
        ("rank_local", -1, "recipe parameter rank_local must be at least 0, got -1"),
        ("batch_size", 0, "recipe parameter batch_size must be at least 1, got 0"),
        ("local_epochs", -1, "recipe parameter local_epochs must be at least 1, got -1"),
        ("alpha_local", 0, "recipe parameter alpha_local must be positive, got 0"),
        ("server_lr", math.nan, "recipe parameter server_lr must be positive, got nan"),
        ("clip_norm", math.inf, "recipe parameter clip_norm must be positive, got inf"),
        ("lr_global", -1e-3, "recipe parameter lr_global must not be negative, got -0.001"),
        ("lr_head", math.nan, "recipe parameter lr_head must not be negative, got nan"),
        ("weight_decay", math.inf, "recipe parameter weight_decay must not be negative, got inf"),
        ("views", -1, "recipe parameter views must be at least 0, got -1"),
        ("rank_local", 1025, "recipe parameter rank_local must be at most 1024, got 1025"),
        ("local_epochs", 10**9, "recipe parameter local_epochs must be at most 1000000, got 1000000000"),
        ("batch_size", 10**9, "recipe parameter batch_size must be at most 65536, got 1000000000"),
        ("norm_gate", 0.5, "recipe parameter norm_gate must be 0 or above 1, got 0.5"),
        ("cosine_least", 1.5, "must be a cosine and a probability, got 1.5 and 1e-05"),
        ("dp_delta", 1.0, "must be a cosine and a probability, got 0.0 and 1.0"),
        ("beta1", 1.0, "recipe parameter beta1 must be at least 0 and below 1, got 1.0"),
        ("beta2", -0.1, "recipe parameter beta2 must be at least 0 and below 1, got -0.1"),
        ("lr_floor", 1.5, "recipe parameter lr_floor must be a share from 0 to 1, got 1.5"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_was_seen(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe.make("med-duallora", {key: value})


def test_turns_need_a_local_part() -> None:
    with pytest.raises(InputError, match="mode is alternating and rank_local 0"):
        recipe.make("med-duallora", {"mode": "alternating", "rank_local": 0})


def test_every_recipe_that_is_made_has_a_canonical_text() -> None:
    for name in recipe.INSTALLED:
        assert json.loads(methods.recipe(name).parameters())["codec"] == "f32"


A, B, HEAD, RESIDUAL, STEM = (
    f"base_model.model.{name}.weight"
    for name in ("blocks.1.q.lora_A", "blocks.1.q.lora_B", "head", "blocks.1.q.lora_residual_A", "stem.conv")
)


@pytest.mark.parametrize(
    ("name", "number", "trained", "travels"),
    [
        ("med-duallora", 1, "AB", {A, B}),
        ("ffa-lora", 1, "B", {B}),
        ("ffa-lora", 2, "B", {B}),
        ("fedsa-lora", 1, "AB", {A}),
        ("rolora", 1, "B", {B}),  # B is zero in version 0: A alone would learn nothing
        ("rolora", 2, "A", {A}),
        ("rolora", 3, "B", {B}),
        ("fedex-lora", 1, "AB", {A, B}),
        ("flex-lora", 1, "AB", {A, B}),
        ("feddpa-lora", 1, "AB", {A, B}),
        ("fdlora", 1, "AB", {A, B}),
        ("ditto-lora", 1, "AB", {A, B}),
        ("head-only", 1, "", set()),
        ("full", 1, "", set()),
    ],
)
def test_the_name_says_what_is_trained_and_what_of_it_travels(
    name: str, number: int, trained: str, travels: set[str]
) -> None:
    """The head and weights of the base model travel wherever the adapter has them; a residual never does."""
    one = methods.recipe(name)
    assert one.trained(number) == set(trained)
    travelling = {tensor for tensor in (A, B, HEAD, RESIDUAL, STEM) if one.travels(tensor, number)}
    assert travelling == {*travels, HEAD, STEM}


def test_adaptation_sends_nothing_and_is_offered_to_no_federation() -> None:
    one = methods.recipe("adaptation")
    assert not any(one.travels(tensor, number) for tensor in (A, B, HEAD, RESIDUAL, STEM) for number in (1, 2))
    assert "adaptation" not in recipe.INSTALLED


def test_numbers_that_came_later_leave_the_text_of_older_contracts_as_it_was() -> None:
    """A 1.1 agent refuses parameters it does not know: they stand only where they say something."""
    assert not {"broadcast_codec", "topk_share"} & json.loads(Recipe().parameters()).keys()
    one = Recipe(broadcast_codec="int8", topk_share=0.1)
    assert {"broadcast_codec", "topk_share"} < json.loads(one.parameters()).keys()
    assert recipe.make(one.name, json.loads(one.parameters())) == one

"""Recipes: only installed ones, only known numbers, and one text for one set of numbers."""

import json
import math
from dataclasses import replace

import pytest

from shared import recipe
from shared.errors import InputError
from shared.recipe import Recipe


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
        "recipe 'fed-magic' is not installed here (installed: med-duallora, ffa-lora, fedsa-lora, rolora); upgrade med-duallora"
    )


def test_an_unknown_parameter_says_which_there_are() -> None:
    with pytest.raises(
        InputError,
        match=r"recipe 'med-duallora' has no parameter 'rank' \(it has: alpha_local, augmentation, batch_size",
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
        ("mode", "both", "recipe parameter mode must be one of joint, alternating, got 'both'"),
        ("weighting", "steps", "recipe parameter weighting must be one of patients, uniform, got 'steps'"),
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
        ("views", -1, "recipe parameter views must not be negative, got -1"),
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
        assert json.loads(replace(Recipe(), name=name).parameters())["codec"] == "f32"


A, B, HEAD = (f"base_model.model.{name}.weight" for name in ("blocks.1.q.lora_A", "blocks.1.q.lora_B", "head"))


@pytest.mark.parametrize(
    ("name", "number", "trained", "travels"),
    [
        ("med-duallora", 1, "AB", {A, B, HEAD}),
        ("ffa-lora", 1, "B", {B, HEAD}),
        ("ffa-lora", 2, "B", {B, HEAD}),
        ("fedsa-lora", 1, "AB", {A, HEAD}),
        ("rolora", 1, "B", {B, HEAD}),  # B is zero in version 0: A alone would learn nothing
        ("rolora", 2, "A", {A, HEAD}),
        ("rolora", 3, "B", {B, HEAD}),
    ],
)
def test_the_name_says_what_is_trained_and_what_of_it_travels(
    name: str, number: int, trained: str, travels: set[str]
) -> None:
    one = Recipe(name=name)
    assert one.trained(number) == set(trained)
    assert {tensor for tensor in (A, B, HEAD) if one.travels(tensor, number)} == travels


def test_numbers_that_came_later_leave_the_text_of_older_contracts_as_it_was() -> None:
    """A 1.1 agent refuses parameters it does not know: they stand only where they say something."""
    assert not {"broadcast_codec", "topk_share"} & json.loads(Recipe().parameters()).keys()
    one = Recipe(broadcast_codec="int8", topk_share=0.1)
    assert {"broadcast_codec", "topk_share"} < json.loads(one.parameters()).keys()
    assert recipe.make(one.name, json.loads(one.parameters())) == one

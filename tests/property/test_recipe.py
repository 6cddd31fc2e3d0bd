"""Laws of recipes: what is made travels unchanged, and whatever is given, the answer is a recipe or words."""

import json
from dataclasses import fields

from hypothesis import given, settings
from hypothesis import strategies as st

from shared import recipe
from shared.errors import InputError
from shared.recipe import Recipe

shares = st.floats(0, 1)
positive = st.floats(1e-6, 1e6)
recipes = st.builds(
    Recipe,
    mode=st.sampled_from(["joint", "alternating", "non-interference"]),
    weighting=st.sampled_from(["patients", "uniform"]),
    rank_local=st.integers(1, 64),
    alpha_local=positive | st.integers(1, 64),
    lr_global=shares,
    lr_local=shares,
    lr_head=shares,
    lr_floor=shares,
    weight_decay=shares,
    beta1=st.floats(0, 1, exclude_max=True),
    beta2=st.floats(0, 1, exclude_max=True),
    clip_norm=positive | st.integers(1, 9),
    local_epochs=st.integers(1, 9),
    batch_size=st.integers(1, 99),
    class_balanced=st.booleans(),
    views=st.integers(0, 9),
    server_lr=positive,
)


@given(recipes)
@settings(max_examples=100, deadline=None)
def test_a_recipe_travels_unchanged(one: Recipe) -> None:
    back = recipe.make(one.name, json.loads(one.parameters()))
    assert back == one
    assert back.parameters() == one.parameters()


@given(recipes)
@settings(max_examples=100, deadline=None)
def test_numbers_given_as_text_make_the_same_recipe(one: Recipe) -> None:
    values = json.loads(one.parameters())
    as_text = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}
    assert recipe.make(one.name, as_text) == one


names = st.sampled_from([f.name for f in fields(Recipe) if f.name != "name"])
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def made_or_refusal(parameters: dict[str, object]) -> Recipe | str:
    """The recipe, or the words of its refusal; any other exception is a failure."""
    try:
        return recipe.make("med-duallora", parameters)
    except InputError as error:
        return str(error)


@given(st.dictionaries(names, anything, max_size=3))
@settings(max_examples=200, deadline=None)
def test_any_parameters_make_a_recipe_that_can_travel_or_are_refused_by_name(parameters: dict[str, object]) -> None:
    match made_or_refusal(parameters):
        case str(words):
            assert any(name in words for name in parameters)
        case made:
            assert recipe.make("med-duallora", json.loads(made.parameters())) == made

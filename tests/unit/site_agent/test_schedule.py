"""What a step sees and how fast it learns: functions of seed, round, epoch and step alone."""

import math
from collections import Counter

import pytest

from shared.recipe import Recipe
from site_agent.training import schedule, views
from site_agent.training.schedule import Position
from tests.support import tiny_site

RECIPE = Recipe(rank_local=2, augmentation="none", local_epochs=2, batch_size=4)
FIRST = Position(1, 4, 7)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny_site.write_cases(tmp_path_factory.mktemp("cases"), 10)


def test_every_case_comes_once_an_epoch_with_its_own_label(cases):
    batches = list(schedule.batches(cases, RECIPE, FIRST))
    assert len(batches) == schedule.steps_of(len(cases), RECIPE) == 2 * 3
    for epoch in (0, 1):
        keys = Counter(view.case.key for batch in batches if batch.epoch == epoch for view in batch.views)
        assert keys == Counter(case.key for case in cases)
    assert all(batch.labels.tolist() == [view.case.label for view in batch.views] for batch in batches)
    assert [batch.at for batch in batches] == pytest.approx([step / 6 for step in range(6)])


def test_the_order_is_a_function_of_seed_round_and_epoch(cases):
    def order(round_number, seed):
        position = Position(round_number, 4, seed)
        return [view.key for batch in schedule.batches(cases, RECIPE, position) for view in batch.views]

    assert order(1, 7) == order(1, 7)
    assert order(1, 7) != order(2, 7)
    assert order(1, 7) != order(1, 8)
    assert order(1, 7)[:10] != order(1, 7)[10:]


def test_every_view_of_a_case_is_used_now_and_then(cases):
    recipe = Recipe(views=2, local_epochs=6, batch_size=4)
    used = {view.key[1:] for batch in schedule.batches(cases, recipe, FIRST) for view in batch.views}
    assert used == {("plain", 0), ("random", 1), ("random", 2)}


def test_the_learning_rate_falls_along_half_a_cosine_over_all_rounds():
    recipe = Recipe(lr_floor=0.1)
    assert schedule.learning_rate_factor(recipe, Position(1, 4, 0), 0.0) == 1.0
    assert schedule.learning_rate_factor(recipe, Position(3, 4, 0), 0.0) == pytest.approx(0.55)
    assert schedule.learning_rate_factor(recipe, Position(4, 4, 0), 1.0) == pytest.approx(0.1)
    assert schedule.learning_rate_factor(recipe, Position(2, 4, 0), 0.5) == pytest.approx(
        0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 1.5 / 4))
    )


# --- which view -----------------------------------------------------------------------------------------------------


def numbers(case, recipe, epochs, slot, seed=7):
    return [views.of_epoch(case, slot, recipe, seed, epoch).index for epoch in range(epochs)]


def test_without_augmentation_every_view_is_the_plain_one(cases):
    recipe = Recipe(augmentation="none", views=3)
    assert {views.of_epoch(cases[0], slot, recipe, 7, 5).kind for slot in range(4)} == {"plain"}


def test_a_random_view_stays_for_ever_unless_the_recipe_gives_it_a_life(cases):
    assert numbers(cases[0], Recipe(views=3), 50, slot=2) == [2] * 50


def test_a_random_view_gives_way_to_one_that_no_slot_had_before(cases):
    recipe = Recipe(views=3, view_epochs=4)
    by_slot = [numbers(cases[0], recipe, 20, slot) for slot in (1, 2, 3)]
    for shown in by_slot:
        assert sorted(shown) == shown
        assert set(Counter(shown[1:-1]).values()) <= {1, 2, 3, 4}
        assert len(set(shown)) in (5, 6)
    assert len({number for shown in by_slot for number in shown}) == sum(len(set(shown)) for shown in by_slot)


def test_cases_and_slots_take_turns_to_be_replaced(cases):
    recipe = Recipe(views=2, view_epochs=5)
    changes = Counter(
        epoch
        for case in cases
        for slot in (1, 2)
        for epoch in range(1, 26)
        if len(set(numbers(case, recipe, 26, slot)[epoch - 1 : epoch + 1])) == 2
    )
    assert sum(changes.values()) == 10 * 2 * 5
    assert max(changes.values()) <= 10
    assert len(changes) == 25


def test_with_no_views_to_keep_every_epoch_has_a_fresh_one(cases):
    shown = [views.of_epoch(cases[0], 0, Recipe(views=0), 7, epoch) for epoch in range(6)]
    assert [view.index for view in shown] == [1, 2, 3, 4, 5, 6]
    assert not any(view.kept for view in shown)


def test_epochs_are_counted_through_all_rounds(cases):
    recipe = Recipe(views=0, local_epochs=2, batch_size=16)
    of_rounds = [
        {view.index for batch in schedule.batches(cases, recipe, Position(number, 4, 7)) for view in batch.views}
        for number in (1, 2, 3)
    ]
    assert of_rounds == [{1, 2}, {3, 4}, {5, 6}]

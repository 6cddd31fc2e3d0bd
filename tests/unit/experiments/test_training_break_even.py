"""When a cache has paid: closed forms, and epochs worked out by hand."""

import pytest

from experiments.training import break_even
from experiments.training.break_even import Pieces

PIECES = Pieces(new=3.1, seen=1.0, uncached=3.0)


def test_plain_images_are_all_new_once_and_never_again():
    assert break_even.cached(PIECES, slots=1, epochs=3) == [3.1, 1.0, 1.0]
    assert break_even.first_cheaper([3.1, 1.0, 1.0], [3.0] * 3) == 2


def test_with_three_slots_two_thirds_of_what_was_not_seen_before_is_new():
    assert [break_even.new_share(3, epoch) for epoch in (1, 2, 3)] == pytest.approx([1, 2 / 3, 4 / 9])
    expected = [3.1, 1 + 2.1 * 2 / 3, 1 + 2.1 * 4 / 9]
    assert break_even.cached(PIECES, slots=3, epochs=3) == pytest.approx(expected)


def test_all_views_of_a_case_are_seen_in_the_end():
    """A case costs its slots' computations and then nothing: the sum of the shares tends to the number of slots."""
    assert sum(break_even.new_share(3, epoch) for epoch in range(1, 200)) == pytest.approx(3)
    assert break_even.saving(PIECES, slots=3, epochs=10_000) == pytest.approx(3.0, rel=0.01)


def test_a_cache_that_never_pays_says_so():
    assert break_even.first_cheaper([3.1, 3.0], [3.0, 3.0]) is None
    assert break_even.first_cheaper([2.9], [3.0]) == 1

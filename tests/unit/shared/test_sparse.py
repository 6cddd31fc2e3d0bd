"""Sparse tensors: which numbers travel, and what their places cost against the entropy they have."""

import math

import numpy as np
import pytest

from shared import sparse
from shared.errors import InvalidAdapter
from shared.sparse import TopK


def test_the_largest_numbers_travel_and_the_others_are_zero() -> None:
    numbers = np.array([[1, -127, 2, 3], [64, 0, 5, -6]], np.float32)
    codec = TopK(0.25)
    found = codec.decode(codec.encode(numbers, b""), numbers.shape)
    np.testing.assert_array_equal(found, np.array([[0, -127, 0, 0], [64, 0, 0, 0]], np.float32))


def test_of_numbers_of_one_size_the_first_travel() -> None:
    codec = TopK(0.5)
    found = codec.decode(codec.encode(np.full(4, 127, np.float32), b""), (4,))
    np.testing.assert_array_equal(found, [127, 127, 0, 0])


def test_a_share_of_one_sends_all() -> None:
    numbers = np.arange(-127, 128, dtype=np.float32)
    codec = TopK(1.0)
    np.testing.assert_array_equal(codec.decode(codec.encode(numbers, b""), numbers.shape), numbers)


def test_the_bytes_by_hand() -> None:
    """8 numbers, share 1/4: 2 travel, at places 2 and 7, gaps 2 and 4. ln 2 * 8 / 2 = 2.77, log2 of it 1.47: b = 1.

    Values: kind, scale 1.0, codes 127 and 1. Low bits of the gaps: 0, 0. Unary of 1 and 2: 01 001, first bit lowest: 0b10010.
    """
    numbers = np.zeros(8, np.float32)
    numbers[2], numbers[7] = 127, 1
    assert TopK(0.25).encode(numbers, b"") == bytes([0, 0x80, 0x3F, 127, 1, 0b00, 0b10010])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.3])
def test_places_cost_little_more_than_their_entropy(share: float) -> None:
    count = 100_000
    codec, numbers = TopK(share), np.random.default_rng(0).standard_normal(count).astype(np.float32)
    kept = codec.kept(count)
    places = len(codec.encode(numbers, b"")) - 3 - kept
    p = kept / count
    entropy = -count * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8
    assert entropy <= places <= 1.05 * entropy


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 1.0])
def test_the_worst_places_fit_into_the_size(count: int, share: float) -> None:
    codec = TopK(share)
    order = np.linspace(1, 2, count)
    for numbers in (order, order[::-1]):  # all at the end, all at the beginning
        array = np.ascontiguousarray(numbers, np.float32)
        data = codec.encode(array, b"")
        assert len(data) <= codec.size((count,))
        found = codec.decode(data, (count,))
        assert np.count_nonzero(found) == codec.kept(count)
        assert np.all((found == 0) | (np.abs(found - array) < 2 / 127 * 1.01))


@pytest.mark.parametrize(
    "data",
    [
        bytes([0, 0x80, 0x3F, 127, 1, 0b00]),  # ends before the places
        bytes([0, 0x80, 0x3F, 127, 1, 0b00, 0b00010]),  # one place
        bytes([0, 0x80, 0x3F, 127, 1, 0b00, 0b11010]),  # three places
        bytes([0, 0x80, 0x3F, 127, 1, 0b11, 0b10010]),  # the second lies behind the end
        bytes([0, 0x80, 0x3F, 127, 1, 0b00, 0b10010, 0]),  # a byte too many
    ],
)
def test_bytes_that_no_tensor_has_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidAdapter):
        TopK(0.25).decode(data, (8,))


def test_a_share_has_one_spelling() -> None:
    assert sparse.of("0.05") == TopK(0.05)
    assert all(sparse.of(text) is None for text in ("", "5%", "0.050", "1e-2", "0", "-0.1", "2.0", "inf", "nan"))

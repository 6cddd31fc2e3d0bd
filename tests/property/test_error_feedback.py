"""The law of error feedback: whatever a lossy codec does to single updates, nothing is lost over the rounds."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.recipe import Recipe
from site_agent import egress
from site_agent.egress import UpdateFacts
from tests.support import adapters

RECEIVED = adapters.adapter()
NAME = RECEIVED.manifest.layout.tensors[1].name
SHAPE = RECEIVED.tensors[NAME].shape
BF16 = Recipe(codec="bf16")


def facts(round_number: int) -> UpdateFacts:
    return UpdateFacts(round=round_number, base_version=round_number - 1, training_patients=9, metrics={})


def seal(deltas: list[np.ndarray], recipe: Recipe = BF16) -> tuple[list[np.ndarray], np.ndarray]:
    """Send these deltas of one tensor round after round; return what arrived, and the residual at the end."""
    sent, residual = [], {}
    zero = {name: np.zeros_like(value) for name, value in RECEIVED.tensors.items()}
    received = RECEIVED.successor(zero, 0)  # trained - received is then the delta itself, without rounding
    for number, delta in enumerate(deltas, 1):
        update, residual = egress.seal(received, {**zero, NAME: delta}, recipe, facts(number), 3, residual)
        sent.append(update.layout.split(update.payload)[NAME])
    return sent, residual.get(NAME, np.zeros(SHAPE))


def exact(arrays: list[np.ndarray]) -> list[Fraction]:
    """Sum element by element without any rounding."""
    return [sum((Fraction(float(array.flat[i])) for array in arrays), Fraction()) for i in range(arrays[0].size)]


def deltas_of(seed: int, rounds: int, smallest: int) -> list[np.ndarray]:
    """Deltas of every size from 2^smallest to 1, as training and clipping give them."""
    rng = np.random.default_rng(seed)
    scale = np.exp2(rng.integers(smallest, 1, (rounds, *SHAPE)))
    return list((rng.uniform(-1, 1, (rounds, *SHAPE)) * scale).astype(np.float32))


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_what_arrived_and_the_residual_are_the_sum_of_the_deltas_exactly(seed: int, rounds: int) -> None:
    """Values drawn here need at most 2^-(14 + 33) to 2^4: all sums fit into float64's 53 bits, so the law has no tolerance."""
    deltas = [np.round(delta * 2.0**40).astype(np.float64) / 2.0**40 for delta in deltas_of(seed, rounds, -14)]
    deltas = [delta.astype(np.float32) for delta in deltas]
    sent, residual = seal(deltas)
    assert exact([*sent, residual]) == exact(deltas)


@given(st.integers(0, 2**32), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_for_numbers_of_any_size_it_holds_to_the_rounding_of_float64(seed: int, rounds: int) -> None:
    deltas = deltas_of(seed, rounds, -120)
    sent, residual = seal(deltas)
    for found, expected in zip(exact([*sent, residual]), exact(deltas), strict=True):
        assert abs(found - expected) <= 2 * rounds * Fraction(2) ** -53


@given(st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_the_residual_is_never_more_than_half_a_step_of_the_codec(seed: int) -> None:
    deltas = deltas_of(seed, 5, -14)
    sent, residual = seal(deltas)
    assert np.all(np.abs(residual) <= np.maximum(np.abs(sent[-1]) * 2.0**-8, 2.0**-126))


def test_without_feedback_small_changes_would_never_arrive() -> None:
    """A drift of 2^-10 beside a value of 1 is below bf16's step of 2^-8 there; with feedback all of it has come after 64 rounds."""
    deltas = [np.full(SHAPE, 1 + 2.0**-10, np.float32) for _ in range(64)]
    sent, residual = seal(deltas)
    total = np.sum(np.array(sent, np.float64), axis=0)
    assert np.all(total + residual == 64 + 64 * 2.0**-10)
    assert np.all(np.abs(total - (64 + 64 * 2.0**-10)) <= 2.0**-8)
    alone = np.sum([seal([delta])[0][0].astype(np.float64) for delta in deltas], axis=0)
    assert np.all(alone == 64)


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_lossless_codec_sends_the_delta_and_keeps_nothing(seed: int) -> None:
    deltas = deltas_of(seed, 3, -120)
    sent, residual = seal(deltas, Recipe())
    for found, delta in zip(sent, deltas, strict=True):
        assert found.tobytes() == delta.tobytes()
    assert not residual.any()

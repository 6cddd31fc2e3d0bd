"""The law of error feedback for every lossy codec: what arrived and what is owed are the sum of what was meant, exactly."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import codecs, feedback
from shared.layout import Layout

SHAPES = {"a.lora_A.weight": (3, 40), "a.lora_B.weight": (24, 3), "head.weight": (2, 9)}
LOSSY = [codec for codec in codecs.CODECS if codecs.is_lossy(codec)]


def layout_of(codec: str) -> Layout:
    plain = Layout.of({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()})
    return plain.written_as(codecs.dtype(codec, 0.1))


def meant(seed: int, rounds: int) -> list[dict[str, np.ndarray]]:
    """Numbers of sizes 2^-14 to 1, multiples of 2^-40: every sum below needs fewer than float64's 53 bits."""
    rng = np.random.default_rng(seed)
    return [
        {
            name: (
                np.round(rng.uniform(-1, 1, shape) * np.exp2(rng.integers(-14, 1, shape)) * 2.0**20) / 2.0**20
            ).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        for _ in range(rounds)
    ]


def exact(arrays: list[np.ndarray]) -> list[Fraction]:
    return [sum((Fraction(float(array.flat[i])) for array in arrays), Fraction()) for i in range(arrays[0].size)]


@pytest.mark.parametrize("codec", LOSSY)
@given(seed=st.integers(0, 2**32), rounds=st.integers(1, 8))
@settings(max_examples=15, deadline=None)
def test_what_arrived_and_what_is_owed_are_the_sum_of_what_was_meant_exactly(
    codec: str, seed: int, rounds: int
) -> None:
    layout, values = layout_of(codec), meant(seed, rounds)
    arrived, residual = [], {}
    for number, value in enumerate(values):
        sent = feedback.send(layout, value, residual, bytes([number]))
        arrived.append(layout.split(sent.payload))
        residual = sent.residual
    for name in SHAPES:
        assert exact([*(a[name] for a in arrived), residual[name]]) == exact([v[name] for v in values])


@pytest.mark.parametrize("codec", LOSSY)
def test_what_is_owed_does_not_pile_up(codec: str) -> None:
    """The same change again and again: each codec keeps back a bounded multiple of it, however many rounds there are."""
    layout, value = layout_of(codec), meant(0, 1)[0]
    residual: dict[str, np.ndarray] = {}
    norms = []
    for number in range(200):
        residual = feedback.send(layout, value, residual, number.to_bytes(2, "little")).residual
        norms.append(np.sqrt(sum(float(np.sum(owed**2)) for owed in residual.values())))
    assert max(norms[100:]) <= 1.5 * max(norms[:100])


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_what_does_not_travel_in_a_round_stays_owed(seed: int) -> None:
    first, second = meant(seed, 2)
    layout = layout_of("int4")
    residual = feedback.send(layout, first, {}, b"1").residual
    part = layout.only(lambda name: "lora_A" not in name)
    after = feedback.send(part, {spec.name: second[spec.name] for spec in part.tensors}, residual, b"2").residual
    np.testing.assert_array_equal(after["a.lora_A.weight"], residual["a.lora_A.weight"])
    assert after.keys() == SHAPES.keys()

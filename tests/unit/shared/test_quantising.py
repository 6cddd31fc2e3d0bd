"""Quantisation against numbers worked by hand and against closed forms of its error."""

import math
from dataclasses import replace

import numpy as np
import pytest

from shared.errors import InvalidAdapter
from shared.quantising import COMPONENTS, GROUPS, WHOLE, Quantised, from_bfloat16, to_bfloat16, uniform

INT8, INT4 = Quantised(levels=127, error=0.015), Quantised(levels=7, error=0.2)


def back(codec: Quantised, array: np.ndarray, seed: bytes = b"") -> np.ndarray:
    return codec.decode(codec.encode(array, seed), array.shape)


def test_whole_multiples_of_the_scale_come_back_exactly() -> None:
    """max / levels is a bfloat16 here, so nothing is rounded."""
    for codec in (replace(codec, kinds=(WHOLE,)) for codec in (INT8, INT4)):
        numbers = np.arange(-codec.levels, codec.levels + 1, dtype=np.float32) * np.float32(0.375)
        np.testing.assert_array_equal(back(codec, numbers), numbers)


def test_int4_bytes_by_hand() -> None:
    """Scale 7/7 = 1.0 (bfloat16 0x3F80); 7, -7, 1 in two's complement are 7, 9, 1; the first of two is the lower half."""
    assert INT4.encode(np.array([7, -7, 1], np.float32), b"") == bytes([WHOLE, 0x80, 0x3F, 0x97, 0x01])


def test_int8_bytes_by_hand() -> None:
    assert INT8.encode(np.array([127, -127, 3], np.float32), b"") == bytes([WHOLE, 0x80, 0x3F, 127, 0x81, 3])


@pytest.mark.parametrize("codec", [replace(codec, kinds=(WHOLE,)) for codec in (INT8, INT4)])
def test_rounding_is_at_random_with_the_number_as_its_mean(codec: Quantised) -> None:
    """x = (k + f) s is k s with probability 1 - f and (k + 1) s with f: mean x, standard error s sqrt(f (1 - f) / n)."""
    numbers = np.full(40_001, 0.3, np.float32)
    numbers[0] = codec.levels  # scale 1
    found = back(codec, numbers, b"seed")[1:]
    assert set(np.unique(found)) == {0.0, 1.0}
    assert abs(found.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 40_000)


def test_another_seed_rounds_otherwise() -> None:
    numbers = np.random.default_rng(0).standard_normal((8, 100)).astype(np.float32)
    assert INT8.encode(numbers, b"a") == INT8.encode(numbers, b"a") != INT8.encode(numbers, b"b")


@pytest.mark.parametrize("codec", [INT8, INT4])
@pytest.mark.parametrize("shape", [(8, 768), (768, 8), (2, 1536), (96, 96)])
def test_gaussian_tensors_keep_the_stated_error(codec: Quantised, shape: tuple[int, ...]) -> None:
    numbers = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    lost = np.linalg.norm(back(codec, numbers, b"x") - numbers) / np.linalg.norm(numbers)
    assert lost <= codec.error * 1.02


def kind(codec: Quantised, array: np.ndarray) -> int:
    return codec.encode(array, b"")[0]


def test_the_fewest_bytes_that_keep_the_stated_error_are_taken() -> None:
    """One scale where all numbers are alike; one for each rank component where components differ; groups where neighbours do."""
    rng = np.random.default_rng(2)
    alike = rng.uniform(0.5, 1.0, (8, 256)).astype(np.float32)
    assert kind(INT8, alike) == WHOLE
    assert len(INT8.encode(alike, b"")) == 1 + 2 + alike.size
    codec = Quantised(levels=127, error=0.005)
    components = alike * np.geomspace(1, 30, 8).astype(np.float32)[:, None]
    for tensor in (components, np.ascontiguousarray(components.T)):
        assert kind(codec, tensor) == COMPONENTS
        assert len(codec.encode(tensor, b"")) == 1 + 2 * 8 + tensor.size
    neighbours = alike * np.where(np.arange(256) < 64, 30, 1).astype(np.float32)
    tight = Quantised(levels=127, error=0.0045)
    assert kind(tight, neighbours) == GROUPS
    assert len(tight.encode(neighbours, b"")) == 1 + 2 * 32 + neighbours.size


def test_a_component_is_a_row_of_a_and_a_column_of_b() -> None:
    """Components of sizes 1 and 1000 in one tensor: with a scale each, the small one keeps its own relative precision."""
    codec = Quantised(levels=127, error=0.0, kinds=(COMPONENTS,))
    a = np.stack([np.linspace(0.1, 1, 50), np.linspace(100, 1000, 50)]).astype(np.float32)
    for tensor in (a, np.ascontiguousarray(a.T)):
        assert np.max(np.abs(back(codec, tensor) / tensor - 1)) < 0.1


def test_zeros_stay_zeros_and_the_least_float_is_not_lost_to_infinity() -> None:
    for codec in (INT8, INT4):
        assert not back(codec, np.zeros((3, 5), np.float32)).any()
        tiny = np.full((3, 5), 1e-45, np.float32)
        assert np.isfinite(back(codec, tiny)).all()


def test_a_number_that_no_scale_can_hold_is_not_finite_afterwards() -> None:
    """Both ends refuse what is not finite, by name."""
    for value in (np.inf, -np.inf, np.nan):
        assert not np.isfinite(back(INT8, np.array([value, 1], np.float32))).all()


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (INT8, b""),
        (INT8, bytes([3, 0, 0, 1, 1, 1])),
        (INT8, bytes([WHOLE, 0x80, 0x3F, 1, 1])),
        (INT8, bytes([WHOLE, 0x80, 0x3F, 1, 1, 0x80])),  # -128
        (INT4, bytes([WHOLE, 0x80, 0x3F, 0x88, 0x08])),  # -8
        (INT4, bytes([WHOLE, 0x80, 0x3F, 0x11, 0x11])),  # something after the last number
    ],
)
def test_bytes_that_no_tensor_has_are_refused(codec: Quantised, data: bytes) -> None:
    with pytest.raises(InvalidAdapter):
        codec.decode(data, (3,))


def test_the_random_numbers_are_those_of_philox_on_every_machine() -> None:
    """Recorded once; numpy promises the raw stream of a bit generator, so another value is a break of what sites agreed to."""
    assert [float(value).hex() for value in uniform(b"med-duallora", 2)] == PHILOX
    assert 0.48 < uniform(b"", 100_000).mean() < 0.52


PHILOX = ["0x1.0f1edb2708c40p-6", "0x1.51370eb174afdp-1"]


def test_a_scale_is_never_below_the_largest_number_over_the_levels() -> None:
    """Else the largest would be cut off: to_bfloat16 alone rounds half of all numbers down."""
    for largest in np.random.default_rng(3).uniform(1e-6, 1e6, 500).astype(np.float32):
        codec = Quantised(levels=127, error=1.0)
        data = codec.encode(np.array([largest], np.float32), b"")
        scale = from_bfloat16(np.frombuffer(data[1:3], "<u2"))[0]
        assert scale * 127 >= largest * (1 - 1e-6)
        assert scale <= from_bfloat16(to_bfloat16(np.float32([largest / 127])))[0] * (1 + 2**-7)

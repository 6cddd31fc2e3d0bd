"""The stream: ChaCha20 as published, a function of key and step, and numbers that are uniform and normal."""

import numpy as np
import pytest
from scipy import stats

from site_agent.privacy.stream import NOISE, SAMPLING, Stream
from tests.support.private_site import stream

COUNT = 200_000
LEAST_P = 1e-4
"""The numbers are fixed by their keys, so a test that holds once holds always."""


def test_it_is_chacha20_as_rfc_8439_prints_it():
    """RFC 8439, appendix A.1, test vector 1: key and nonce of zeros, counter 0."""
    printed = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    drawn = Stream(bytes(32)).uniforms(SAMPLING, 0, 4)
    expected = [((int.from_bytes(printed[8 * i : 8 * i + 8], "little") >> 11) + 1) / 2**53 for i in range(4)]
    assert drawn.tolist() == expected


def test_the_same_key_and_step_give_the_same_numbers_and_nothing_else_does():
    one = stream().normals(NOISE, 5, 100)
    assert np.array_equal(one, stream().normals(NOISE, 5, 100))
    others = [stream(2).normals(NOISE, 5, 100), stream().normals(NOISE, 6, 100), stream().normals(SAMPLING, 5, 100)]
    assert all(not np.any(one == other) for other in others)
    assert np.array_equal(stream().uniforms(NOISE, 5, 100), stream().uniforms(NOISE, 5, 200)[:100])


def test_uniforms_are_uniform_and_never_zero():
    drawn = stream(3).uniforms(SAMPLING, 1, COUNT)
    assert 0 < drawn.min() <= drawn.max() <= 1
    assert stats.kstest(drawn, "uniform").pvalue > LEAST_P


@pytest.mark.parametrize("step", [0, 1, 1000])
def test_normals_are_normal(step):
    drawn = stream(4).normals(NOISE, step, COUNT)
    assert stats.kstest(drawn, "norm").pvalue > LEAST_P
    assert drawn.mean() == pytest.approx(0, abs=4 / COUNT**0.5)
    assert drawn.var() == pytest.approx(1, abs=4 * (2 / COUNT) ** 0.5)
    neighbours = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
    assert abs(neighbours) < 4 / COUNT**0.5


def test_a_fresh_key_is_another_one_every_time_and_is_not_shown():
    one, other = Stream.fresh(), Stream.fresh()
    assert one.key != other.key
    assert one.key.hex() not in repr(one)
    assert one.id != other.id
    assert len(one.id) == 32


def test_a_key_of_another_length_is_none():
    with pytest.raises(ValueError, match="32 bytes, got 16"):
        Stream(bytes(16))

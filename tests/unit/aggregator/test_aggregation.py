"""Aggregation against hand-worked cases and dense linear algebra."""

import numpy as np
import pytest

from aggregator import aggregation, diagnostics
from aggregator.rules import Finish
from shared.errors import InputError
from shared.forms import moved
from shared.layout import Layout, TensorSpec
from tests.support import adapters


def stream(tensors: dict[str, np.ndarray]) -> list[tuple[TensorSpec, np.ndarray]]:
    return [(spec, tensors[spec.name]) for spec in Layout.of(tensors).tensors]


def mean_of(deltas: list[np.ndarray], weight: list[float]) -> np.ndarray:
    """The weighted mean as a round takes it, before it is applied."""
    sites = [f"s{k}" for k in range(len(deltas))]
    streams = {site: iter(stream({"x": delta})) for site, delta in zip(sites, deltas, strict=True)}
    made, _ = aggregation.aggregate(
        {"x": np.zeros_like(deltas[0])}, streams, dict(zip(sites, weight, strict=True)), lambda _, mean: mean
    )
    return made["x"]


def onto(base: dict[str, np.ndarray]) -> Finish:
    """What a round does with a mean by default."""
    return lambda name, mean: moved(base[name], mean)


def test_a_hand_worked_2x2_case() -> None:
    """base + 1 * (0.25 * d1 + 0.75 * d2), in numbers float32 holds exactly."""
    base = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    first = np.array([[4.0, 0.0], [0.0, 8.0]], np.float32)
    second = np.array([[0.0, 4.0], [8.0, 0.0]], np.float32)
    mean = moved(base, mean_of([first, second], [0.25, 0.75]))
    np.testing.assert_array_equal(mean, np.array([[2.0, 5.0], [9.0, 6.0]], np.float32))
    half = moved(base, 0.5 * mean_of([first, second], [0.25, 0.75]))
    np.testing.assert_array_equal(half, np.array([[1.5, 3.5], [6.0, 5.0]], np.float32))
    assert mean.dtype == np.float32


def test_sums_are_kept_in_double_precision() -> None:
    """2^24 + 1 - 2^24 is 1; a float32 sum would lose it."""
    deltas = [np.array([x], np.float32) for x in (2.0**24, 1.0, -(2.0**24))]
    assert mean_of(deltas, [1.0, 1.0, 1.0])[0] == 1.0


def test_weights_follow_patients_or_are_uniform() -> None:
    patients = {"siemens": 273, "philips": 125, "ge": 77, "canon": 50}
    weights = aggregation.weights(patients, "patients")
    assert list(weights) == ["canon", "ge", "philips", "siemens"]
    assert weights["siemens"] == 273 / 525
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-15)
    assert set(aggregation.weights(patients, "uniform").values()) == {0.25}
    with pytest.raises(InputError, match="weighting 'median'"):
        aggregation.weights(patients, "median")


def test_capped_weights_by_hand() -> None:
    """The median of 50, 77, 125 and 273 is 101; with a cap of 1 the two above it count as 101, with one of 2 as 125 and 202."""
    patients = {"siemens": 273, "philips": 125, "ge": 77, "canon": 50}
    once = aggregation.weights(patients, "capped", 1.0)
    assert once == {"canon": 50 / 329, "ge": 77 / 329, "philips": 101 / 329, "siemens": 101 / 329}
    twice = aggregation.weights(patients, "capped", 2.0)
    assert twice == {"canon": 50 / 454, "ge": 77 / 454, "philips": 125 / 454, "siemens": 202 / 454}
    assert aggregation.weights(patients, "capped", 100.0) == aggregation.weights(patients, "patients")


def test_any_order_of_arrival_gives_the_same_bytes() -> None:
    base = adapters.tensors()
    updates = {
        site: {n: (adapters.tensors(k)[n] * 0.1).astype(np.float32) for n in base} for k, site in enumerate("abc")
    }
    weight = {"a": 0.5, "b": 0.3, "c": 0.2}
    results = []
    for order in ("abc", "cba", "bca"):
        deltas = {site: iter(stream(updates[site])) for site in order}
        tensors, _ = aggregation.aggregate(base, deltas, weight, onto(base))
        results.append(Layout.of(tensors).join(tensors))
    assert results[0] == results[1] == results[2]


def test_the_aggregation_error_equals_the_dense_computation() -> None:
    rng = np.random.default_rng(3)
    a = [rng.standard_normal((3, 7)).astype(np.float32) for _ in range(4)]
    b = [rng.standard_normal((5, 3)).astype(np.float32) for _ in range(4)]
    weight = [0.1, 0.2, 0.3, 0.4]
    ideal = sum(w * y.astype(float) @ x.astype(float) for w, x, y in zip(weight, a, b, strict=True))
    mean_a = sum(w * x.astype(float) for w, x in zip(weight, a, strict=True))
    mean_b = sum(w * y.astype(float) for w, y in zip(weight, b, strict=True))
    gap, norm = diagnostics.aggregation_error(a, b, weight)
    assert gap == pytest.approx(np.sum((ideal - mean_b @ mean_a) ** 2), rel=1e-10)
    assert norm == pytest.approx(np.sum(ideal**2), rel=1e-12)


def test_sites_with_equal_factors_have_no_aggregation_error() -> None:
    a, b = np.eye(2, 4, dtype=np.float32), np.ones((3, 2), np.float32)
    gap, norm = diagnostics.aggregation_error([a, a, a], [b, b, b], [0.5, 0.25, 0.25])
    assert gap == pytest.approx(0.0, abs=1e-12)
    assert norm == pytest.approx(6.0)


def test_diagnostics_use_the_trained_factors_and_not_the_deltas() -> None:
    """Two sites, rank 1, all by hand: A = A0 + dA, B = B0 + dB."""
    base = {"m.lora_A.weight": np.array([[1.0, 0.0]], np.float32), "m.lora_B.weight": np.zeros((1, 1), np.float32)}
    one = {"m.lora_A.weight": np.array([[0.0, 1.0]], np.float32), "m.lora_B.weight": np.ones((1, 1), np.float32)}
    two = {"m.lora_A.weight": np.array([[0.0, -1.0]], np.float32), "m.lora_B.weight": np.zeros((1, 1), np.float32)}
    deltas = {"a": iter(stream(one)), "b": iter(stream(two))}
    _, figures = aggregation.aggregate(base, deltas, {"a": 0.5, "b": 0.5}, onto(base))
    # products: [1, 1] and [0, 0], mean [0.5, 0.5]; averaged factors: 0.5 * [1, 0]; gap [0, 0.5]
    assert figures["aggregation_error"] == pytest.approx(0.5 / np.sqrt(0.5))
    assert figures["update_norm/a"] == pytest.approx(np.sqrt(2.0))
    assert figures["update_norm/b"] == pytest.approx(1.0)
    assert figures["cosine/a/b"] == pytest.approx(-1.0 / np.sqrt(2.0))


def test_an_update_of_zeros_is_no_division_by_zero() -> None:
    base = adapters.tensors()
    nothing = {name: np.zeros_like(array) for name, array in base.items()}
    tensors, figures = aggregation.aggregate(
        base, {s: iter(stream(nothing)) for s in "ab"}, {"a": 0.5, "b": 0.5}, onto(base)
    )
    assert figures["cosine/a/b"] == 0.0
    assert "aggregation_error" not in figures  # every product is zero: the ratio says nothing
    for name, array in base.items():
        np.testing.assert_array_equal(tensors[name], array)


def test_with_very_many_sites_only_norms_are_kept() -> None:
    base = {"head.weight": np.zeros(3, np.float32)}
    sites = [f"s{k:03}" for k in range(aggregation.MAX_DIAGNOSED_SITES + 1)]
    deltas = {s: iter(stream({"head.weight": np.full(3, 2.0, np.float32)})) for s in sites}
    tensors, figures = aggregation.aggregate(base, deltas, dict.fromkeys(sites, 1 / len(sites)), onto(base))
    np.testing.assert_allclose(tensors["head.weight"], 2.0, rtol=1e-6)
    assert set(figures) == {f"update_norm/{s}" for s in sites}
    assert figures["update_norm/s000"] == pytest.approx(np.sqrt(12.0))

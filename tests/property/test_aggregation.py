"""Laws of the weighted mean and of its diagnostics."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aggregator import aggregation, diagnostics, payload
from shared.forms import moved
from shared.layout import Layout, TensorSpec
from tests.support import adapters

values = st.floats(-1e3, 1e3, width=32)
patients = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=4), st.integers(1, 10_000), min_size=1, max_size=6)


def stream(tensors: dict[str, np.ndarray]) -> list[tuple[TensorSpec, np.ndarray]]:
    return [(spec, tensors[spec.name]) for spec in Layout.of(tensors).tensors]


def mean_of(deltas: list[np.ndarray], weight: list[float]) -> np.ndarray:
    sites = [f"s{k}" for k in range(len(deltas))]
    streams = {site: iter(stream({"x": delta})) for site, delta in zip(sites, deltas, strict=True)}
    made, _ = aggregation.aggregate(
        {"x": np.zeros_like(deltas[0])}, streams, dict(zip(sites, weight, strict=True)), lambda _, mean: mean
    )
    return made["x"]


@given(patients, st.sampled_from(("patients", "capped", "uniform")))
def test_weights_sum_to_one_and_grow_with_patients(counts: dict[str, int], weighting: str) -> None:
    found = aggregation.weights(counts, weighting)
    assert list(found) == sorted(counts)
    assert abs(sum(found.values()) - 1.0) < 1e-12
    ordered = sorted(counts, key=lambda s: counts[s])
    assert all(found[a] <= found[b] for a, b in pairwise(ordered))


@given(st.data(), patients)
def test_the_weighted_mean_is_kept(data: st.DataObject, counts: dict[str, int]) -> None:
    """mean(base + delta_k) computed directly in double precision."""
    shape = (3, 2)
    base = data.draw(hnp.arrays(np.float32, shape, elements=values))
    deltas = [data.draw(hnp.arrays(np.float32, shape, elements=values)) for _ in counts]
    weight = list(aggregation.weights(counts, "patients").values())
    found = moved(base, mean_of(deltas, weight))
    expected = sum(w * (base.astype(float) + d.astype(float)) for w, d in zip(weight, deltas, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-3 * 2**-10)


@given(st.data(), st.integers(1, 5))
def test_equal_deltas_are_their_own_mean(data: st.DataObject, sites: int) -> None:
    delta = data.draw(hnp.arrays(np.float32, (4,), elements=values))
    weight = list(aggregation.weights({str(k): 1 + k for k in range(sites)}, "patients").values())
    found = mean_of([delta] * sites, weight)
    np.testing.assert_allclose(found, delta, rtol=1e-6)


@given(st.permutations("abcd"), st.integers(0, 2**31))
def test_the_order_of_arrival_never_changes_a_bit(order: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = adapters.tensors()
    updates = {s: {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in base.items()} for s in "abcd"}
    weight = aggregation.weights(dict(zip("abcd", rng.integers(1, 300, 4).tolist(), strict=True)), "patients")

    def result(sites: list[str]) -> bytes:
        tensors, _ = aggregation.aggregate(
            base, {s: iter(stream(updates[s])) for s in sites}, weight, lambda name, mean: moved(base[name], mean)
        )
        return Layout.of(tensors).join(tensors)

    assert result(order) == result(list("abcd"))


@given(st.integers(2, 9), st.integers(0, 2**31))
def test_many_sites_are_summed_to_the_same_bytes_as_few(sites: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = adapters.tensors()
    names = [f"s{k}" for k in range(sites)]
    updates = {s: {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in base.items()} for s in names}
    weight = aggregation.weights(dict(zip(names, rng.integers(1, 300, sites).tolist(), strict=True)), "patients")

    def half(name: str, mean: np.ndarray) -> np.ndarray:
        return moved(base[name], 0.5 * mean)

    def result(diagnosed: int) -> tuple[bytes, dict[str, float]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(aggregation, "MAX_DIAGNOSED_SITES", diagnosed)
            tensors, figures = aggregation.aggregate(base, {s: iter(stream(updates[s])) for s in names}, weight, half)
        return Layout.of(tensors).join(tensors), {k: v for k, v in figures.items() if k.startswith("update_norm/")}

    (together, norms), (one_by_one, same_norms) = result(sites), result(sites - 1)
    assert together == one_by_one
    assert norms == pytest.approx(same_norms, rel=1e-12)


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 4))
def test_the_gram_identity_equals_dense_norms(seed: int, sites: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    a = [rng.standard_normal((rank, 6)).astype(np.float32) for _ in range(sites)]
    b = [rng.standard_normal((5, rank)).astype(np.float32) for _ in range(sites)]
    weight = rng.dirichlet(np.ones(sites)).tolist()
    ideal = sum(w * y.astype(float) @ x.astype(float) for w, x, y in zip(weight, a, b, strict=True))
    mean_a = sum(w * x.astype(float) for w, x in zip(weight, a, strict=True))
    mean_b = sum(w * y.astype(float) for w, y in zip(weight, b, strict=True))
    gap, norm = diagnostics.aggregation_error(a, b, weight)
    np.testing.assert_allclose(norm, np.sum(ideal**2), rtol=1e-9)
    np.testing.assert_allclose(gap, np.sum((ideal - mean_b @ mean_a) ** 2), rtol=1e-7, atol=1e-12 * max(norm, 1.0))


@given(st.integers(0, 2**31), st.lists(st.integers(1, 97), max_size=30))
def test_a_payload_cut_anywhere_gives_the_same_tensors(seed: int, cuts: list[int]) -> None:
    layout = Layout.of(adapters.tensors())
    data = adapters.delta(layout, seed)
    pieces, start = [], 0
    for size in cuts:
        pieces.append(data[start : start + size])
        start += size
    found = dict(payload.tensors(layout, [*pieces, data[start:]] if start < len(data) else [p for p in pieces if p]))
    expected = layout.split(data)
    assert {spec.name for spec in found} == expected.keys()
    for spec, array in found.items():
        np.testing.assert_array_equal(array, expected[spec.name])

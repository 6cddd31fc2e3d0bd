"""Laws of the rules that aggregate products, for any shapes, ranks and weights."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aggregator import aggregation, products
from aggregator.products import LowRank
from shared.forms import moved
from shared.layout import Layout, TensorSpec
from shared.methods import Rule

A, B, RA, RB = (f"m.lora_{which}.weight" for which in ("A", "B", "residual_A", "residual_B"))
sizes = st.integers(1, 9)
Tensors = dict[str, np.ndarray]


def drawn(rng: np.random.Generator, out: int, columns: int, rank: int, names: tuple[str, str] = (A, B)) -> Tensors:
    shapes = ((rank, columns), (out, rank))
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in zip(names, shapes, strict=True)}


def stream(tensors: Tensors) -> list[tuple[TensorSpec, np.ndarray]]:
    return [(spec, tensors[spec.name]) for spec in Layout.of(tensors).tensors]


def round_of(rule: Rule, parent: Tensors, sent: list[Tensors], weight: list[float]) -> tuple[Tensors, dict[str, float]]:
    streams = {f"s{k:02}": iter(stream(tensors)) for k, tensors in enumerate(sent)}
    shares = {f"s{k:02}": share for k, share in enumerate(weight)}
    made, figures = aggregation.aggregate(parent, streams, shares, lambda name, mean: moved(parent[name], mean), rule)
    return {**parent, **made}, figures


def product(tensors: Tensors, names: tuple[str, str] = (A, B)) -> np.ndarray:
    return tensors[names[1]].astype(float) @ tensors[names[0]].astype(float)


def mean_product(parent: Tensors, sent: list[Tensors], weight: list[float]) -> np.ndarray:
    trained = ({n: parent[n].astype(float) + delta[n] for n in (A, B)} for delta in sent)
    return np.sum([share * product(site) for share, site in zip(weight, trained, strict=True)], axis=0)


@given(st.integers(0, 2**31), sizes, sizes, st.integers(1, 6), st.integers(1, 5))
def test_products_are_as_near_as_their_rank_allows(seed: int, out: int, columns: int, rank: int, sites: int) -> None:
    rng = np.random.default_rng(seed)
    parent, sent = drawn(rng, out, columns, rank), [drawn(rng, out, columns, rank) for _ in range(sites)]
    weight = rng.dirichlet(np.ones(sites)).tolist()
    made, figures = round_of("products", parent, sent, weight)
    wanted = mean_product(parent, sent, weight)
    s = np.linalg.svd(wanted, compute_uv=False)
    least, scale = np.linalg.norm(s[rank:]), np.linalg.norm(s)
    assert abs(np.linalg.norm(product(made) - wanted) - least) <= 1e-6 * scale
    assert abs(figures["aggregation_error"] - least / scale) <= 1e-6
    assert made[A].shape == parent[A].shape
    assert (np.abs(made[A]).sum(axis=1) > 0).all()  # every direction can be trained


@given(st.integers(0, 2**31), sizes, sizes, st.integers(1, 4), st.integers(1, 5))
def test_exact_loses_nothing_where_the_residual_has_room(
    seed: int, out: int, columns: int, rank: int, sites: int
) -> None:
    rng = np.random.default_rng(seed)
    room = min(out, columns)
    parent = drawn(rng, out, columns, rank) | drawn(rng, out, columns, room, (RA, RB))
    sent = [drawn(rng, out, columns, rank) for _ in range(sites)]
    weight = rng.dirichlet(np.ones(sites)).tolist()
    made, figures = round_of("exact", parent, sent, weight)
    wanted = mean_product(parent, sent, weight) + product(parent, (RA, RB))
    found = product(made) + product(made, (RA, RB))
    scale = np.linalg.norm(mean_product(parent, sent, weight)) + np.linalg.norm(product(parent, (RA, RB)))
    assert np.linalg.norm(found - wanted) <= 1e-6 * max(scale, np.linalg.norm(product(made)))
    assert figures["aggregation_error"] * np.linalg.norm(mean_product(parent, sent, weight)) <= 1e-5 * max(
        scale, np.linalg.norm(product(made))
    )


@given(st.integers(0, 2**31), sizes, sizes, st.integers(1, 20), st.integers(1, 9))
def test_no_other_matrix_of_that_rank_is_nearer(seed: int, out: int, columns: int, rank: int, kept: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = LowRank(rng.standard_normal((rank, columns)), rng.standard_normal((out, rank)))
    found = products.truncated(matrix, kept)
    s = np.linalg.svd(matrix.b @ matrix.a, compute_uv=False)
    error = np.linalg.norm(matrix.b @ matrix.a - found.b @ found.a)
    assert abs(error - np.linalg.norm(s[kept:])) <= 1e-10 * max(s[0], 1.0)

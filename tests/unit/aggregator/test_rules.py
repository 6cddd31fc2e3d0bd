"""The rules that aggregate products, by what must be true of them: identities, symmetries, and dense matrices."""

import tracemalloc
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest

from aggregator import aggregation
from shared.forms import moved
from shared.layout import Layout, TensorSpec
from shared.methods import Rule

MODULE, HEAD = "base_model.model.encoder.blocks.1.attn.q", "base_model.model.pred_head_dict.cls.weight"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"
RA, RB = f"{MODULE}.lora_residual_A.weight", f"{MODULE}.lora_residual_B.weight"
OUT, IN, RANK = 24, 18, 3
RULES: tuple[Rule, ...] = ("factors", "products", "exact")
Tensors = dict[str, np.ndarray]


def base(seed: int = 0, residual: int = IN) -> Tensors:
    """A version in the middle of training: both factors and, if it has a rank, the residual are there."""
    rng = np.random.default_rng(seed)
    made = {A: rng.standard_normal((RANK, IN)), B: rng.standard_normal((OUT, RANK)), HEAD: rng.standard_normal((2, 5))}
    if residual:
        made |= {RA: 0.3 * rng.standard_normal((residual, IN)), RB: 0.3 * rng.standard_normal((OUT, residual))}
    return {name: array.astype(np.float32) for name, array in made.items()}


def deltas(sites: int, seed: int = 1, scale: float = 0.3) -> list[Tensors]:
    rng = np.random.default_rng(seed)
    shapes = {A: (RANK, IN), B: (OUT, RANK), HEAD: (2, 5)}
    return [
        {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(sites)
    ]


def stream(tensors: Mapping[str, np.ndarray]) -> list[tuple[TensorSpec, np.ndarray]]:
    return [(spec, tensors[spec.name]) for spec in Layout.of(tensors).tensors]


def run(
    rule: Rule, parent: Tensors, sent: Sequence[Tensors], weight: Sequence[float], order: Sequence[int] | None = None
) -> tuple[Tensors, dict[str, float]]:
    """Return the whole next version; sites are named in `order`."""
    names = [f"s{k:04}" for k in (order or range(len(sent)))]
    streams = {name: iter(stream(tensors)) for name, tensors in zip(names, sent, strict=True)}
    shares = dict(zip(names, weight, strict=True))
    made, figures = aggregation.aggregate(parent, streams, shares, lambda name, mean: moved(parent[name], mean), rule)
    return {**parent, **made}, figures


def product(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """B A and the residual where there is one: what the layer adds to W0, but for its scale."""
    whole = tensors[B].astype(float) @ tensors[A].astype(float)
    return whole + tensors[RB].astype(float) @ tensors[RA].astype(float) if RA in tensors else whole


def trained(parent: Tensors, delta: Tensors) -> Tensors:
    """What a site has at the end of the round, in double precision."""
    return {**parent, **{name: parent[name].astype(float) + delta[name].astype(float) for name in delta}}


def mean_product(parent: Tensors, sent: Sequence[Tensors], weight: Sequence[float]) -> np.ndarray:
    """sum_k w_k (B_k A_k + residual), dense."""
    return np.sum([w * product(trained(parent, delta)) for w, delta in zip(weight, sent, strict=True)], axis=0)


def apart(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.linalg.norm(one - two) / np.linalg.norm(two))


WEIGHT = [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("rule", RULES)
def test_sites_that_agree_aggregate_to_themselves(rule: Rule) -> None:
    parent, delta = base(), deltas(1)[0]
    made, figures = run(rule, parent, [delta] * 4, WEIGHT)
    assert apart(product(made), product(trained(parent, delta))) < 1e-6
    np.testing.assert_allclose(made[HEAD], trained(parent, delta)[HEAD], rtol=1e-6)
    assert figures["aggregation_error"] < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_the_head_is_averaged_plainly_under_every_rule(rule: Rule) -> None:
    parent, sent = base(), deltas(4)
    made, _ = run(rule, parent, sent, WEIGHT)
    expected = parent[HEAD] + sum(w * d[HEAD].astype(float) for w, d in zip(WEIGHT, sent, strict=True))
    np.testing.assert_allclose(made[HEAD], expected, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_who_is_called_what_changes_nothing(rule: Rule) -> None:
    parent, sent = base(), deltas(4)
    one, _ = run(rule, parent, sent, WEIGHT)
    two, _ = run(rule, parent, sent, WEIGHT, order=(2, 0, 3, 1))
    assert apart(product(two), product(one)) < 1e-6


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sites", [4, aggregation.MAX_DIAGNOSED_SITES + 5])
def test_the_order_of_arrival_changes_no_bit(rule: Rule, sites: int) -> None:
    parent, sent = base(), deltas(sites)
    names, weight = [f"s{k:04}" for k in range(sites)], [1 / sites] * sites
    found = []
    for order in (range(sites), reversed(range(sites))):
        streams = {names[k]: iter(stream(sent[k])) for k in order}
        shares = dict(zip(names, weight, strict=True))
        made, _ = aggregation.aggregate(parent, streams, shares, lambda name, mean: moved(parent[name], mean), rule)
        found.append(Layout.of(made).join(made))
    assert found[0] == found[1]


@pytest.mark.parametrize("rule", RULES)
def test_many_sites_are_aggregated_to_the_same_bytes_as_few(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, sent, weight = base(), deltas(9), [1 / 9] * 9
    together, figures = run(rule, parent, sent, weight)
    monkeypatch.setattr(aggregation, "MAX_DIAGNOSED_SITES", 8)
    one_by_one, fewer = run(rule, parent, sent, weight)
    assert Layout.of(together).join(together) == Layout.of(one_by_one).join(one_by_one)
    if rule != "factors":
        assert fewer["aggregation_error"] == figures["aggregation_error"]
        assert fewer["factor_error"] == figures["factor_error"]


def test_products_are_the_truncated_svd_of_the_dense_mean() -> None:
    parent, sent = base(residual=0), deltas(4)
    made, figures = run("products", parent, sent, WEIGHT)
    u, s, vt = np.linalg.svd(mean_product(parent, sent, WEIGHT))
    assert apart(product(made), (u[:, :RANK] * s[:RANK]) @ vt[:RANK]) < 1e-6
    assert figures["aggregation_error"] == pytest.approx(np.linalg.norm(s[RANK:]) / np.linalg.norm(s), rel=1e-5)


@pytest.mark.parametrize("rule", ["products", "exact"])
def test_what_averaging_factors_would_have_cost_is_said_too(rule: Rule) -> None:
    parent, sent = base(residual=IN if rule == "exact" else 0), deltas(4)
    _, figures = run(rule, parent, sent, WEIGHT)
    plain, plain_figures = run("factors", {n: parent[n] for n in (A, B, HEAD)}, sent, WEIGHT)
    whole = mean_product({n: parent[n] for n in (A, B)}, [{n: d[n] for n in (A, B)} for d in sent], WEIGHT)
    assert figures["factor_error"] == pytest.approx(apart(product(plain), whole), rel=1e-4)
    assert figures["factor_error"] == pytest.approx(plain_figures["aggregation_error"], rel=1e-4)
    assert figures["aggregation_error"] < figures["factor_error"]


def test_exact_is_the_dense_mean_of_products_over_the_rounds() -> None:
    """What the layer computes and the dense matrix that is averaged beside it stay one, round after round."""
    version = {**base(), RA: np.zeros((IN, IN), np.float32), RB: np.zeros((OUT, IN), np.float32)}
    beside = product(version)
    for number in range(5):
        sent = deltas(4, seed=10 + number)
        beside = (
            beside
            - version[B].astype(float) @ version[A].astype(float)
            + sum(w * trained(version, d)[B] @ trained(version, d)[A] for w, d in zip(WEIGHT, sent, strict=True))
        )
        made, figures = run("exact", version, sent, WEIGHT)
        assert figures["aggregation_error"] < 1e-6
        assert figures["factor_error"] > 1e-2  # or there was nothing to make up for
        version = made
        assert apart(product(version), beside) < 1e-6


def test_exact_keeps_the_factors_of_plain_averaging_bit_for_bit() -> None:
    parent, sent = base(), deltas(4)
    exact, plain = (run(rule, parent, sent, WEIGHT)[0] for rule in ("exact", "factors"))
    for name in (A, B, HEAD):
        np.testing.assert_array_equal(exact[name], plain[name])
    np.testing.assert_array_equal(plain[RA], parent[RA])


def test_too_small_a_residual_is_the_best_of_its_rank_and_its_error_is_said() -> None:
    parent, sent = base(residual=2), deltas(4)
    made, figures = run("exact", parent, sent, WEIGHT)
    assert made[RA].shape == (2, IN)
    wanted = mean_product(parent, sent, WEIGHT) - made[B].astype(float) @ made[A].astype(float)
    s = np.linalg.svd(wanted, compute_uv=False)
    found = made[RB].astype(float) @ made[RA].astype(float)
    assert np.linalg.norm(wanted - found) == pytest.approx(np.linalg.norm(s[2:]), rel=1e-5)
    whole = mean_product(parent, sent, WEIGHT) - parent[RB].astype(float) @ parent[RA].astype(float)
    expected = np.linalg.norm(s[2:]) / np.linalg.norm(whole)
    assert expected > 1e-2
    assert figures["aggregation_error"] == pytest.approx(expected, rel=1e-5)


def test_one_site_leaves_no_residual() -> None:
    """What float32 rounds off the factors is nothing to make up for."""
    parent = {**base(), RA: np.zeros((IN, IN), np.float32), RB: np.zeros((OUT, IN), np.float32)}
    made, _ = run("exact", parent, deltas(1), [1.0])
    assert not made[RA].any()
    assert not made[RB].any()


@pytest.mark.parametrize("rule", RULES)
def test_only_plain_averaging_depends_on_how_a_site_writes_its_product(rule: Rule) -> None:
    """B Q and Q^-1 A are the same layer for any invertible Q."""
    parent, sent = base(), deltas(4)
    rng = np.random.default_rng(3)
    turned = []
    for delta in sent:
        site, q = trained(parent, delta), rng.standard_normal((RANK, RANK)) + 2 * np.eye(RANK)
        a, b = np.linalg.solve(q, site[A]), site[B] @ q
        turned.append({**delta, A: (a - parent[A]).astype(np.float32), B: (b - parent[B]).astype(np.float32)})
        assert apart(product(trained(parent, turned[-1])), product(site)) < 1e-6
    one, _ = run(rule, parent, sent, WEIGHT)
    two, _ = run(rule, parent, turned, WEIGHT)
    if rule == "factors":
        assert apart(product(two), product(one)) > 1e-2
    else:
        assert apart(product(two), product(one)) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_with_a_fixed_factor_the_mean_is_the_mean_of_products(rule: Rule) -> None:
    """FFA-LoRA, Sun et al. 2024, arXiv:2403.12313: A does not travel. Such a module is averaged plainly under every rule."""
    parent = base(residual=0)
    sent = [{name: delta[name] for name in (B, HEAD)} for delta in deltas(4)]
    made, _ = run(rule, parent, sent, WEIGHT)
    np.testing.assert_array_equal(made[A], parent[A])
    assert apart(product(made), mean_product(parent, sent, WEIGHT)) < 1e-6


def test_the_mean_of_b_is_the_mean_of_products_in_double_precision() -> None:
    parent = base(residual=0)
    sent = [{B: delta[B]} for delta in deltas(4)]
    streams = {f"s{k}": iter(stream(delta)) for k, delta in enumerate(sent)}
    weight = {f"s{k}": w for k, w in enumerate(WEIGHT)}
    made, _ = aggregation.aggregate(parent, streams, weight, lambda name, mean: parent[name].astype(float) + mean)
    assert apart(product({**parent, B: made[B]}), mean_product(parent, sent, WEIGHT)) < 1e-12


def test_directions_that_nobody_uses_keep_a_gradient() -> None:
    """Products of rank 1 at rank 3: B's other columns are zero, A's other rows are not, as at the start of training."""
    parent = {
        A: np.random.default_rng(1).standard_normal((RANK, IN)).astype(np.float32),
        B: np.zeros((OUT, RANK), np.float32),
    }
    parent |= {HEAD: np.zeros((2, 5), np.float32)}
    one = np.zeros((OUT, RANK), np.float32)
    one[:, 0] = np.linspace(-1, 1, OUT)
    sent = [
        {A: np.zeros((RANK, IN), np.float32), B: share * one, HEAD: np.zeros((2, 5), np.float32)}
        for share in (0.5, 2.0)
    ]
    made, figures = run("products", parent, [{n: a.astype(np.float32) for n, a in d.items()} for d in sent], [0.5, 0.5])
    assert not made[B][:, 1:].any()
    np.testing.assert_array_equal(made[A][1:], parent[A][1:])
    assert apart(product(made), mean_product(parent, sent, [0.5, 0.5])) < 1e-6
    assert figures["aggregation_error"] < 1e-6


def test_a_round_in_which_nothing_moved_leaves_version_0_as_it_is() -> None:
    parent = {A: base()[A], B: np.zeros((OUT, RANK), np.float32)}
    still = {A: np.zeros((RANK, IN), np.float32), B: np.zeros((OUT, RANK), np.float32)}
    made, figures = run("products", parent, [still, still], [0.5, 0.5])
    np.testing.assert_array_equal(made[A], parent[A])
    np.testing.assert_array_equal(made[B], parent[B])
    assert "aggregation_error" not in figures


@pytest.mark.parametrize("rule", ["products", "exact"])
def test_very_many_sites_are_the_dense_mean_too(rule: Rule) -> None:
    """K r is far above the smaller side, so that factors are compressed on the way."""
    sites = 150
    assert sites * RANK > 10 * OUT
    parent, sent = base(residual=IN if rule == "exact" else 0), deltas(sites)
    weight = np.random.default_rng(1).dirichlet(np.ones(sites)).tolist()
    made, _ = run(rule, parent, sent, weight)
    expected = mean_product(parent, sent, weight)
    if rule == "products":
        u, s, vt = np.linalg.svd(expected)
        expected = (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
    assert apart(product(made), expected) < 1e-6


@pytest.mark.parametrize("rule", ["products", "exact"])
def test_memory_does_not_grow_with_the_sites(rule: Rule) -> None:
    parent = base(residual=IN if rule == "exact" else 0)

    def lazily(seed: int) -> Iterator[tuple[TensorSpec, np.ndarray]]:
        yield from stream(deltas(1, seed)[0])

    def peak(sites: int) -> int:
        streams, weight = {f"s{k:04}": lazily(k) for k in range(sites)}, {f"s{k:04}": 1 / sites for k in range(sites)}
        tracemalloc.start()
        aggregation.aggregate(parent, streams, weight, lambda name, mean: moved(parent[name], mean), rule)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)  # what is loaded once
    few, many = peak(100), peak(400)
    uncompressed = 300 * RANK * (OUT + IN) * 8
    assert many - few < 0.25 * uncompressed

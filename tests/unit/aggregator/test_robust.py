"""Robust rules by what must be true of them: dense products, other factors of them, orders, worked examples, attackers."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import optimize

from aggregator import aggregation, results, robust
from shared.compatibility import COUNTED_RULES, FACTOR_RULES, PRODUCT_RULES
from shared.recipe import Recipe
from tests.unit.aggregator import test_rules as dense
from tests.unit.aggregator.test_rules import HEAD, IN, OUT, RANK, A, B, Tensors

SITES, FORGED = 8, 3
"""Eight sites; the one of this number sends what it likes."""


def recipe(rule: str, attackers: int = 1, **parameters: float) -> Recipe:
    counted = attackers if rule in COUNTED_RULES else 0
    return Recipe(robust=rule, attackers=counted, weighting="uniform", **parameters)  # type: ignore[arg-type]


def honest(seed: int = 4, sites: int = SITES, noise: float = 0.1) -> list[Tensors]:
    """Sites that agree on where to go and differ in how far."""
    (common,) = dense.deltas(1, seed)
    own = dense.deltas(sites, seed + 1, noise)
    return [{name: common[name] + one[name] for name in common} for one in own]


def rotated(parent: Tensors, delta: Tensors, seed: int = 9) -> Tensors:
    """The same product, and the same head, in other factors: B R^-1 and R A, R far from orthogonal."""
    turn = 0.5 * np.random.default_rng(seed).standard_normal((RANK, RANK)) + 2 * np.eye(RANK)
    a, b = parent[A].astype(float) + delta[A], parent[B].astype(float) + delta[B]
    made = {A: turn @ a - parent[A], B: b @ np.linalg.inv(turn) - parent[B], HEAD: delta[HEAD]}
    return {name: value.astype(np.float32) for name, value in made.items()}


def times(delta: Tensors, factor: float) -> Tensors:
    return {name: (factor * value).astype(np.float32) for name, value in delta.items()}


def hidden(parent: Tensors, delta: Tensors, length: float = 6e5, seed: int = 0) -> Tensors:
    """An update whose factors are as long as any may be and nearly cancel: Gram matrices of such factors say next to anything, less
    than nothing too, and its product is far longer than any honest one."""
    rng = np.random.default_rng(seed)
    row, column = rng.standard_normal(IN), rng.standard_normal(OUT)
    forged = {name: value.copy() for name, value in delta.items()}
    a, b = parent[A].astype(float), parent[B].astype(float)
    a[:2] = length * row / np.abs(row).max() / 2
    a[1] += 0.05 * rng.standard_normal(IN)
    b[:, 0] = length * column / np.abs(column).max() / 2
    b[:, 1] = -b[:, 0]
    forged[A], forged[B] = (a - parent[A]).astype(np.float32), (b - parent[B]).astype(np.float32)
    return forged


def gram_of(parent: Tensors, sent: Sequence[Tensors]) -> robust.Geometry:
    return robust.geometry(parent, {f"s{k:02}": iter(dense.stream(one)) for k, one in enumerate(sent)})


def seen(points: np.ndarray) -> robust.Geometry:
    """Points in space as if they were products."""
    return robust.Geometry(points @ points.T, np.zeros((len(points), len(points))))


def weights(rule: str, parent: Tensors, sent: Sequence[Tensors], attackers: int = 1) -> np.ndarray:
    return robust.weights(recipe(rule, attackers), gram_of(parent, sent), np.full(len(sent), 1 / len(sent)))


def made(rule: str, parent: Tensors, sent: Sequence[Tensors]) -> tuple[Tensors, np.ndarray]:
    """The version that the rule makes, and its product."""
    one = recipe(rule)
    shares = {f"s{k:02}": 1 / len(sent) for k in range(len(sent))}

    def deltas():
        return {name: iter(dense.stream(delta)) for name, delta in zip(shares, sent, strict=True)}

    if rule in PRODUCT_RULES:
        found = robust.weights(one, robust.geometry(parent, deltas()), list(shares.values()))
        shares = dict(zip(shares, found, strict=True))
    version, _ = aggregation.aggregate(
        parent, deltas(), shares, lambda name, mean: parent[name] + mean, one.rule, robust.cut(one, len(sent))
    )
    return version, version[B].astype(float) @ version[A].astype(float)


# --- what they see ----------------------------------------------------------------------------------------------------


def test_inner_products_are_those_of_dense_matrices_each_half_in_its_own_unit():
    parent, sent = dense.base(residual=0), dense.deltas(5)
    moved = [dense.product(dense.trained(parent, one)) - dense.product(parent) for one in sent]
    heads = [one[HEAD].astype(float) for one in sent]
    expected = 0
    for vectors in (moved, heads):
        flat = np.stack([value.ravel() for value in vectors])
        inner = flat @ flat.T
        expected = expected + inner / np.median(np.diag(inner))
    assert np.allclose(gram_of(parent, sent).whole, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("factor", [A, B])
def test_a_factor_that_does_not_travel_is_the_versions(factor):
    parent, sent = dense.base(residual=0), dense.deltas(5)
    still = [{name: value if name in (factor, HEAD) else 0 * value for name, value in one.items()} for one in sent]
    alone = [{name: one[name] for name in (factor, HEAD)} for one in sent]
    assert np.allclose(gram_of(parent, alone).whole, gram_of(parent, still).whole, rtol=1e-9)


@pytest.mark.parametrize("rule", PRODUCT_RULES)
def test_other_factors_of_the_same_products_change_no_rule_on_products(rule):
    parent, sent = dense.base(residual=0), honest()
    turned = [rotated(parent, one, seed) if seed % 2 else one for seed, one in enumerate(sent)]
    assert np.abs(weights(rule, parent, turned) - weights(rule, parent, sent)).max() < 1e-6
    before, after = made(rule, parent, sent)[1], made(rule, parent, turned)[1]
    assert np.linalg.norm(after - before) < 1e-6 * np.linalg.norm(before)


@pytest.mark.parametrize("rule", [*FACTOR_RULES, "none"])
def test_they_do_change_a_rule_on_factors_and_the_plain_mean(rule):
    parent, sent = dense.base(residual=0), honest()
    turned = [rotated(parent, one, seed) if seed % 2 else one for seed, one in enumerate(sent)]
    before, after = made(rule, parent, sent)[1], made(rule, parent, turned)[1]
    assert np.linalg.norm(after - before) > 0.1 * np.linalg.norm(before)


@pytest.mark.parametrize("rule", PRODUCT_RULES)
def test_the_order_of_sites_changes_nothing_but_the_order(rule):
    parent, sent = dense.base(residual=0), honest()
    order = np.random.default_rng(2).permutation(SITES)
    found = weights(rule, parent, [sent[k] for k in order])
    assert np.allclose(found, weights(rule, parent, sent)[order], atol=1e-9)


# --- what they do -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", PRODUCT_RULES)
def test_equal_sites_are_as_they_are(rule):
    parent, (one,) = dense.base(residual=0), dense.deltas(1)
    version, product = made(rule, parent, [one] * SITES)
    assert np.allclose(product, dense.product(dense.trained(parent, one)), atol=1e-5)
    assert np.allclose(version[HEAD], parent[HEAD] + one[HEAD], atol=1e-6)
    assert weights(rule, parent, [one] * SITES).sum() == pytest.approx(1)


def attack(kind: str, delta: Tensors) -> Tensors:
    match kind:
        case "100 times":
            return times(delta, 100)
        case "turned round":
            return times(delta, -1)
        case "head alone":
            return {**delta, HEAD: (100 * delta[HEAD]).astype(np.float32)}
        case "factors alone":
            return {**times(delta, 100), HEAD: delta[HEAD]}
        case "head turned round":
            return {**delta, HEAD: -delta[HEAD]}
    raise AssertionError(kind)


KINDS = ("100 times", "turned round", "head alone", "factors alone", "head turned round")
BY_DIRECTION = {("cosine-gate", kind) for kind in ("100 times", "head alone", "factors alone")}
"""A gate on directions lets through what is only long."""


@pytest.mark.parametrize(
    ("rule", "kind"), [(rule, kind) for rule in PRODUCT_RULES for kind in KINDS if (rule, kind) not in BY_DIRECTION]
)
def test_one_attacker_of_eight_has_little_weight_or_none(rule, kind):
    parent, sent = dense.base(residual=0), honest()
    sent[FORGED] = attack(kind, sent[FORGED])
    found = weights(rule, parent, sent)
    assert found[FORGED] < (
        (0.05 if kind != "head turned round" else 1 / SITES) if rule == "geometric-median" else 1e-12
    )
    assert found.sum() == pytest.approx(1)
    if rule != "krum":
        assert (np.delete(found, FORGED) > 0).sum() >= SITES - 3


@pytest.mark.parametrize("rule", [*PRODUCT_RULES, *FACTOR_RULES])
@pytest.mark.parametrize("kind", ["100 times", "turned round"])
def test_the_result_stays_where_the_honest_sites_are_and_the_means_does_not(rule, kind):
    if (rule, kind) in BY_DIRECTION:
        kind = "turned round"
    parent, sent = dense.base(residual=0), honest()
    others = [one for number, one in enumerate(sent) if number != FORGED]
    centre = dense.mean_product(parent, others, [1 / len(others)] * len(others))
    spread = max(np.linalg.norm(dense.product(dense.trained(parent, one)) - centre) for one in others)
    sent[FORGED] = attack(kind, sent[FORGED])
    found = np.linalg.norm(made(rule, parent, sent)[1] - centre)
    assert found < spread
    if rule != "krum":  # one site's product, with all of its own noise
        assert np.linalg.norm(made("none", parent, sent)[1] - centre) > found


@pytest.mark.parametrize("rule", [rule for rule in PRODUCT_RULES if rule != "cosine-gate"])
def test_factors_that_nearly_cancel_hide_nothing(rule):
    parent = dense.base(residual=0)
    for seed in range(20):
        sent = honest()
        sent[FORGED] = hidden(parent, sent[FORGED], seed=seed)
        moved = dense.product(dense.trained(parent, sent[FORGED])) - dense.product(parent)
        honest_norm = np.linalg.norm(dense.product(dense.trained(parent, sent[0])) - dense.product(parent))
        assert np.linalg.norm(moved) > 1000 * honest_norm
        found = robust.inner_products([robust.change(parent, {name: sent[FORGED][name] for name in (A, B)})])
        assert np.sqrt(found[0, 0]) == pytest.approx(np.linalg.norm(moved), rel=1e-6)
        assert weights(rule, parent, sent)[FORGED] < (0.01 if rule == "geometric-median" else 1e-12)


@pytest.mark.parametrize("rule", ["cosine-gate", "trimmed-distance"])
def test_two_of_five_that_are_turned_round_do_not_make_the_others_disagree(rule):
    parent, sent = dense.base(residual=0), honest(sites=5)
    for number in (1, 3):
        sent[number] = times(sent[number], -0.9)
    found = weights(rule, parent, sent, 2)
    assert found[[1, 3]].sum() == 0
    assert (found > 0).sum() == 3


def test_equal_scores_are_equal_whatever_their_last_digits():
    scores = np.array([1.0, 0.5 + 1e-14, 0.5, 0.5 - 1e-14])
    assert robust._smallest(scores, 1).tolist() == [False, True, False, False]


def test_a_gate_on_directions_lets_through_what_is_only_long():
    parent, sent = dense.base(residual=0), honest()
    sent[FORGED] = {**sent[FORGED], HEAD: 100 * sent[FORGED][HEAD]}
    assert weights("cosine-gate", parent, sent)[FORGED] == pytest.approx(1 / SITES)


def test_if_nobody_agrees_a_gate_on_directions_keeps_whoever_does_most():
    parent = dense.base(residual=0)
    found = robust.weights(recipe("cosine-gate", cosine_least=0.9), gram_of(parent, dense.deltas(3)), [0.2, 0.3, 0.5])
    assert found.sum() == 1
    assert sorted(found)[:2] == [0, 0]


def test_the_geometric_median_is_where_the_sum_of_distances_is_smallest():
    rng = np.random.default_rng(5)
    points, share = rng.standard_normal((7, 3)), rng.dirichlet(np.ones(7))
    points[2] *= 30
    found = robust.weights(recipe("geometric-median"), seen(points), share) @ points
    best = optimize.minimize(
        lambda z: float(share @ np.linalg.norm(points - z, axis=1)), points.mean(0), method="BFGS", tol=1e-10
    )
    assert np.allclose(found, best.x, atol=1e-4)


def test_a_geometric_median_that_is_one_of_the_points_is_found():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    found = robust.weights(recipe("geometric-median"), seen(points), np.full(5, 0.2)) @ points
    assert np.abs(found).max() < 1e-5


def test_krum_by_hand():
    """Points 0, 1, 2, 4, 90 on a line, one attacker: scores are sums of the squared distances to the nearest 5 - 1 - 2 = 2."""
    points = np.array([[0.0], [1.0], [2.0], [4.0], [90.0]])
    scores, near = robust._krum_scores(seen(points).whole, 1)
    assert near == 2
    assert scores.tolist() == [1 + 4, 1 + 1, 1 + 4, 4 + 9, 86**2 + 88**2]
    assert robust.weights(recipe("krum"), seen(points), np.full(5, 0.2)).tolist() == [0, 1, 0, 0, 0]
    assert robust.weights(recipe("multi-krum"), seen(points), np.full(5, 0.2)).tolist() == [0.5, 0.5, 0, 0, 0]


def test_the_farthest_are_dropped_and_the_others_keep_their_shares():
    points = np.array([[0.0], [1.0], [2.0], [-70.0], [90.0]])
    found = robust.weights(recipe("trimmed-distance", 2), seen(points), [0.1, 0.3, 0.1, 0.2, 0.3])
    assert found == pytest.approx([0.2, 0.6, 0.2, 0, 0])


@pytest.mark.parametrize("sites", [1, 2, 5, 8])
def test_rules_on_factors_are_numpys(sites):
    parent, sent = dense.base(residual=0), dense.deltas(sites)
    for name in (A, B, HEAD):
        stack = np.sort(np.stack([one[name].astype(float) for one in sent]), axis=0)
        median = parent[name] + np.median(stack, axis=0)
        assert np.allclose(made("median", parent, sent)[0][name], median, atol=1e-6)
        left = stack[1:-1] if sites > 2 else stack
        assert np.allclose(made("trimmed-mean", parent, sent)[0][name], parent[name] + left.mean(0), atol=1e-6)


# --- how many they withstand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "sites", "expected"),
    [
        ("krum", 7, 2),
        ("krum", 6, 1),
        ("krum", 3, 0),
        ("trimmed-distance", 5, 2),
        ("trimmed-mean", 3, 1),
        ("trimmed-mean", 1, 0),
    ],
)
def test_evictions_leave_rules_that_withstand_fewer_and_still_work(rule, sites, expected):
    assert robust.withstood(recipe(rule, 2), sites) == expected
    if rule in PRODUCT_RULES:
        assert weights(rule, dense.base(residual=0), honest(sites=sites), 2).sum() == pytest.approx(1)


@pytest.mark.parametrize("rule", [r for r in PRODUCT_RULES if r in COUNTED_RULES])
def test_two_attackers_together_are_dropped_by_a_rule_that_is_told_of_two_and_of_one_they_are_not(rule):
    parent, sent = dense.base(residual=0), honest()
    for number in (1, FORGED):
        sent[number] = times(sent[FORGED], -3)
    assert weights(rule, parent, sent, 2)[[1, FORGED]].sum() == 0
    if rule != "krum":
        assert weights(rule, parent, sent, 2)[0] > 0
    if rule == "trimmed-distance":
        assert weights(rule, parent, sent, 1)[[1, FORGED]].sum() > 0


def test_a_round_says_with_which_weights_it_was_made(monkeypatch):
    from tests.support import adapters
    from tests.unit.aggregator import test_optimisers as rounds

    version, agreed = rounds.ADAPTER, rounds.contract(recipe("geometric-median"))
    layout = agreed.recipe.upload_layout(agreed.manifest, 1, 3)

    def deltas():
        return {site: layout.read([adapters.delta(layout, seed)]) for seed, site in enumerate("abc")}

    made = results.make(agreed, 1, 1, version, deltas, dict.fromkeys("abc", 1 / 3), {}, {})
    found = {name: value for name, value in made.figures.items() if name.startswith("weight/")}
    assert set(found) == {"weight/a", "weight/b", "weight/c"}
    assert sum(found.values()) == pytest.approx(1)
    assert "aggregation_error" in made.figures


def test_the_shapes_here_are_those_of_the_rules():
    assert dense.base(residual=0)[B].shape == (OUT, RANK)
    assert dense.base(residual=0)[A].shape == (RANK, IN)

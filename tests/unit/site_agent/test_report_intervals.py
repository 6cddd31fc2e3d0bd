"""Intervals against published numbers, other libraries, other routes to the same number, and what they promise: coverage."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from site_agent.report import intervals
from site_agent.report.intervals import Estimate, Pairs

DISEASED, NORMAL = 20, 15
LABELS = np.array([1] * DISEASED + [0] * NORMAL)


def drawn(seed: int, shift: float = 1.0) -> np.ndarray:
    """Return scores with a few ties."""
    return np.round(np.random.default_rng(seed).normal(size=len(LABELS)) + shift * LABELS, 1)


# --- rates --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "of"), [(81, 263), (15, 148), (0, 20), (1, 29), (20, 20)])
def test_rates_have_wilsons_interval(right: int, of: int) -> None:
    found = intervals.rate(right, of)
    np.testing.assert_allclose((found.low, found.high), proportion_confint(right, of, method="wilson"), atol=1e-12)
    assert found.value == right / of


def test_differences_of_rates_are_newcombes() -> None:
    """Airway hyper-responsiveness before and after transplantation, 21 children: Fagerland et al. 2014, doi:10.1002/sim.6148."""
    found = intervals.rate_difference(Pairs(both=1, first=1, second=7, neither=12))
    assert (found.value, found.low, found.high) == (
        pytest.approx(-6 / 21),
        pytest.approx(-0.507, abs=5e-4),
        pytest.approx(-0.026, abs=5e-4),
    )


def test_swapping_the_models_turns_the_interval_round() -> None:
    one = intervals.rate_difference(Pairs(30, 5, 2, 3))
    other = intervals.rate_difference(Pairs(30, 2, 5, 3))
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.05, 0.05), (0.9, 0.05, 0.05, 0.0), (0.5, 0.3, 0.1, 0.1)])
def test_paired_intervals_cover_what_they_should(shares: tuple[float, ...]) -> None:
    """Exactly: every table of 14 cases, weighed by its probability."""
    count, covered = 14, 0.0
    for cut in itertools.combinations(range(count + 3), 3):
        counts = np.diff([-1, *cut, count + 3]) - 1
        weight = math.factorial(count) * math.prod(
            s**c / math.factorial(c) for s, c in zip(shares, counts, strict=True)
        )
        found = intervals.rate_difference(Pairs(*map(int, counts)))
        covered += weight * (found.low <= shares[1] - shares[2] <= found.high)
    assert covered >= 0.94


def test_no_error_is_not_certainty() -> None:
    assert intervals.rate(12, 12).low < 0.8
    unchanged = intervals.rate_difference(Pairs(12, 0, 0, 0))
    assert unchanged.low < -0.2 < 0.2 < unchanged.high


def test_balanced_accuracy_is_the_mean_of_both_rates_and_no_surer_than_either_allows() -> None:
    up, down = intervals.rate(25, 30), intervals.rate(18, 30)
    found = intervals.mean(up, down)
    assert found.value == pytest.approx((25 + 18) / 60)
    assert found.low == pytest.approx(found.value - math.hypot(up.value - up.low, down.value - down.low) / 2)
    assert intervals.mean(Estimate(1.0, 0.8, 1.0), Estimate(1.0, 0.8, 1.0)).low < 0.9


# --- AUC ------------------------------------------------------------------------------------------------------------------


def jackknife(statistic) -> float:
    """Variance of a statistic of cases by leaving one out of each class, which for an AUC is DeLong's to the last digit."""
    parts = []
    for label, count in ((1, DISEASED), (0, NORMAL)):
        without = np.array([statistic(np.arange(len(LABELS)) != at) for at in np.flatnonzero(label == LABELS)])
        parts.append((count - 1) / count * ((without - without.mean()) ** 2).sum())
    return float(sum(parts))


def test_the_variance_of_an_auc_is_delongs_by_another_route() -> None:
    scores = drawn(1)
    found = intervals.auc(scores, LABELS)
    assert found is not None
    assert found.value == pytest.approx(roc_auc_score(LABELS, scores))
    spread = math.sqrt(jackknife(lambda kept: roc_auc_score(LABELS[kept], scores[kept])))
    logits = [math.log(p / (1 - p)) for p in (found.low, found.value, found.high)]
    half = intervals.Z * spread / (found.value * (1 - found.value))
    np.testing.assert_allclose(np.diff(logits), half)


def test_the_variance_of_a_difference_of_aucs_is_delongs_by_another_route() -> None:
    first, second = drawn(1), drawn(1) + drawn(2, 0.0) / 2

    def difference(kept) -> float:
        return roc_auc_score(LABELS[kept], first[kept]) - roc_auc_score(LABELS[kept], second[kept])

    found = intervals.auc_difference(first, second, LABELS)
    assert found is not None
    assert found.value == pytest.approx(difference(np.full(len(LABELS), True)))
    assert (found.high - found.low) / 2 / intervals.Z == pytest.approx(math.sqrt(jackknife(difference)))


def test_intervals_of_aucs_cover_what_they_should() -> None:
    """Two normal classes at distance d have AUC Phi(d / sqrt 2); two scores of the same cases, equally good, differ by 0."""
    rng, repeats, distance = np.random.default_rng(3), 300, 1.5
    truth = (1 + math.erf(distance / 2)) / 2
    held = np.zeros(2)
    for _ in range(repeats):
        common, noise = rng.normal(size=len(LABELS)), rng.normal(size=(2, len(LABELS)))
        first, second = (common + 0.7 * noise) / math.sqrt(1.49) + distance * LABELS
        alone, both = intervals.auc(first, LABELS), intervals.auc_difference(first, second, LABELS)
        assert alone is not None
        assert both is not None
        held += (alone.low <= truth <= alone.high, both.low <= 0 <= both.high)
    assert (held / repeats >= 0.92).all()


def test_a_perfect_order_is_not_certainty() -> None:
    perfect = intervals.auc(LABELS * 1.0, LABELS)
    assert perfect is not None
    assert perfect.high == 1.0
    assert 0.8 < perfect.low < 0.95
    reversed_ = intervals.auc(-LABELS * 1.0, LABELS)
    assert reversed_ is not None
    assert (reversed_.low, reversed_.high) == (0.0, pytest.approx(1 - perfect.low))


def test_two_orders_that_agree_everywhere_are_still_only_as_alike_as_so_many_cases_can_show() -> None:
    same = intervals.auc_difference(drawn(1), drawn(1) * 2, LABELS)
    assert same is not None
    assert (same.value, same.low, same.high) == (0.0, -3 / NORMAL, 3 / NORMAL)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_auc(label: int) -> None:
    scores, labels = np.arange(4.0), np.full(4, label)
    assert intervals.auc(scores, labels) is None
    assert intervals.auc_difference(scores, scores, labels) is None


def test_a_single_case_of_a_class_bounds_nothing() -> None:
    scores, labels = np.array([0.1, 0.4, 0.2, 0.9]), np.array([0, 0, 0, 1])
    found, difference = intervals.auc(scores, labels), intervals.auc_difference(scores, -scores, labels)
    assert found is not None
    assert difference is not None
    assert found.low < 0.4
    assert (difference.low, difference.high) == (-1.0, 1.0)

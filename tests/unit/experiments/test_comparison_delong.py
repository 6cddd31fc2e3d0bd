"""DeLong's test is the one its paper prints, and the sum over pairs that its formulas say."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.comparison import statistics
from shared.errors import InputError

OVARIAN = """
3.0 5.8 10 0   3.2 6.3 5 1   3.9 6.8 3 1   2.8 4.8 6 0   3.2 5.8 3 1   0.9 4.0 5 0   2.5 5.7 8 0   1.6 5.6 5 1   3.8 5.7 5 1
3.7 6.7  6 1   3.2 5.4 4 1   3.8 6.6 6 1   4.1 6.6 5 1   3.6 5.7 5 1   4.3 7.0 4 1   3.6 6.7 4 0   2.3 4.4 6 1   4.2 7.6 4 0
4.0 6.6  6 0   3.5 5.8 6 1   3.8 6.8 7 1   3.0 4.7 8 0   4.5 7.4 5 1   3.7 7.4 5 1   3.1 6.6 6 1   4.1 8.2 6 1   4.3 7.0 5 1
4.3 6.5  4 1   3.2 5.1 5 1   2.6 4.7 6 1   3.3 6.8 6 0   1.7 4.0 7 0   3.7 6.1 5 1   3.3 6.3 7 1   4.2 7.7 6 1   3.5 6.2 5 1
2.9 5.7  9 0   2.1 4.8 7 1   2.8 6.2 8 0   4.0 7.0 7 1   3.3 5.7 6 1   3.7 6.9 5 1   3.6 6.6 5 1
"""
"""Albumin, total protein, K-G score (less is better) and outcome of the 43 complete ovarian cancer patients of DeLong et al. 1988,
as in SAS/STAT User's Guide, The LOGISTIC Procedure, example "Comparing Receiver Operating Characteristic Curves"."""


def ovarian() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    return table[:, 0], table[:, 1], 10 - table[:, 2], table[:, 3].astype(int)


def test_delong_of_the_papers_own_patients() -> None:
    """SAS prints the difference from the K-G score, its standard error, chi-square and p."""
    albumin, protein, score, outcome = ovarian()
    for margins, difference, se, square, p in (
        (albumin, 0.0108, 0.0953, 0.0127, 0.9102),
        (protein, -0.0780, 0.1046, 0.5554, 0.4561),
    ):
        found = statistics.delong(margins, score, outcome)
        assert found.difference == pytest.approx(difference, abs=5e-5)
        assert math.sqrt(found.variance) == pytest.approx(se, abs=5e-5)
        assert found.z**2 == pytest.approx(square, abs=5e-5)
        assert found.p == pytest.approx(p, abs=5e-5)


def test_delong_areas_of_the_papers_own_patients() -> None:
    """SAS prints areas and their standard errors."""
    albumin, protein, score, outcome = ovarian()
    for margins, area, se in ((albumin, 0.7366, 0.0927), (protein, 0.6478, 0.1000)):
        found = statistics.delong(margins, score, outcome)
        assert (found.first, math.sqrt(found.first_variance)) == pytest.approx((area, se), abs=5e-5)
        assert (found.second, math.sqrt(found.second_variance)) == pytest.approx((0.7258, 0.1028), abs=5e-5)


def test_delong_area_of_ratings_with_many_ties() -> None:
    """Hanley and McNeil 1982, table 1, in Stata's manual, [R] roctab: 0.8932, se 0.0307."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    ratings = np.repeat(np.tile(np.arange(5.0), 2), normal + abnormal)
    found = statistics.delong(ratings, ratings, np.repeat([0, 1], [58, 51]))
    assert (found.first, math.sqrt(found.first_variance)) == pytest.approx((0.8932, 0.0307), abs=5e-5)


def structural_components(margins: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return areas and covariance by DeLong 1988's own sums over pairs: psi is 1, 1/2 or 0."""
    x, y = margins[:, labels == 1], margins[:, labels == 0]
    psi = np.array(
        [[[1.0 if a > b else 0.5 if a == b else 0.0 for b in y[k]] for a in x[k]] for k in range(len(margins))]
    )
    areas, v10, v01 = psi.mean(axis=(1, 2)), psi.mean(axis=2), psi.mean(axis=1)
    m, n = x.shape[1], y.shape[1]
    covariance = np.array(
        [
            [
                sum((v10[r] - areas[r]) * (v10[s] - areas[s])) / (m - 1) / m
                + sum((v01[r] - areas[r]) * (v01[s] - areas[s])) / (n - 1) / n
                for s in range(len(margins))
            ]
            for r in range(len(margins))
        ]
    )
    return areas, covariance


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_delong_is_the_papers_sum_over_pairs(decimals: int) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels = (np.arange(50) % 3 == 0).astype(int)
        common = rng.normal(size=50) + labels
        margins = np.round(common + rng.normal(size=(2, 50)), decimals)
        areas, v = structural_components(margins, labels)
        found = statistics.delong(margins[0], margins[1], labels)
        assert (found.first, found.second) == pytest.approx(tuple(areas))
        assert (found.first_variance, found.second_variance) == pytest.approx((v[0, 0], v[1, 1]))
        assert found.variance == pytest.approx(v[0, 0] + v[1, 1] - 2 * v[0, 1])
        assert found.first == pytest.approx(roc_auc_score(labels, margins[0]))
        z = (areas[0] - areas[1]) / math.sqrt(v[0, 0] + v[1, 1] - 2 * v[0, 1])
        assert found.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))


def test_delong_agrees_with_exchanging_the_methods_case_by_case() -> None:
    """Under equality the two methods' ranks of a case can be exchanged: a permutation test of Venkatraman and Begg's kind."""
    rng = np.random.default_rng(12)
    labels = np.arange(120) % 2
    margins = labels * np.array([[1.3], [0.8]]) + rng.normal(size=(2, 120))
    found = statistics.delong(margins[0], margins[1], labels)
    ranks = margins.argsort(axis=1).argsort(axis=1)
    larger = 0
    for _ in range(2000):
        swap = rng.random(120) < 0.5
        first, second = np.where(swap, ranks[::-1], ranks)
        larger += (
            abs(roc_auc_of_ranks(first, labels) - roc_auc_of_ranks(second, labels)) >= abs(found.difference) - 1e-12
        )
    assert 0.01 < found.p < 0.5
    assert found.p == pytest.approx(larger / 2000, abs=0.04)


def roc_auc_of_ranks(ranks: np.ndarray, labels: np.ndarray) -> float:
    gaps = ranks[labels == 1][:, None] - ranks[labels == 0]
    return float((np.sign(gaps) / 2 + 0.5).mean())


def test_delong_of_identical_methods_has_p_one() -> None:
    labels = np.arange(20) % 2
    margins = np.random.default_rng(0).normal(size=20)
    for other in (margins, margins * 3 - 1):  # AUCs see ranks only
        found = statistics.delong(margins, other, labels)
        assert (found.difference, found.z, found.p) == (0.0, 0.0, 1.0)


def test_delong_of_two_perfect_methods_has_p_one_and_no_variance() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    found = statistics.delong(labels * 2.0, labels + np.arange(5) / 10, labels)
    assert (found.first, found.second, found.variance, found.p) == (1.0, 1.0, 0.0, 1.0)


def test_delong_says_nothing_of_different_areas_without_variance() -> None:
    """Separation against a constant: 1 and 1/2. And each diseased case above one more of three normal ones: 6/9 and 3/9."""
    labels = np.array([0, 0, 0, 1, 1, 1])
    staircase = np.array([1.0, 2.0, 3.0, 3.5, 2.5, 1.5])
    for first, second, difference in (
        (labels * 2.0, np.zeros(6), 1 / 2),
        (staircase, staircase - labels, 1 / 3),
    ):
        found = statistics.delong(first, second, labels)
        assert found.difference == pytest.approx(difference)
        assert math.isnan(found.z)
        assert math.isnan(found.p)


def test_delong_refuses_what_has_no_variance_and_names_a_margin_that_is_no_number() -> None:
    with pytest.raises(InputError, match="two normal and two diseased"):
        statistics.delong(np.arange(4.0), np.arange(4.0), np.array([0, 0, 0, 1]))
    with pytest.raises(InputError, match=r"margin 2 .* is nan"):
        statistics.delong(np.arange(4.0), np.array([0.0, 1.0, math.nan, 2.0]), np.array([0, 0, 1, 1]))
    with pytest.raises(InputError, match="shapes"):
        statistics.delong(np.arange(4.0), np.arange(3.0), np.array([0, 0, 1, 1]))

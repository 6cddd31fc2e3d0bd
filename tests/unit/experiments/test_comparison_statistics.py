"""Intervals and p values are those of closed forms, of published examples and of programs written from the papers' formulas."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.comparison import metrics, statistics
from experiments.comparison.records import Prediction
from shared.errors import InputError
from tests.support.bootstrap import bootstrap, paired_bootstrap

SENSITIVITY = metrics.FIGURES["sensitivity_half"]
ACCURACY = metrics.FIGURES["balanced_accuracy_half"]


def predictions(
    margins: list[float], labels: list[int], *, site: str = "a", run: int = 0, threshold: float = 0.0
) -> list[Prediction]:
    return [
        Prediction(run=run, fold=0, site=site, case=f"{i:04d}", label=label, margin=margin, threshold=threshold)
        for i, (margin, label) in enumerate(zip(margins, labels, strict=True))
    ]


def method(seed: int, shift: float = 0.0, runs: int = 2, cases: int = 60) -> list[Prediction]:
    """Three sites of `cases` cases a run; diseased margins are N(1 + shift, 1), normal ones N(-1, 1)."""
    rng = np.random.default_rng(seed)
    labels = [int(i % 3 > 0) for i in range(cases)]
    return [
        one
        for run in range(runs)
        for site in "abc"
        for one in predictions(
            [float(rng.normal() + (1 + shift if y else -1)) for y in labels], labels, site=site, run=run
        )
    ]


def calls(right: int, n: int) -> list[float]:
    return [1.0] * right + [-1.0] * (n - right)


# bootstrap


def test_standard_error_and_interval_of_a_share_are_binomial() -> None:
    """70 of 100 found: sqrt(0.7 * 0.3 / 100) = 0.0458; the binomial's 2.5 % and 97.5 % points are 61 and 79."""
    found = bootstrap(predictions(calls(70, 100), [1] * 100), SENSITIVITY, draws=8000, seed=1)
    assert found.value == pytest.approx(0.7)
    assert found.sd == pytest.approx(math.sqrt(0.7 * 0.3 / 100), rel=0.04)
    assert (found.low, found.high) == pytest.approx((0.61, 0.79), abs=0.0101)


def test_the_mean_of_four_runs_has_half_the_standard_error() -> None:
    made = [one for run in range(4) for one in predictions(calls(70, 100), [1] * 100, run=run)]
    found = bootstrap(made, SENSITIVITY, draws=8000, seed=1)
    assert found.sd == pytest.approx(math.sqrt(0.7 * 0.3 / 100) / 2, rel=0.04)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """300 cohorts of 100 diseased cases found with probability 0.8; 95 % of intervals hold it, less some for small n."""
    rng = np.random.default_rng(2)
    covered = 0
    for cohort in range(300):
        made = predictions(calls(int(rng.binomial(100, 0.8)), 100), [1] * 100)
        found = bootstrap(made, SENSITIVITY, draws=200, seed=cohort)
        covered += found.low <= 0.8 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_both_methods_are_judged_on_the_same_resampled_patients() -> None:
    """Of 100 diseased only the first finds 15, only the second 5, both 60: sd = sqrt(b + c - (b - c)^2 / n) / n = 0.0436.

    Source: Agresti 2002, Categorical Data Analysis, section 10.1. Resampled apart, it would be sqrt(0.1875 + 0.2275) / 10 = 0.0644.
    """
    first = predictions(calls(75, 100), [1] * 100)
    second = predictions([1.0] * 60 + [-1.0] * 15 + [1.0] * 5 + [-1.0] * 20, [1] * 100)
    found = paired_bootstrap(first, second, SENSITIVITY, draws=8000, seed=3)
    assert found.value == pytest.approx(0.10)
    assert found.sd == pytest.approx(math.sqrt(15 + 5 - 10**2 / 100) / 100, rel=0.04)
    assert (found.low, found.high) == pytest.approx((0.10 - 1.96 * 0.0436, 0.10 + 1.96 * 0.0436), abs=0.0101)


@pytest.mark.parametrize("name", list(metrics.FIGURES))
def test_identical_methods_differ_by_nothing_at_all(name: str) -> None:
    same = method(4)
    found = paired_bootstrap(same, same, metrics.FIGURES[name], draws=50, seed=0)
    assert (found.value, found.low, found.high, found.sd) == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "name", [name for name in metrics.FIGURES if "specificity" not in name and name not in ("brier", "ece")]
)
def test_a_large_known_shift_is_seen_in_every_figure_it_moves(name: str) -> None:
    """AUC goes from Phi(2 / sqrt 2) = 0.921 to Phi(4 / sqrt 2) = 0.998, sensitivity from Phi(1) = 0.841 to Phi(3) = 0.999."""
    found = paired_bootstrap(method(5, shift=2.0), method(6), metrics.FIGURES[name], draws=500, seed=0)
    assert 0 < found.low < found.high
    assert found.low <= found.value <= found.high
    back = paired_bootstrap(method(6), method(5, shift=2.0), metrics.FIGURES[name], draws=500, seed=0)
    assert (back.value, back.low, back.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_the_seed_decides_and_the_order_of_predictions_does_not() -> None:
    first, second = method(7), method(8)
    found = paired_bootstrap(first, second, metrics.auc, draws=100, seed=9)
    assert paired_bootstrap(first[::-1], second, metrics.auc, draws=100, seed=9) == found
    assert paired_bootstrap(first, second, metrics.auc, draws=100, seed=10) != found
    alone = bootstrap(first, metrics.auc, draws=100, seed=9)
    assert bootstrap(first[::-1], metrics.auc, draws=100, seed=9) == alone


def test_resamples_keep_the_number_of_each_sites_cases_of_each_label() -> None:
    made = predictions([0.0] * 8, [1] * 7 + [0], site="a") + predictions([0.0] * 5, [0, 0, 1, 1, 1], site="b")
    cases = metrics.cases_by_run(made)[0]
    weights = statistics.resample(cases, 300, np.random.default_rng(0))
    for site, label, count in (("a", 1, 7), ("a", 0, 1), ("b", 0, 2), ("b", 1, 3)):
        assert (weights[:, (cases.sites == site) & (cases.labels == label)].sum(axis=1) == count).all()
    assert weights.max() > 1


def test_the_only_normal_case_of_a_site_is_in_every_resample() -> None:
    """Drawn from all nine cases it would be missing from (8 / 9)^9 = 35 % of resamples, and there would be no worst site's AUC."""
    made = predictions([2.0, 1.0, 0.5, -0.5, 1.5, 0.2, 0.1, 3.0, 0.0], [1] * 8 + [0])
    cases = metrics.cases_by_run(made)[0]
    resampled = metrics.worst_site(metrics.auc)(cases, statistics.resample(cases, 500, np.random.default_rng(1)))
    assert not np.isnan(resampled).any()
    assert set(metrics.specificity(cases, statistics.resample(cases, 500, np.random.default_rng(1)), at="half")) == {
        0.0
    }


def test_every_draw_of_a_stratum_is_a_draw_of_its_cases_with_replacement() -> None:
    """A multinomial count of m of m cases has mean 1, variance 1 - 1/m and covariance -1/m."""
    cases = metrics.cases_by_run(predictions([0.0] * 5, [1] * 5))[0]
    weights = statistics.resample(cases, 40000, np.random.default_rng(2))
    assert weights.mean(axis=0) == pytest.approx(np.ones(5), abs=0.03)
    assert np.cov(weights.T) == pytest.approx(np.eye(5) - 1 / 5, abs=0.04)


def test_a_figure_that_cannot_be_has_no_interval() -> None:
    found = bootstrap(predictions([1.0, 2.0], [1, 1]), metrics.auc, draws=10, seed=0)
    assert all(math.isnan(value) for value in (found.value, found.low, found.high, found.sd))


def test_the_first_case_that_one_method_lacks_is_named() -> None:
    first, second = method(10), method(11)
    with pytest.raises(InputError, match="case '0003' of site 'a' in run 0 is missing from the second"):
        paired_bootstrap(first, second[:3], ACCURACY, draws=10, seed=0)
    with pytest.raises(InputError, match="case '0059' of site 'c' in run 1 is missing from the first"):
        paired_bootstrap(first[:-1], second, ACCURACY, draws=10, seed=0)


def test_methods_with_other_runs_are_refused() -> None:
    with pytest.raises(InputError, match="in run 2 is missing from the first"):
        statistics.mcnemar(method(10), method(11, runs=3), 1, "half")


def test_a_case_with_two_labels_is_named() -> None:
    first, second = method(10), method(11)
    second[61] = replace(second[61], label=0)
    with pytest.raises(InputError, match="case '0001' of site 'b' in run 0 has another label"):
        paired_bootstrap(first, second, ACCURACY, draws=10, seed=0)


def test_one_draw_is_no_interval() -> None:
    with pytest.raises(InputError, match="at least 2, got 1"):
        bootstrap(method(10), ACCURACY, draws=1, seed=0)


# Student


def test_student_interval_of_the_sleep_data() -> None:
    """Student 1908, hours of sleep gained by one drug over the other; R's t.test prints t = 4.0621, 0.7001142 to 2.4598858."""
    found = statistics.student([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=5e-8)
    assert found.value / found.sd == pytest.approx(4.0621, abs=5e-5)


def test_one_run_has_no_interval_over_runs() -> None:
    assert statistics.student([0.1]) is None
    assert statistics.student([]) is None


# McNemar


def approval(label: int) -> tuple[list[Prediction], list[Prediction]]:
    """1600 approvals of a president in two surveys: 794 both, 150 only the first, 86 only the second, 570 neither."""
    right = 1.0 if label else -1.0
    first = [right] * 944 + [-right] * 656
    second = [right] * 794 + [-right] * 150 + [right] * 86 + [-right] * 570
    return predictions(first, [label] * 1600), predictions(second, [label] * 1600)


@pytest.mark.parametrize("label", [0, 1])
def test_mcnemar_counts_and_p_of_the_approval_ratings(label: int) -> None:
    """Agresti 1990, Categorical Data Analysis, p. 350; chi-square 64^2 / 236 = 17.36 with p = 3.1e-5. Exact: a binomial sum."""
    found = statistics.mcnemar(*approval(label), 1 if label else 0, "half")
    assert (found.both, found.only_first, found.only_second, found.neither) == (794, 150, 86, 570)
    assert found.p == pytest.approx(2 * sum(math.comb(236, k) for k in range(87)) / 2**236, rel=1e-6)
    assert found.p == pytest.approx(3.7159e-5, rel=1e-4)


def test_mcnemar_worked_by_hand_over_two_runs() -> None:
    """1 against 5 discordant cases: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64. The normal cases are of the other class."""
    first = predictions([1, 1, -1, -1], [1, 1, 1, 0]) + predictions([-1] * 4, [1, 1, 1, 1], run=1)
    second = predictions([1, -1, 1, 1], [1, 1, 1, 0]) + predictions([1] * 4, [1, 1, 1, 1], run=1)
    found = statistics.mcnemar(first, second, 1, "half")
    assert (found.both, found.only_first, found.only_second, found.neither, found.p) == (1, 1, 5, 0, 14 / 64)
    assert statistics.mcnemar(first, second, 0, "half").only_first == 1


def test_mcnemar_follows_each_methods_own_threshold() -> None:
    first = predictions([0.5] * 4, [1] * 4, threshold=0.0)
    second = predictions([0.5] * 4, [1] * 4, threshold=1.0)
    assert statistics.mcnemar(first, second, 1, "half").both == 4
    assert statistics.mcnemar(first, second, 1, "validation").only_first == 4


def test_without_discordant_cases_mcnemar_has_p_one() -> None:
    same = predictions([1.0, -1.0], [1, 1])
    assert statistics.mcnemar(same, same, 1, "half").p == 1.0
    assert statistics.mcnemar(same, same, 0, "half") == statistics.McNemar(
        both=0, only_first=0, only_second=0, neither=0, p=1.0
    )


# DeLong

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


# Wilcoxon


def test_wilcoxon_of_the_depression_scale() -> None:
    """Hollander and Wolfe 1973, p. 29; R's example of wilcox.test prints V = 40 and one-sided p = 0.01953."""
    before = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
    after = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
    found = statistics.wilcoxon(list(before - after))
    assert (found.n, found.zeros, found.rank_sum, found.exact) == (9, 0, 40.0, True)
    assert found.p == pytest.approx(2 * 0.01953125)
    assert found.least_p == 2 / 2**9


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_least_p_is_reached_when_all_differences_have_one_sign(n: int) -> None:
    found = statistics.wilcoxon([-0.1 * k for k in range(1, n + 1)])
    assert found.p == found.least_p == min(1.0, 2 / 2**n)
    assert found.rank_sum == 0.0


def test_wilcoxon_drops_zeros_and_says_how_many() -> None:
    """Four of one sign are left: 2 / 2^4."""
    found = statistics.wilcoxon([0.0, 0.1, 0.2, 0.0, 0.3, 0.4])
    assert (found.n, found.zeros, found.p, found.least_p, found.exact) == (4, 2, 0.125, 0.125, True)


def test_wilcoxon_is_exact_with_equal_sizes() -> None:
    """All sizes equal, it is the sign test: 3 of 4 positive has 2 (C(4,3) + C(4,4)) / 2^4 = 10 / 16."""
    found = statistics.wilcoxon([1.0, 1.0, 1.0, -1.0])
    assert (found.rank_sum, found.p, found.exact) == (7.5, 0.625, True)


def test_differences_equal_but_for_rounding_are_equal() -> None:
    assert len({0.85 - 0.80, 0.80 - 0.75, 0.75 - 0.70, -(0.65 - 0.70)}) > 1
    assert statistics.wilcoxon([0.85 - 0.80, 0.80 - 0.75, 0.75 - 0.70, 0.65 - 0.70]).p == 0.625
    assert statistics.wilcoxon([0.1 + 0.2 - 0.3, 0.5]).zeros == 1


@pytest.mark.parametrize("differences", [[], [0.0, 0.0]])
def test_without_differences_wilcoxon_has_p_one(differences: list[float]) -> None:
    found = statistics.wilcoxon(differences)
    assert (found.n, found.zeros, found.p, found.least_p) == (0, len(differences), 1.0, 1.0)


def test_many_or_tied_differences_get_the_normal_approximation_and_it_is_said() -> None:
    """n = 60, signs alternate: W+ = 1 + 3 + ... + 59 = 900, mean 915, sd sqrt(60 * 61 * 121 / 24) = 135.84; z = -14.5 / 135.84."""
    found = statistics.wilcoxon([float(k if k % 2 else -k) for k in range(1, 61)])
    assert (found.rank_sum, found.exact) == (900.0, False)
    assert found.p == pytest.approx(math.erfc(14.5 / math.sqrt(60 * 61 * 121 / 24) / math.sqrt(2)))
    assert not statistics.wilcoxon([1.0] * 8 + [-1.0] * 7).exact


def test_a_difference_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match=r"difference 1 .* is nan"):
        statistics.wilcoxon([0.1, math.nan])


# Holm


def test_holm_worked_by_hand() -> None:
    """0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 raised to the one before it."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_is_at_most_one_and_one_p_stays_as_it_is() -> None:
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([0.03]) == [0.03]
    assert statistics.holm([]) == []


@pytest.mark.parametrize("p", [math.nan, -0.1, 1.1])
def test_holm_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(InputError, match="p value 1 "):
        statistics.holm([0.5, p])


def test_runs_compared_one_by_one_give_wilcoxon_its_differences() -> None:
    """One right method, one that misses a diseased case of ten in each of five runs: sensitivity differs by 0.1 five times."""
    right = [one for run in range(5) for one in predictions(calls(10, 10), [1] * 10, run=run)]
    worse = [one for run in range(5) for one in predictions(calls(9, 10), [1] * 10, run=run)]
    first, second = (metrics.by_run(made, partial(metrics.sensitivity, at="half")) for made in (right, worse))
    found = statistics.wilcoxon([first[run] - second[run] for run in first])
    assert (found.n, found.p) == (5, 2 / 2**5)

"""Intervals over resampled patients: those of closed forms, the same for all methods, and none where a figure cannot be."""

import math
from dataclasses import replace

import numpy as np
import pytest

from experiments.comparison import metrics, statistics
from shared.errors import InputError
from tests.support.bootstrap import bootstrap, paired_bootstrap
from tests.support.predictions import calls, method, predictions

SENSITIVITY = metrics.FIGURES["sensitivity_half"]
ACCURACY = metrics.FIGURES["balanced_accuracy_half"]


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

"""Intervals and p values are those of closed forms, of published examples and of programs written from the papers' formulas."""

import math
from functools import partial

import numpy as np
import pytest

from experiments.comparison import metrics, statistics
from experiments.comparison.records import Prediction
from shared.errors import InputError
from tests.support.predictions import calls, predictions

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

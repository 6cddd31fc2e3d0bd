"""How sure a figure or a difference between two methods is: bootstrap, McNemar, DeLong, Wilcoxon, Holm.

Methods are compared on the same cases. SciPy and statsmodels do the tests they have; the bootstrap and DeLong's are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.comparison import metrics
from experiments.comparison.metrics import Array, At, Cases
from experiments.comparison.records import Prediction
from shared.errors import InputError

CONFIDENCE = 0.95
MOST_EXACT = 50
"""Differences up to which SciPy has Wilcoxon's distribution; with ties it goes through all signs, up to MOST_TIED differences."""
MOST_TIED = 13
DIGITS = 12
"""Differences equal to so many decimals are equal: 0.85 - 0.80 and 0.80 - 0.75 differ in their last bits, and would be ranked."""
NO_VARIANCE = 1e-24
"""Rounding gives variances up to 1e-32; the smallest true one with m diseased and n normal cases is some 1 / (4 m^2 n^2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure or a difference, its 95 % interval, and its standard error (`sd`: of the resamples)."""

    value: float
    low: float
    high: float
    sd: float


def resample(cases: Cases, draws: int, rng: np.random.Generator) -> Array:
    """Return (draws, n): how often each case counts if each site's cases of each label are drawn with replacement.

    So every resample has the classes of the cohort, and an interval says what other patients of these hospitals would have given to
    these very models: neither other hospitals, nor training again, nor that a patient of several runs is one patient. A stratum of
    one case never varies. The worst of several sites is lower in resamples than in the cohort, and a calibration error higher:
    their intervals lie off. Two methods are compared on the same weights. Source: Efron and Tibshirani 1993, chapter 13.
    """
    if draws < 2:
        raise InputError(f"draws must be at least 2, got {draws}; an interval needs some 1000")
    weights = np.empty((draws, len(cases.labels)))
    for site in np.unique(cases.sites):
        for label in (0, 1):
            here = np.flatnonzero((cases.sites == site) & (cases.labels == label))
            if len(here):
                weights[:, here] = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), size=draws)
    return weights


def paired_cases(first: Sequence[Prediction], second: Sequence[Prediction]) -> list[tuple[Cases, Cases]]:
    """Return both methods' cases of each run in one order.

    Raises InputError naming the first case that only one of them has, or that they label differently.
    """
    pairs = metrics.cases_by_run(first), metrics.cases_by_run(second)
    mine, theirs = ({(one.run, one.site, one.case): one.label for one in method} for method in (first, second))
    for run, site, case in sorted(mine.keys() ^ theirs.keys()):
        lacking = "second" if (run, site, case) in mine else "first"
        raise InputError(f"case '{case}' of site '{site}' in run {run} is missing from the {lacking} method")
    for run, site, case in sorted(key for key, label in mine.items() if theirs[key] != label):
        raise InputError(f"case '{case}' of site '{site}' in run {run} has another label in the second method")
    return [(pairs[0][run], pairs[1][run]) for run in pairs[0]]


def percentiles(points: Sequence[float], resampled: Sequence[Array]) -> Interval:
    """Return the mean over runs of a figure or a difference, with its percentile interval.

    `points`: each run's own; `resampled`: (draws,) of each run's resamples. Runs that cannot have the figure are NaN, and left out.
    """
    means = metrics.mean(np.stack(resampled))
    low, high = np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    value = float(metrics.mean(np.array(points)))
    return Interval(value=value, low=float(low), high=float(high), sd=float(means.std(ddof=1)))


def student(differences: Sequence[float]) -> Interval | None:
    """Return the mean over independent runs with mean +- t sd / sqrt(n), t of n - 1 degrees of freedom; None below two runs.

    A run is a cohort, a training and a test set of its own, so the interval is of all three. `sd`: sd / sqrt(n).
    Source: Student 1908 (Biometrika 6:1).
    """
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return None
    value, error = float(np.mean(differences)), float(np.std(differences, ddof=1) / n**0.5)
    reach = error * float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Interval(value=value, low=value - reach, high=value + reach, sd=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """Cases of one class by which method calls them right, and the exact two-sided p that both do so equally often."""

    both: int
    only_first: int
    only_second: int
    neither: int
    p: float


def mcnemar(first: Sequence[Prediction], second: Sequence[Prediction], label: Literal[0, 1], at: At) -> McNemar:
    """Compare the calls on the cases with this label, all runs together: sensitivities with label 1, specificities with 0.

    p is binomial on the discordant cases, and 1 if there are none. It takes cases as independent: a patient who is in several
    runs counts several times, and p is then too small. Raises InputError as `paired_cases` does.
    """
    from statsmodels.stats.contingency_tables import mcnemar as exact

    table = np.zeros((2, 2), dtype=int)
    for mine, theirs in paired_cases(first, second):
        which = mine.labels == label
        wrong = [(metrics.called(cases, at) != (label == 1))[which].astype(int) for cases in (mine, theirs)]
        np.add.at(table, tuple(wrong), 1)
    both, only_first, only_second, neither = (int(count) for count in table.ravel())
    p = float(exact(table, exact=True).pvalue)
    return McNemar(both=both, only_first=only_first, only_second=only_second, neither=neither, p=p)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeLong:
    """Two AUCs on the same cases, the variances of their estimates and of their difference, and the two-sided p that it is 0."""

    first: float
    second: float
    difference: float
    first_variance: float
    second_variance: float
    variance: float
    z: float
    p: float


def delong(first_margins: Array, second_margins: Array, labels: Array) -> DeLong:
    """Compare two AUCs on the same cases of one run: z = (A1 - A2) / sqrt(V), V = V11 + V22 - 2 V12. Arrays: (n,).

    If V is 0, equal AUCs have z = 0 and p = 1; unequal ones (one method separates the classes, the other is constant)
    have NaN: the cases do not say how sure the difference is.
    Raises InputError if a class has fewer than two cases, a margin is not finite, or lengths differ.
    Source: DeLong et al. 1988 (Biometrics 44:837), computed by midranks as in Sun and Xu 2014 (IEEE SPL 21:1389).
    """
    from scipy.stats import norm

    v10, v01 = _placements(_checked([first_margins, second_margins], labels), np.asarray(labels))
    areas, v = v10.mean(axis=1), _covariance(v10, v01)
    difference, variance = float(areas[0] - areas[1]), float(_covariance(v10[0] - v10[1], v01[0] - v01[1])[0, 0])
    undecided = 0.0 if abs(difference) < 10**-DIGITS else float("nan")
    z = difference / variance**0.5 if variance > NO_VARIANCE else undecided
    return DeLong(
        first=float(areas[0]),
        second=float(areas[1]),
        difference=difference,
        first_variance=float(v[0, 0]),
        second_variance=float(v[1, 1]),
        variance=variance,
        z=z,
        p=float(2 * norm.sf(abs(z))),
    )


def _placements(margins: Array, labels: Array) -> tuple[Array, Array]:
    """Return, of margins (k, m + n), the share v10 (k, m) of normal cases below each diseased one, and the share v01 (k, n) of
    diseased cases above each normal one; equal margins count half. Either's mean is the AUC.

    Both are midranks among all cases less midranks within the class.
    """
    from scipy.stats import rankdata

    diseased, normal = labels == 1, labels == 0
    m, n = int(diseased.sum()), int(normal.sum())
    ranks = rankdata(margins, axis=1)
    v10 = (ranks[:, diseased] - rankdata(margins[:, diseased], axis=1)) / n
    v01 = 1 - (ranks[:, normal] - rankdata(margins[:, normal], axis=1)) / m
    return v10, v01


def _covariance(v10: Array, v01: Array) -> Array:
    """Return the covariance (k, k) of the AUCs that have these placements.

    Given differences of placements it is that of the difference, without the 1e-18 that V11 + V22 - 2 V12 can leave of a 0.
    """
    return np.atleast_2d(np.cov(v10) / v10.shape[-1] + np.cov(v01) / v01.shape[-1])


def _checked(margins: list[Array], labels: Array) -> Array:
    arrays = [np.asarray(one, dtype=np.float64) for one in margins]
    if any(one.shape != np.shape(labels) or one.ndim != 1 for one in arrays):
        raise InputError(
            f"margins and labels have shapes {[one.shape for one in arrays]} and {np.shape(labels)}, expected (n,)"
        )
    for one in arrays:
        for place in np.flatnonzero(~np.isfinite(one)):
            raise InputError(f"margin {int(place)} (counted from 0) is {one[place]}, expected a finite number")
    if min(np.sum(np.equal(labels, label)) for label in (0, 1)) < 2:
        raise InputError("an AUC has a variance only with two normal and two diseased cases or more")
    return np.stack(arrays)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wilcoxon:
    """Wilcoxon's signed ranks. `n` differences were used, without the zeros; `rank_sum`: of the positive ones (V in R).

    `least_p`: what p would be if all n had one sign, 2 / 2^n; no outcome of so few runs can have a smaller exact p.
    """

    n: int
    zeros: int
    rank_sum: float
    p: float
    least_p: float
    exact: bool


def wilcoxon(differences: Sequence[float]) -> Wilcoxon:
    """Test two-sided that paired differences are symmetric about 0; zeros are dropped, as Wilcoxon did.

    Exact for up to 50 differences, 13 if some are equal in size; else the normal approximation with continuity correction. p = 1
    if none is left. Raises InputError if one is not finite. Source: Wilcoxon 1945 (Biometrics Bulletin 1:80).
    """
    from scipy.stats import rankdata
    from scipy.stats import wilcoxon as signed_ranks

    values = np.round(np.asarray(differences, dtype=np.float64), DIGITS)
    for place in np.flatnonzero(~np.isfinite(values)):
        raise InputError(f"difference {int(place)} (counted from 0) is {values[place]}, expected a finite number")
    used = values[values != 0]
    n, sizes = len(used), np.abs(used)
    return Wilcoxon(
        n=n,
        zeros=len(values) - n,
        rank_sum=float(rankdata(sizes)[used > 0].sum()),
        p=float(signed_ranks(used, method="auto", correction=True).pvalue) if n else 1.0,
        least_p=min(1.0, 2.0 ** (1 - n)),
        exact=n <= (MOST_EXACT if len(np.unique(sizes)) == n else MOST_TIED),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted for being several, in the order given.

    The k-th smallest of m is multiplied by m - k + 1, and raised to the one before it; at most 1. Raises InputError if one is no
    probability. Source: Holm 1979 (Scand. J. Statist. 6:65).
    """
    from statsmodels.stats.multitest import multipletests

    for place, p in enumerate(p_values):
        if not 0 <= p <= 1:
            raise InputError(f"p value {place} (counted from 0) is {p}, expected a number between 0 and 1")
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []

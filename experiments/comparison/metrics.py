"""Figures of one method on held-out cases.

A figure is a function of the cases of one run and of how often each of them counts. With weights of 1 it is the run's figure; with
the counts of a resample it is that resample's, thousands of resamples in one call. So an interval is of the very figure it stands
beside. It is why the figures are written here: scikit-learn's take one set of weights a call. Tests hold them equal to it.

Runs are not pooled, since each has a model of its own: a figure is computed within each run, and then averaged over the runs.
What a run or a site cannot have (an AUC without normal cases) is NaN there, and left out of means and of the worst.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, get_args

import numpy as np

from experiments.comparison.records import Prediction
from shared.errors import InputError
from site_agent.training.metrics import probability

Array = np.ndarray
At = Literal["half", "validation"]
"""Where disease is called: at probability 0.5 (margin 0), or at the threshold its site chose on validation cases."""
BINS = 15
"""Of equal width on the probability of disease; the number of Guo et al. 2017."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cases:
    """Cases of one run, ordered by site and case. Each array is (n,); labels are 0 (normal) and 1 (disease)."""

    sites: Array
    labels: Array
    margins: Array
    thresholds: Array


Figure = Callable[[Cases, Array], Array]
"""Cases (n) and weights (draws, n), counts of each case -> (draws,)."""


def cases_by_run(predictions: Iterable[Prediction]) -> dict[int, Cases]:
    """Return the cases of each run, runs in order.

    Raises InputError if there are none, or naming the first case that is there twice, has a label other than 0 and 1, a margin
    that is not finite, or no threshold.
    """
    runs: dict[int, dict[tuple[str, str], Prediction]] = {}
    for one in predictions:
        cases = runs.setdefault(one.run, {})
        fault = _fault(one) or ("is there twice" if (one.site, one.case) in cases else "")
        if fault:
            raise InputError(
                f"case '{one.case}' of site '{one.site}' in run {one.run} {fault}; compute this cell again"
            )
        cases[one.site, one.case] = one
    if not runs:
        raise InputError("there are no predictions to compute figures from; run the comparison first")
    return {run: _arrays([cases[key] for key in sorted(cases)]) for run, cases in sorted(runs.items())}


def _fault(one: Prediction) -> str:
    if one.label not in (0, 1):
        return f"has label {one.label}, expected 0 or 1"
    if not math.isfinite(one.margin):
        return f"has margin {one.margin}, expected a finite number"
    return "has no threshold" if math.isnan(one.threshold) else ""


def _arrays(ordered: list[Prediction]) -> Cases:
    return Cases(
        sites=np.array([one.site for one in ordered]),
        labels=np.array([one.label for one in ordered]),
        margins=np.array([one.margin for one in ordered], dtype=np.float64),
        thresholds=np.array([one.threshold for one in ordered], dtype=np.float64),
    )


def part(cases: Cases, which: Array) -> Cases:
    """Return the cases where `which` (n,) is true."""
    return Cases(**{one.name: getattr(cases, one.name)[which] for one in fields(Cases)})


def called(cases: Cases, at: At) -> Array:
    """Return (n,) whether each case is called diseased: margin at or above the threshold."""
    return np.asarray(cases.margins >= (0.0 if at == "half" else cases.thresholds))


def sensitivity(cases: Cases, weights: Array, *, at: At) -> Array:
    """Share of the diseased called diseased; NaN without any."""
    diseased = cases.labels == 1
    return ratio(weights @ (diseased & called(cases, at)), weights @ diseased)


def specificity(cases: Cases, weights: Array, *, at: At) -> Array:
    """Share of the normal called normal; NaN without any."""
    normal = cases.labels == 0
    return ratio(weights @ (normal & ~called(cases, at)), weights @ normal)


def balanced_accuracy(cases: Cases, weights: Array, *, at: At) -> Array:
    """(sensitivity + specificity) / 2; NaN if a class is missing."""
    return np.asarray((sensitivity(cases, weights, at=at) + specificity(cases, weights, at=at)) / 2)


def mcc(cases: Cases, weights: Array, *, at: At) -> Array:
    """Matthews' correlation, (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)).

    0 if all cases are called the same, as in scikit-learn; NaN if a class is missing.
    """
    call, diseased = called(cases, at), cases.labels == 1
    tp, fn = weights @ (call & diseased), weights @ (~call & diseased)
    fp, tn = weights @ (call & ~diseased), weights @ (~call & ~diseased)
    classes, calls = (tp + fn) * (tn + fp), (tp + fp) * (tn + fn)
    correlation = ratio(tp * tn - fp * fn, np.sqrt(classes * np.where(calls > 0, calls, 1)))
    return np.where(classes > 0, correlation, np.nan)


def auc(cases: Cases, weights: Array) -> Array:
    """Share of pairs (diseased, normal) with the diseased margin above, equal ones half (Mann-Whitney). NaN without pairs."""
    diseased, normal = cases.labels == 1, cases.labels == 0
    wins = np.heaviside(cases.margins[diseased][:, None] - cases.margins[normal], 0.5)  # (diseased, normal)
    won = np.einsum("ij,ij->i", weights[:, diseased] @ wins, weights[:, normal])
    return ratio(won, (weights @ diseased) * (weights @ normal))


def brier(cases: Cases, weights: Array) -> Array:
    """Mean of (p - label)^2, p the probability of disease: 0 to 1, a coin has 0.25."""
    return ratio(weights @ excess(cases) ** 2, weights.sum(axis=1))


def ece(cases: Cases, weights: Array) -> Array:
    """Expected calibration error: sum over bins of n_bin / n |mean p - share diseased|, p the probability.

    BINS bins of equal width, each with its lower edge, the last with both. Above 0 by chance, the more the fewer the cases.
    Source: Naeini et al. 2015 (AAAI), on the probability of disease rather than of the called class.
    """
    binned = np.eye(BINS)[bin_of(cases)] * excess(cases)[:, None]  # (n, bins)
    return ratio(np.abs(weights @ binned).sum(axis=1), weights.sum(axis=1))


def specificity_at(cases: Cases, weights: Array, *, least: float) -> Array:
    """Highest specificity of a threshold whose sensitivity is at least `least`, on these very cases. NaN if a class is missing.

    A threshold is one of the margins, so cases with equal margins are called together.
    """
    order = np.argsort(-cases.margins, kind="stable")
    ordered, labels, margins = weights[:, order], cases.labels[order], cases.margins[order]
    diseased, normal = weights @ cases.labels, weights @ (1 - cases.labels)
    ends = np.flatnonzero(np.append(np.diff(margins) != 0, True))  # the last of each group of equal margins
    found = ratio(np.cumsum(ordered * labels, axis=1)[:, ends], diseased[:, None])
    spared = ratio(normal[:, None] - np.cumsum(ordered * (1 - labels), axis=1)[:, ends], normal[:, None])
    highest = np.argmax(found >= least, axis=1)  # specificity only falls along the thresholds, so the first will do
    return np.where(diseased > 0, spared[np.arange(len(weights)), highest], np.nan)


def mean_over_sites(figure: Figure) -> Figure:
    """Return the unweighted mean of the sites' figures."""
    return lambda cases, weights: mean(_each_site(figure, cases, weights))


def worst_site(figure: Figure) -> Figure:
    """Return the lowest of the sites' figures, for figures where more is better; each resample has its own worst site."""
    return lambda cases, weights: np.asarray(np.fmin.reduce(_each_site(figure, cases, weights), axis=0))


def of_site(figure: Figure, site: str) -> Figure:
    """Return the figure of one site alone."""
    return lambda cases, weights: figure(part(cases, cases.sites == site), weights[:, cases.sites == site])


def _each_site(figure: Figure, cases: Cases, weights: Array) -> Array:
    return np.stack([of_site(figure, site)(cases, weights) for site in np.unique(cases.sites)])  # (sites, draws)


def mean(values: Array) -> Array:
    """Mean over the first axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))


def by_run(predictions: Iterable[Prediction], figure: Figure) -> dict[int, float]:
    """Return the figure of each run; NaN where a run cannot have it."""
    runs = cases_by_run(predictions)
    return {run: float(figure(cases, np.ones((1, len(cases.labels))))[0]) for run, cases in runs.items()}


def over_runs(predictions: Iterable[Prediction], figure: Figure) -> float:
    """Return the mean over the runs' figures."""
    return float(mean(np.array(list(by_run(predictions, figure).values()))))


ALONE: Mapping[str, Figure] = {
    **{f"balanced_accuracy_{at}": partial(balanced_accuracy, at=at) for at in get_args(At)},
    **{f"sensitivity_{at}": partial(sensitivity, at=at) for at in get_args(At)},
    **{f"specificity_{at}": partial(specificity, at=at) for at in get_args(At)},
    **{f"mcc_{at}": partial(mcc, at=at) for at in get_args(At)},
    "auc": auc,
    "brier": brier,
    "ece": ece,
    "specificity_at_90": partial(specificity_at, least=0.90),
    "specificity_at_95": partial(specificity_at, least=0.95),
}
"""Figures of any set of cases, of one site's too."""
SPREAD = ("balanced_accuracy_half", "balanced_accuracy_validation", "auc")
FIGURES: Mapping[str, Figure] = {
    **ALONE,
    **{f"{name}_site_mean": mean_over_sites(ALONE[name]) for name in SPREAD},
    **{f"{name}_worst_site": worst_site(ALONE[name]) for name in SPREAD},
}
"""Figures of a method: of all its cases, sites together; the mean over sites; the worst site of each run."""


def disease(cases: Cases) -> Array:
    """Return the probability of disease, (n,)."""
    with np.errstate(over="ignore"):  # exp of a margin below -709 is infinite, and the probability 0, as it should be
        return probability(cases.margins)


def excess(cases: Cases) -> Array:
    """Return probability less label, (n,)."""
    return np.asarray(disease(cases) - cases.labels)


def bin_of(cases: Cases) -> Array:
    """Return the number of each case's bin, (n,)."""
    return np.asarray(np.minimum((disease(cases) * BINS).astype(int), BINS - 1))


def ratio(above: Array, below: Array) -> Array:
    """Return above / below, NaN for 0 / 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(above / below)

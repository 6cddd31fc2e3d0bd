"""How far probabilities are what they say: the bins of a reliability diagram."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.comparison import metrics
from experiments.comparison.records import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """One bin of a reliability diagram: probabilities in [low, high). The last two are NaN if it is empty."""

    low: float
    high: float
    n: int
    probability: float
    """Their mean."""
    diseased: float
    """Share of the cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """`bins` hold the `n` cases of all runs together. `ece`: the mean over the runs' own. `ece_of_bins`: what `bins` give, which
    is the lower of the two, since chance deviations of the runs cancel in it."""

    n: int
    bins: tuple[Bin, ...]
    ece: float
    ece_of_bins: float


def of(predictions: Sequence[Prediction]) -> Calibration:
    """Return the expected calibration error and the reliability diagram's bins."""
    runs = metrics.cases_by_run(predictions).values()
    place = np.concatenate([metrics.bin_of(cases) for cases in runs])
    counts, probabilities, diseased = (
        np.bincount(place, weights=weights, minlength=metrics.BINS)
        for weights in (
            None,
            np.concatenate([metrics.disease(cases) for cases in runs]),
            np.concatenate([cases.labels for cases in runs]),
        )
    )
    means, shares = metrics.ratio(probabilities, counts), metrics.ratio(diseased, counts)
    bins = [
        Bin(low=k / metrics.BINS, high=(k + 1) / metrics.BINS, n=int(n), probability=float(p), diseased=float(d))
        for k, (n, p, d) in enumerate(zip(counts, means, shares, strict=True))
    ]
    gap = float(np.abs(probabilities - diseased).sum() / len(place))
    return Calibration(n=len(place), bins=tuple(bins), ece=metrics.over_runs(predictions, metrics.ece), ece_of_bins=gap)

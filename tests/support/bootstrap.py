"""The bootstrap of one method, or of two on the same patients, run by run: what the report draws once for all methods."""

from collections.abc import Sequence

import numpy as np

from experiments.comparison import metrics, statistics
from experiments.comparison.metrics import Figure
from experiments.comparison.records import Prediction
from experiments.comparison.statistics import Interval


def bootstrap(predictions: Sequence[Prediction], figure: Figure, *, draws: int = 2000, seed: int) -> Interval:
    """Return the mean over runs of a figure with its interval."""
    rng = np.random.default_rng(seed)
    runs = metrics.cases_by_run(predictions).values()
    points = [float(figure(cases, np.ones((1, len(cases.labels))))[0]) for cases in runs]
    return statistics.percentiles(points, [figure(cases, statistics.resample(cases, draws, rng)) for cases in runs])


def paired_bootstrap(
    first: Sequence[Prediction], second: Sequence[Prediction], figure: Figure, *, draws: int = 2000, seed: int
) -> Interval:
    """Return the mean over runs of first - second with its interval."""
    rng = np.random.default_rng(seed)
    points, resampled = [], []
    for mine, theirs in statistics.paired_cases(first, second):
        weights, once = statistics.resample(mine, draws, rng), np.ones((1, len(mine.labels)))
        points.append(float((figure(mine, once) - figure(theirs, once))[0]))
        resampled.append(figure(mine, weights) - figure(theirs, weights))
    return statistics.percentiles(points, resampled)

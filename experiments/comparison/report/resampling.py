"""Bootstrap of all methods at once: in a run all of them meet the same resampled patients, so any two can be subtracted.

Drawing once for all methods makes an interval a subtraction, and hundreds of intervals a matter of seconds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from experiments.comparison import metrics, statistics
from experiments.comparison.metrics import FIGURES, Array, Figure
from experiments.comparison.report.finished import Comparison, Result
from experiments.comparison.statistics import Interval

DRAWS, SEED = 2000, 20260
MEAN, WORST = "balanced_accuracy_validation_site_mean", "balanced_accuracy_validation_worst_site"
HALF, SPECIFICITY = "balanced_accuracy_half_site_mean", "specificity_validation"
SITE = "balanced_accuracy_validation"
"""The figure whose interval is drawn for each site alone."""
DRAWN = (MEAN, WORST, HALF, SPECIFICITY)

Key = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Figures by scenario, method and name, then by run: of all cases once (float), and of each resample (draws,)."""

    points: Mapping[Key, Mapping[int, float]]
    resampled: Mapping[Key, Mapping[int, Array]]

    def interval(self, one: Result, figure: str) -> Interval:
        """Return the mean over all runs of a method's figure."""
        key, runs = (one.scenario, one.method, figure), list(one.cells)
        return statistics.percentiles(
            [self.points[key][run] for run in runs], [self.resampled[key][run] for run in runs]
        )

    def difference(self, first: Result, second: Result, figure: str) -> Interval:
        """Return the mean over the runs that both have of first - second. Both are of one scenario."""
        mine, theirs = ((one.scenario, one.method, figure) for one in (first, second))
        runs = common_runs(first, second)
        return statistics.percentiles(
            [self.points[mine][run] - self.points[theirs][run] for run in runs],
            [self.resampled[mine][run] - self.resampled[theirs][run] for run in runs],
        )


def common_runs(first: Result, second: Result) -> list[int]:
    """Return the runs that both have."""
    return sorted(first.cells.keys() & second.cells.keys())


def at_site(site: str) -> str:
    """Return the name that a site's own figure has among the draws."""
    return f"{SITE}@{site}"


def draw(comparison: Comparison, *, draws: int = DRAWS, seed: int = SEED) -> Draws:
    """Resample every scenario's patients, and compute the drawn figures of all its methods; those of sites without extensions'."""
    points: dict[Key, dict[int, float]] = {}
    resampled: dict[Key, dict[int, Array]] = {}
    for scenario in comparison.scenarios:
        held, rng = comparison.within(scenario, extended=True), np.random.default_rng(seed)
        for run in sorted({run for one in held.values() for run in one.cells}):
            present = [one for one in held.values() if run in one.cells]
            weights = statistics.resample(present[0].cases[run], draws, rng)
            for one in present:
                for name, figure in _figures(one):
                    found = figure(one.cases[run], np.vstack([np.ones(weights.shape[1]), weights]))
                    points.setdefault((scenario, one.method, name), {})[run] = float(found[0])
                    resampled.setdefault((scenario, one.method, name), {})[run] = found[1:]
    return Draws(points=points, resampled=resampled)


def _figures(one: Result) -> Iterable[tuple[str, Figure]]:
    yield from ((name, FIGURES[name]) for name in DRAWN)
    if one.contender.group != "extension":
        yield from ((at_site(site), metrics.of_site(FIGURES[SITE], site)) for site in one.sites)

"""The exploratory comparisons: every method against both references, every switch against the method it is put on, and what was
asked of the results afterwards.

All p values of them together are one family for Holm; none of them was fixed in advance, and none is a finding by itself.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from experiments.comparison import extensions, statistics
from experiments.comparison.metrics import Cases
from experiments.comparison.records import Prediction
from experiments.comparison.report import primary, resampling
from experiments.comparison.report.finished import Comparison, Result
from experiments.comparison.report.resampling import DRAWN, MEAN, Draws
from experiments.comparison.statistics import DIGITS, NO_VARIANCE, DeLong, Interval, McNemar, Wilcoxon

Kind = Literal["method", "switch", "later"]
LATER = (("ours", "fedit-r12"), ("med-duallora+norm-cap", "ours"))
"""Asked when the results were known: our recipe against what it is without a local part, and a norm cap on the plain one against
ours."""
TESTS = ("wilcoxon", "delong", "sensitivity", "specificity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Areas:
    """Difference of two AUCs: DeLong's of each site and run, averaged. p None if cases do not say how sure it is."""

    runs: int
    difference: Interval
    p: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """first - second in one scenario, on the runs that both have.

    `differences`: of the drawn figures, by name. `same`: whether all predictions are the same, as if a switch changes nothing.
    `blocks`: which blocks were picked in how many runs, in words; nothing where none were.
    `holm`: adjusted p by test, of those that have one.
    """

    kind: Kind
    scenario: str
    first: str
    second: str
    runs: int
    same: bool
    blocks: str
    differences: Mapping[str, Interval]
    wilcoxon: Wilcoxon | None
    areas: Areas | None
    sensitivity: McNemar | None
    specificity: McNemar | None
    holm: Mapping[str, float]

    @property
    def p_values(self) -> dict[str, float]:
        """Those there are, by test."""
        found = {
            "wilcoxon": self.wilcoxon.p if self.wilcoxon else None,
            "delong": self.areas.p if self.areas else None,
            "sensitivity": self.sensitivity.p if self.sensitivity else None,
            "specificity": self.specificity.p if self.specificity else None,
        }
        return {name: p for name, p in found.items() if p is not None}


def compute(comparison: Comparison, draws: Draws) -> tuple[Pair, ...]:
    """Return all exploratory comparisons, with Holm's adjustment over all of their p values."""
    pairs = [_pair(kind, draws, first, second) for kind, first, second in _chosen(comparison)]
    flat = [(index, name, p) for index, one in enumerate(pairs) for name, p in one.p_values.items()]
    adjusted: list[dict[str, float]] = [{} for _ in pairs]
    for (index, name, _), p in zip(flat, statistics.holm([p for _, _, p in flat]), strict=True):
        adjusted[index][name] = p
    return tuple(replace(one, holm=holm) for one, holm in zip(pairs, adjusted, strict=True))


def _chosen(comparison: Comparison) -> Iterator[tuple[Kind, Result, Result]]:
    for scenario in comparison.scenarios:
        held = comparison.within(scenario)
        for place, reference in enumerate(primary.REFERENCES):
            for key, one in held.items():
                if reference in held and key not in primary.REFERENCES[: place + 1]:
                    yield from _if_paired("method", one, held[reference])
    for (scenario, key), one in comparison.results.items():
        base = comparison.results.get((scenario, extensions.basis_of(key)))
        if one.contender.group == "extension" and base is not None:
            yield from _if_paired("switch", one, base)
    for first, second in LATER:
        pair = [comparison.results.get((comparison.home, key)) for key in (first, second)]
        if pair[0] is not None and pair[1] is not None:
            yield from _if_paired("later", pair[0], pair[1])


def _if_paired(kind: Kind, first: Result, second: Result) -> Iterator[tuple[Kind, Result, Result]]:
    if resampling.common_runs(first, second):
        yield kind, first, second


def _pair(kind: Kind, draws: Draws, first: Result, second: Result) -> Pair:
    runs = resampling.common_runs(first, second)
    mine, theirs = first.every(runs), second.every(runs)
    labels = {one.label for one in mine}
    return Pair(
        kind=kind,
        scenario=first.scenario,
        first=first.method,
        second=second.method,
        runs=len(runs),
        same=sorted(mine, key=_case) == sorted(theirs, key=_case),
        blocks=_picked(first, runs),
        differences={name: draws.difference(first, second, name) for name in DRAWN},
        wilcoxon=None if primary.is_planned(first, second) else primary.signed_ranks(first, second, MEAN),
        areas=areas(first, second),
        sensitivity=statistics.mcnemar(mine, theirs, 1, "validation") if 1 in labels else None,
        specificity=statistics.mcnemar(mine, theirs, 0, "validation") if 0 in labels else None,
        holm={},
    )


def _picked(one: Result, runs: Sequence[int]) -> str:
    if not one.contender.picked_blocks:
        return ""
    counts = Counter(one.cells[run].blocks for run in runs).most_common()
    return "; ".join(f"blocks {', '.join(map(str, blocks))} in {count} of {len(runs)} runs" for blocks, count in counts)


def _case(one: Prediction) -> tuple[int, str, str]:
    return one.run, one.site, one.case


def areas(first: Result, second: Result) -> Areas | None:
    """Return the mean over runs of the mean over sites of the AUCs' differences, with its variance sum V / (sites runs)^2.

    V: DeLong's variance of the difference at one site of one run, where that site's cases alone are ranked, since sites with
    private parts have scores of their own. Sites with fewer than two cases of a class are left out of a run, runs without any
    site too; None if all are.
    """
    from scipy.stats import norm

    found, variances = [], []
    for run in resampling.common_runs(first, second):
        sites = list(_site_areas(first.cases[run], second.cases[run]))
        if sites:
            found.append(float(np.mean([one.difference for one in sites])))
            variances.append(sum(one.variance for one in sites) / len(sites) ** 2)
    if not found:
        return None
    value, sd = float(np.mean(found)), math.sqrt(sum(variances)) / len(found)
    reach = sd * float(norm.ppf((1 + statistics.CONFIDENCE) / 2))
    if sd**2 > NO_VARIANCE:
        p: float | None = float(2 * norm.sf(abs(value) / sd))
    else:
        p = 1.0 if abs(value) < 10**-DIGITS else None
    return Areas(runs=len(found), difference=Interval(value=value, low=value - reach, high=value + reach, sd=sd), p=p)


def _site_areas(mine: Cases, theirs: Cases) -> Iterator[DeLong]:
    for site in np.unique(mine.sites):
        here = mine.sites == site
        labels = mine.labels[here]
        if min(np.sum(labels == label) for label in (0, 1)) >= 2:
            yield statistics.delong(mine.margins[here], theirs.margins[here], labels)

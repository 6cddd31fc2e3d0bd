"""The primary family: the tests that were fixed before the first comparison. Whatever else is compared is exploratory.

Our recipe against rank-matched FedIT and plain Med-DualLoRA, in three shifted scenarios, by mean and worst-site balanced accuracy
at the validation thresholds: 12 tests, Wilcoxon's over runs, adjusted by Holm over the 12. Beside it, where sites differ in size
alone, our recipe is to lose nothing: the lower bound of the mean's difference over runs is to be above LOSS. On real patients there
is one scenario and 4 tests, and runs are folds of one cohort: dependent, so that these p values describe and do not prove.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from experiments.comparison import metrics, statistics
from experiments.comparison.report import resampling
from experiments.comparison.report.finished import Comparison, Result
from experiments.comparison.report.resampling import Draws
from experiments.comparison.statistics import Interval, Wilcoxon

OURS, REFERENCES = "ours", ("fedit-r16", "med-duallora")
SCENARIOS = ("shifted", "convention", "wall-bias")
FIGURES = (resampling.MEAN, resampling.WORST)
EQUAL, LOSS = "homogeneous", -0.02
ALPHA = 0.05

Verdict = Literal["not run yet", "no test", "ours better", "ours worse", "undecided"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTest:
    """One test of the family."""

    scenario: str
    reference: str
    figure: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A test and what came of it. `ours`, `theirs`: means over the `runs` that both have; None until there are any.

    `over_runs`: Student's, of whole runs; `patients`: resampled patients of these very models. `over_runs`, `wilcoxon` and `holm`
    are None below two runs. Holm's adjustment is over the whole family from the start: tests not run yet count in it with p = 1.
    """

    planned: PlannedTest
    runs: int = 0
    ours: float | None = None
    theirs: float | None = None
    over_runs: Interval | None = None
    patients: Interval | None = None
    wilcoxon: Wilcoxon | None = None
    holm: float | None = None

    @property
    def verdict(self) -> Verdict:
        """By Holm's p at ALPHA; a difference of 0 cannot have a small one."""
        if self.patients is None:
            return "not run yet"
        if self.holm is None:
            return "no test"
        if self.holm >= ALPHA:
            return "undecided"
        return "ours better" if self.patients.value > 0 else "ours worse"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoLoss:
    """Our recipe less a reference where sites differ in size alone: the mean over sites by runs, which is the criterion, and by
    patients, and the worst site by runs. None: not run yet, or too few runs."""

    reference: str
    runs: int = 0
    mean: Interval | None = None
    patients: Interval | None = None
    worst: Interval | None = None

    @property
    def held(self) -> bool | None:
        """Whether the lower bound of the mean over runs is above LOSS; None below two runs."""
        return None if self.mean is None else self.mean.low > LOSS


@dataclass(frozen=True, slots=True, kw_only=True)
class Primary:
    """The family's results. `runs`: how many were planned. `dependent`: whether runs are folds of one cohort, as on real patients;
    `no_loss` is empty then."""

    tests: tuple[Outcome, ...]
    no_loss: tuple[NoLoss, ...]
    runs: int
    dependent: bool

    @property
    def complete(self) -> bool:
        """Whether all tests have the runs that were planned."""
        return min(one.runs for one in self.tests) >= self.runs and all(one.runs >= self.runs for one in self.no_loss)


def family(comparison: Comparison) -> Iterator[PlannedTest]:
    """Yield the tests: 12 on phantoms, 4 on real patients."""
    for scenario in SCENARIOS if comparison.synthetic else comparison.scenarios:
        for reference in REFERENCES:
            for figure in FIGURES:
                yield PlannedTest(scenario=scenario, reference=reference, figure=figure)


def compute(comparison: Comparison, draws: Draws) -> Primary:
    """Return the family with its p values adjusted, and the differences in the homogeneous scenario."""
    tests = [_test(comparison, draws, planned) for planned in family(comparison)]
    adjusted = statistics.holm([one.wilcoxon.p if one.wilcoxon else 1.0 for one in tests])
    return Primary(
        tests=tuple(replace(one, holm=p if one.wilcoxon else None) for one, p in zip(tests, adjusted, strict=True)),
        no_loss=tuple(_no_loss(comparison, draws, one) for one in REFERENCES) if comparison.synthetic else (),
        runs=comparison.planned_runs("core"),
        dependent=not comparison.synthetic,
    )


def _test(comparison: Comparison, draws: Draws, planned: PlannedTest) -> Outcome:
    both = _pair(comparison.results, planned.scenario, planned.reference)
    if both is None:
        return Outcome(planned=planned)
    ours, theirs = both
    runs = resampling.common_runs(ours, theirs)
    means = [float(metrics.mean(np.array([one.figures[planned.figure][run] for run in runs]))) for one in both]
    return Outcome(
        planned=planned,
        runs=len(runs),
        ours=means[0],
        theirs=means[1],
        over_runs=statistics.student(differences(ours, theirs, planned.figure)),
        patients=draws.difference(ours, theirs, planned.figure),
        wilcoxon=signed_ranks(ours, theirs, planned.figure),
    )


def is_planned(first: Result, second: Result) -> bool:
    """Whether the mean of these two is compared in the primary family."""
    return first.method == OURS and second.method in REFERENCES and first.scenario != EQUAL


def signed_ranks(first: Result, second: Result, figure: str) -> Wilcoxon | None:
    """Return Wilcoxon's test over the runs in which both have the figure; None below two of them."""
    found = differences(first, second, figure)
    return statistics.wilcoxon(found) if len(found) > 1 else None


def differences(first: Result, second: Result, figure: str) -> list[float]:
    """Return first - second of each run that both have, without runs that cannot have the figure."""
    mine, theirs = first.figures[figure], second.figures[figure]
    found = (mine[run] - theirs[run] for run in resampling.common_runs(first, second))
    return [value for value in found if not math.isnan(value)]


def _no_loss(comparison: Comparison, draws: Draws, reference: str) -> NoLoss:
    both = _pair(comparison.results, EQUAL, reference)
    if both is None:
        return NoLoss(reference=reference)
    mean, worst = (statistics.student(differences(*both, figure)) for figure in FIGURES)
    return NoLoss(
        reference=reference,
        runs=len(resampling.common_runs(*both)),
        mean=mean,
        patients=draws.difference(*both, FIGURES[0]),
        worst=worst,
    )


def _pair(results: Mapping[tuple[str, str], Result], scenario: str, reference: str) -> tuple[Result, Result] | None:
    """Return our recipe and a reference; None if they have no run in common."""
    ours, theirs = results.get((scenario, OURS)), results.get((scenario, reference))
    if ours is None or theirs is None or not resampling.common_runs(ours, theirs):
        return None
    return ours, theirs


def words(primary: Primary) -> list[str]:
    """Return the primary result in sentences, the first of them the result of the family."""
    verdicts = [one.verdict for one in primary.tests]
    count = {verdict: verdicts.count(verdict) for verdict in get_args(Verdict)}
    total, pending = len(verdicts), count["not run yet"]
    lines = []
    if pending:
        lines.append(f"Preliminary: {pending} of the {total} primary tests are not run yet.")
    if short := sum(0 < one.runs < primary.runs for one in primary.tests):
        lines.append(
            f"Preliminary: {short} of the {total} primary tests have fewer than the {primary.runs} runs that were planned."
        )
    if any(0 < one.runs < primary.runs for one in primary.no_loss):
        lines.append(f"Preliminary: the homogeneous scenario has fewer than the {primary.runs} runs that were planned.")
    if longer := sum(one.runs > primary.runs for one in primary.tests):
        lines.append(f"{longer} of the {total} primary tests have more than the {primary.runs} runs that were planned.")
    if count["no test"]:
        lines.append(
            f"{count['no test']} of the {total} primary tests have one run, and a test over runs needs several: no p values there, "
            "differences with intervals of their patients only."
        )
    if tested := total - pending - count["no test"]:
        lines.append(
            f"Of {tested} primary tests {count['ours better']} find our recipe better and {count['ours worse']} find it worse "
            f"(Wilcoxon over runs, Holm over {total}, p < {ALPHA}); {count['undecided']} are undecided."
            + (
                " DEPENDENT: runs are folds of one cohort, so these p values describe and prove nothing."
                if primary.dependent
                else ""
            )
        )
    for verdict in ("ours better", "ours worse"):
        if found := [_name(one.planned) for one in primary.tests if one.verdict == verdict]:
            lines.append(f"{verdict.capitalize()}: {'; '.join(found)}.")
    if unable := [
        one.wilcoxon.least_p for one in primary.tests if one.wilcoxon and one.wilcoxon.least_p * total >= ALPHA
    ]:
        lines.append(
            f"{len(unable)} of the tests cannot decide alone: so few runs differ that no p below {min(unable):.2g} is "
            f"attainable, and Holm multiplies the smallest by {total}."
        )
    return [*lines, *(_no_loss_words(one) for one in primary.no_loss)]


def _name(planned: PlannedTest) -> str:
    return f"{planned.scenario} against {planned.reference}, {'mean' if planned.figure == FIGURES[0] else 'worst site'}"


def _no_loss_words(one: NoLoss) -> str:
    if one.mean is None:
        few = "has one run, which gives no interval" if one.runs else "is not run yet"
        return f"Where sites differ in size alone, our recipe against {one.reference} {few}."
    return (
        f"Where sites differ in size alone, our recipe {'loses less than' if one.held else 'may lose more than'} {-LOSS} against "
        f"{one.reference}: {one.mean.value:+.3f}, over runs {one.mean.low:+.3f} to {one.mean.high:+.3f}."
    )

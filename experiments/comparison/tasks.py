"""The cells of a plan as tasks: where each goes, whether it is done, and about how long those that are not will take."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from experiments.comparison import plan as plans
from experiments.comparison import records, tuning
from experiments.comparison.contenders import Group
from experiments.comparison.extensions import PLUS, basis_of
from experiments.comparison.plan import Plan, Planned
from experiments.comparison.shots import SHOTS, UNSEEN, key
from shared.errors import InputError

CELLS = "cells"
COSTS = {UNSEEN: 3.5, "full": 9.0, "med-duallora-all": 2.5, "fdlora": 1.6, "first": 6.0, "repeated-first": 6.0}
"""Times a usual cell, measured; 1 where nothing is said."""
USUAL_S = 30.0
"""A usual cell of the whole phantom, before one is finished here."""
COHORT_S = 25.0


@dataclass(frozen=True, slots=True)
class Task:
    """A cell and where its files go."""

    planned: Planned
    folder: Path

    @property
    def tuning(self) -> bool:
        """Whether its method names a setting that is tried."""
        return self.planned.scenario == tuning.SCENARIO

    @property
    def record(self) -> Path:
        method = self.planned.method
        if self.planned.scenario == UNSEEN:  # of one federation several are made, in this order
            method = key(method, SHOTS[-1])
        return self.folder / f"{records.stem(method, self.planned.run)}.json"

    @property
    def done(self) -> bool:
        return self.record.exists() and self.record.with_suffix(".csv").exists()


def of_tuning(plan: Plan, methods: Iterable[str]) -> list[Task]:
    """Return the cells by which settings are still to be chosen for these methods, finished ones too."""
    return [placed(plan, Planned(tuning.SCENARIO, 0, one.key)) for one in tuning.lacking(plan.out, methods)]


def of_comparison(plan: Plan, groups: tuple[Group, ...]) -> list[Task]:
    """Return the cells of these groups."""
    return [placed(plan, one) for one in plans.cells(plan, groups)]


def ready(plan: Plan, wanted: Sequence[Task]) -> list[Task]:
    """Return what can run now and is not done: the cells that choose settings for `wanted`, and when those are, `wanted`."""
    settings = of_tuning(plan, [task.planned.method for task in wanted])
    return [task for task in settings if not task.done] or [task for task in wanted if not task.done]


def placed(plan: Plan, one: Planned) -> Task:
    """Return a cell with its place."""
    return Task(one, plan.out / tuning.FOLDER if one.scenario == tuning.SCENARIO else plan.out / CELLS / one.scenario)


def parsed(plan: Plan, text: str) -> Task:
    """Read a cell's text. Raises InputError for one that is none of this comparison's."""
    planned = Planned.parse(text)
    every = [Planned(tuning.SCENARIO, 0, one.key) for one in tuning.candidates()]
    every += plans.cells(plan, get_args(Group))
    if planned in every:
        return placed(plan, planned)
    if planned.scenario not in (names := list(dict.fromkeys(one.scenario for one in every))):
        raise InputError(f"no scenario is called '{planned.scenario}'; there are: {', '.join(names)}")
    runs = sum((one.scenario, one.method) == (planned.scenario, planned.method) for one in every)
    if not runs:
        raise InputError(
            f"no run of a method '{planned.method}' is planned in {planned.scenario}; `run --list` names the cells"
        )
    raise InputError(
        f"{planned} is not planned: there {'is 1 run' if runs == 1 else f'are {runs} runs'} of it, counted from 0; `run --list` "
        "names the cells, and --runs and --other-runs plan more"
    )


def estimate_s(plan: Plan, missing: Sequence[Task], jobs: int) -> float:
    """Return about how long the missing cells take.

    A method's cells take what its finished ones took here. Of a method that has none, and of all before the first, it is a guess
    from COSTS: of usual cells that took what finished ones say, or USUAL_S.
    """
    took, usual = dict[str, list[float]](), list[float]()
    for path in (*(plan.out / CELLS).glob("*/*.json"), *(plan.out / tuning.FOLDER).glob("*.json")):
        cell = records.read(path)
        if cell.scenario != UNSEEN:  # their seconds are of all shots so far
            took.setdefault(cell.method, []).append(cell.seconds)
            usual.append(cell.seconds / _cost(cell.scenario, cell.method))
    one = sum(usual) / len(usual) if usual else USUAL_S * plan.scale
    known = {method: sum(values) / len(values) for method, values in took.items()}
    each = sum(
        one * COSTS[UNSEEN]
        if task.planned.scenario == UNSEEN
        else known.get(task.planned.method, one * _cost(task.planned.scenario, task.planned.method))
        for task in missing
    )
    cohorts = len({(task.planned.scenario, task.planned.run) for task in missing}) if plan.synthetic else 0
    return (each + COHORT_S * cohorts * plan.scale) / jobs


def _cost(scenario: str, method: str) -> float:
    base, *switches = method.split(PLUS)
    return max(COSTS.get(name, 1.0) for name in (scenario, basis_of(base).partition(tuning.MARK)[0], *switches))


def finished(plan: Plan, *, of_comparison: bool = False) -> bool:
    """Return whether any cell is, or any of the comparison itself; before that the estimate is a guess from another machine."""
    any_setting = any((plan.out / tuning.FOLDER).glob("*.json"))
    return any((plan.out / CELLS).glob("*/*.json")) or (any_setting and not of_comparison)

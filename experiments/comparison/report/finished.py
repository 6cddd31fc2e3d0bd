"""What is finished of a comparison: methods by scenario with what their runs gave, and in words what is missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np

from experiments.comparison import config as configuration
from experiments.comparison import contenders, metrics, records, tuning
from experiments.comparison.config import CONFIG, CONTENT, DIGEST_SHOWN
from experiments.comparison.contenders import Contender, Group
from experiments.comparison.extensions import everyone, is_tried
from experiments.comparison.metrics import FIGURES, Cases, Figure
from experiments.comparison.records import Cell, Prediction
from experiments.comparison.scenarios import SHIFTED
from experiments.comparison.shots import BASES, SHOTS, UNSEEN
from experiments.comparison.shots import key as unseen_key
from shared.errors import InputError

CELLS, PREDICTIONS = "cells", "predictions"
CALLED: Mapping[Group, str] = {"core": "core methods", "other": "other methods", "extension": "extensions"}
MOST_NAMED = 3
"""Methods that lack runs are named up to so many."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One method in one scenario; mappings are by run, runs in order."""

    contender: Contender
    scenario: str
    cells: Mapping[int, Cell]
    predictions: Mapping[int, Sequence[Prediction]]

    @property
    def method(self) -> str:
        return self.contender.key

    @cached_property
    def cases(self) -> Mapping[int, Cases]:
        return metrics.cases_by_run(self.every())

    @cached_property
    def figures(self) -> Mapping[str, Mapping[int, float]]:
        """Every figure of every run; NaN where a run cannot have it."""
        return {name: self.of(figure) for name, figure in FIGURES.items()}

    def of(self, figure: Figure) -> dict[int, float]:
        """Return a figure of every run; NaN where a run cannot have it."""
        return {run: float(figure(cases, np.ones((1, len(cases.labels))))[0]) for run, cases in self.cases.items()}

    @property
    def sites(self) -> list[str]:
        return sorted({str(site) for cases in self.cases.values() for site in cases.sites})

    def every(self, runs: Sequence[int] | None = None) -> list[Prediction]:
        """Return the predictions of these runs, or of all."""
        return [one for run in (self.predictions if runs is None else runs) for one in self.predictions[run]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """A comparison's folder. `results`: by scenario and method, in the order of the configuration and of the contenders."""

    config: Mapping[str, Any]
    tuned: Mapping[str, Any]
    results: Mapping[tuple[str, str], Result]
    unseen: tuple[Result, ...]
    """Of vendors that the federation did not have, by base and shots."""
    unknown: tuple[str, ...]
    """Methods that have cells here and are not among the contenders."""

    @property
    def synthetic(self) -> bool:
        return bool(self.config["synthetic"])

    @property
    def scenarios(self) -> Mapping[str, str]:
        """Name → what differs between sites there."""
        return dict(self.config["scenarios"])

    @property
    def setting(self) -> Mapping[str, Any]:
        """The plan; files stand by the beginning of their digests."""
        plan: dict[str, Any] = self.config["plan"]
        return {name: value[:DIGEST_SHOWN] if name in CONTENT and value else value for name, value in plan.items()}

    def planned_runs(self, group: Group) -> int:
        """Return how many runs a method of this group was to have when the comparison was begun."""
        return int(self.config["runs"]["core" if group == "core" else "other"])

    def versions(self) -> list[str]:
        """Return the sets of versions that computed the cells; where a cell does not say, those of the folder's beginning."""
        cells = (cell for one in (*self.results.values(), *self.unseen) for cell in one.cells.values())
        began: dict[str, str] = self.config["versions"]
        return sorted(
            {", ".join(f"{name} {value}" for name, value in (one.versions or began).items()) for one in cells}
        )

    @property
    def home(self) -> str:
        """The scenario that all methods meet."""
        return SHIFTED if SHIFTED in self.scenarios else next(iter(self.scenarios))

    def within(self, scenario: str, *, extended: bool = False) -> dict[str, Result]:
        """Return a scenario's methods by key: without extensions, or with them."""
        return {
            key: one
            for (place, key), one in self.results.items()
            if place == scenario and (extended or one.contender.group != "extension")
        }

    def by_method(self) -> dict[str, list[Result]]:
        """Return each method's results in all scenarios, in the order of the contenders."""
        found: dict[str, list[Result]] = {}
        for one in self.results.values():
            found.setdefault(one.method, []).append(one)
        return {one.key: found[one.key] for one in everyone() if one.key in found}


def load(out: Path) -> Comparison:
    """Read a comparison's folder. Raises InputError if it is none, nothing is finished, or a cell is damaged or misplaced."""
    config = configuration.read(out / CONFIG)
    if config is None:
        raise InputError(f"{out} holds no comparison: it has no {CONFIG}; begin with `run --out {out}`")
    results, unknown = {}, set[str]()
    for scenario in config["scenarios"]:
        held = _cells(out / CELLS / scenario)
        unknown |= held.keys() - {one.key for one in everyone()}
        for one in everyone():
            if one.key in held:
                results[scenario, one.key] = _result(out, scenario, one, held[one.key])
    shots = _unseen(out)
    if not results:
        raise InputError(f"no cell of {out} is finished yet; go on with `run --out {out}`")
    _check_same_cases([*results.values(), *shots])
    return Comparison(
        config=config,
        tuned=tuning.read(out),
        results=results,
        unseen=shots,
        unknown=tuple(sorted(unknown)),
    )


def _unseen(out: Path) -> tuple[Result, ...]:
    held = _cells(out / CELLS / UNSEEN)
    return tuple(_result(out, UNSEEN, one, held[one.key]) for one in _served() if one.key in held)


def _served(after: Sequence[int] = SHOTS) -> list[Contender]:
    """Return what a left-out vendor is served: every base after each of these numbers of shots."""
    return [
        replace(one, key=unseen_key(one.key, shots), title=f"{one.title}, {shots} shots")
        for one in map(contenders.find, BASES)
        for shots in after
    ]


def _cells(folder: Path) -> dict[str, dict[int, Cell]]:
    found: dict[str, dict[int, Cell]] = {}
    for path in sorted(folder.glob("*-run*.json")):
        cell = records.read(path)
        if (cell.scenario, records.stem(cell.method, cell.run)) != (folder.name, path.stem):
            raise InputError(f"{path} is of another cell ({cell.scenario}, {cell.method}, run {cell.run}); remove it")
        found.setdefault(cell.method, {})[cell.run] = cell
    return found


def _result(out: Path, scenario: str, one: Contender, cells: Mapping[int, Cell]) -> Result:
    folder, runs = out / CELLS / scenario, sorted(cells)
    predictions = {run: records.read_predictions(folder / f"{records.stem(one.key, run)}.csv") for run in runs}
    for run, held in predictions.items():
        if not held or any(prediction.run != run for prediction in held):
            raise InputError(
                f"the predictions of {scenario}/{one.key}/{run} are empty or of another run; remove the cell"
            )
    return Result(contender=one, scenario=scenario, cells={run: cells[run] for run in runs}, predictions=predictions)


def _check_same_cases(results: Sequence[Result]) -> None:
    """Raise InputError if two methods of a run were not tested on the same cases, since all comparisons are paired."""
    first: dict[tuple[str, int], tuple[str, set[tuple[str, str, int]]]] = {}
    for one in results:
        scenario, method = one.scenario, one.method
        for run, held in one.predictions.items():
            cases = {(prediction.site, prediction.case, prediction.label) for prediction in held}
            reference, expected = first.setdefault((scenario, run), (method, cases))
            for site, case, _ in sorted(cases ^ expected):
                raise InputError(
                    f"case '{case}' of site '{site}' is not the same in {scenario}/{method}/{run} and "
                    f"{scenario}/{reference}/{run}; remove the wrong cell, and run the same command again"
                )


def write_predictions(out: Path, comparison: Comparison) -> None:
    """Write one CSV for each scenario and method with the predictions of all its held-out cases."""
    folder = out / PREDICTIONS
    folder.mkdir(exist_ok=True)
    for one in (*comparison.results.values(), *comparison.unseen):
        records.write_predictions(folder / f"{one.scenario}-{one.method}.csv", one.every())


def not_begun(comparison: Comparison) -> list[Group]:
    """Return the groups that were planned and of which no cell is finished: left out with --only, or still to come."""
    begun = {one.contender.group for one in comparison.results.values()}
    begun |= {"extension"} if comparison.unseen else set()
    return [group for group in get_args(Group) if comparison.planned_runs(group) and group not in begun]


def missing(comparison: Comparison) -> list[str]:
    """Return what is not finished of the groups that are begun, a line a group and scenario, and whether settings are lacking."""
    frames = str(comparison.setting.get("frames", ""))
    tried = [one for one in everyone() if is_tried(one, frames, synthetic=comparison.synthetic)]
    absent = not_begun(comparison)
    lines: list[str] = []
    for scenario in comparison.scenarios:
        held = comparison.within(scenario, extended=True)
        for group in get_args(Group):
            if group not in absent and (group == "core" or scenario == comparison.home):
                expected = [one for one in tried if one.group == group]
                lines += _lacking(scenario, expected, held, comparison.planned_runs(group), CALLED[group])
    if "extension" not in absent:
        unseen = {one.method: one for one in comparison.unseen}
        last = _served(SHOTS[-1:])  # one cell makes all, in this order
        lines += _lacking(UNSEEN, last, unseen, comparison.planned_runs("extension"), "left-out vendors")
    return lines if comparison.tuned else [*lines, f"the choice of settings ({tuning.CHOSEN})"]


def _lacking(
    scenario: str, expected: Sequence[Contender], held: Mapping[str, Result], runs: int, what: str
) -> Iterator[str]:
    """Say how many cells of so many runs are there, and where they are lacking if that is in few methods."""
    there = {one.title: min(runs, len(held[one.key].cells)) if one.key in held else 0 for one in expected}
    short = [f"{title} ({count} of {runs})" for title, count in there.items() if count < runs]
    if short:
        named = f": {'; '.join(short)}" if len(short) <= MOST_NAMED else ""
        yield f"{scenario}: {sum(there.values())} of {runs * len(expected)} cells of the {what} are finished{named}"

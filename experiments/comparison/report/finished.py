"""What is finished of a comparison: methods by scenario with what their runs gave, and in words what is missing."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments.comparison import contenders, metrics, records
from experiments.comparison.contenders import Contender, Group
from experiments.comparison.extensions import everyone, is_tried
from experiments.comparison.metrics import FIGURES, Cases, Figure
from experiments.comparison.records import Cell, Prediction
from experiments.comparison.scenarios import SHIFTED
from experiments.comparison.unseen import BASES, SHOTS, UNSEEN
from experiments.comparison.unseen import key as unseen_key
from shared.errors import InputError

CONFIG, TUNED, CELLS, PREDICTIONS = "config.json", "tuned.json", "cells", "predictions"
CONTENT = ("weights", "data")
"""What of a plan is the digest of files."""
MOST_NAMED = 6
"""Missing methods beyond so many are counted instead."""


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
        return {name: value[:12] if name in CONTENT and value else value for name, value in plan.items()}

    def planned_runs(self, group: Group) -> int:
        """Return how many runs a method of this group was to have when the comparison was begun."""
        return int(self.config["runs"]["core" if group == "core" else "other"])

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
    config = _json(out / CONFIG)
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
        tuned=_json(out / TUNED) or {},
        results=results,
        unseen=shots,
        unknown=tuple(sorted(unknown)),
    )


def _unseen(out: Path) -> tuple[Result, ...]:
    held = _cells(out / CELLS / UNSEEN)
    return tuple(_result(out, UNSEEN, one, held[one.key]) for one in _served() if one.key in held)


def _served() -> list[Contender]:
    """Return what a left-out vendor is served: every base after every number of shots."""
    return [
        replace(one, key=unseen_key(one.key, shots), title=f"{one.title}, {shots} shots")
        for one in map(contenders.find, BASES)
        for shots in SHOTS
    ]


def _json(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); restore it, or begin in another folder") from error
    return values


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


def missing(comparison: Comparison) -> list[str]:
    """Return what is not finished of the runs that were planned, in words."""
    lines = [line for scenario in comparison.scenarios for line in _missing(comparison, scenario)]
    unseen = {one.method: one for one in comparison.unseen}
    lines += _lacking(UNSEEN, _served(), unseen, comparison.planned_runs("extension"), "methods at vendors left out")
    return lines if comparison.tuned else [*lines, f"the choice of settings ({TUNED})"]


def _missing(comparison: Comparison, scenario: str) -> Iterator[str]:
    held, home = comparison.within(scenario, extended=True), scenario == comparison.home
    frames = str(comparison.setting.get("frames", ""))
    tried = [one for one in everyone() if is_tried(one, frames, synthetic=comparison.synthetic)]
    core, others = ([one for one in tried if (one.group == "core") == wanted] for wanted in (True, False))
    yield from _lacking(scenario, core, held, comparison.planned_runs("core"), "core methods")
    if home:
        runs = comparison.planned_runs("other")
        yield from _lacking(scenario, others, held, runs, "other methods and extensions")


def _lacking(
    scenario: str, expected: Sequence[Contender], held: Mapping[str, Result], runs: int, what: str
) -> Iterator[str]:
    absent = [one.title for one in expected if one.key not in held] if runs else []
    if len(absent) > MOST_NAMED or len(absent) == len(expected):
        yield f"{scenario}: {'all' if len(absent) == len(expected) else f'{len(absent)} of {len(expected)}'} {what}"
    elif absent:
        yield f"{scenario}: {'; '.join(absent)}"
    begun = [(one.title, len(held[one.key].cells)) for one in expected if one.key in held]
    short = [f"{title} ({there} of {runs} runs)" for title, there in begun if there < runs]
    if short:
        yield f"{scenario}: runs of {'; '.join(short)}"

"""Choosing each contender's numbers: the same budget for all, on one cohort that no run of the comparison sees.

The choice is the setting with the highest mean of AUC and balanced accuracy at the validation thresholds, both averaged over sites,
on that cohort's held-out cases; the first of equal ones. Real data has no cohort to spare: there one fold of a further shuffle
decides, whose patients other folds hold out too. The report says so.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.comparison import config, contenders, extensions, metrics, records
from experiments.comparison.contenders import CONTENDERS, MOST_SETTINGS, Contender
from experiments.comparison.metrics import FIGURES
from experiments.comparison.scenarios import locked
from shared.canonical import write_atomically
from shared.errors import InputError

FOLDER, CHOSEN = "tuning", "tuned.json"
MARK = "~"
SCENARIO = "tuning"
ADVICE = "remove it and give the command again: the settings are chosen anew from the cells of tuning, which stay"
FIGURES_USED = ("auc_site_mean", "balanced_accuracy_validation_site_mean")


def candidates() -> Iterator[Contender]:
    """Yield every contender with each of its settings; their keys say which."""
    for one in CONTENDERS:
        if len(one.settings) > MOST_SETTINGS:
            raise InputError(
                f"method '{one.key}' has {len(one.settings)} settings, at most {MOST_SETTINGS} may be tried"
            )
        if len(one.settings) > 1:
            for number, setting in enumerate(one.settings):
                yield replace(one.with_setting(setting), key=f"{one.key}{MARK}{number}")


def origin(key: str) -> str:
    """Return the key of the method whose setting a method takes: the one that it doubles or extends, or its own."""
    return extensions.basis_of(key).removesuffix("-2x")


def lacking(out: Path, methods: Iterable[str]) -> list[Contender]:
    """Return the candidates among which a setting is still to be chosen for these methods."""
    wanted = {origin(key) for key in methods} - read(out).keys()
    return [one for one in candidates() if one.key.partition(MARK)[0] in wanted]


def choose(out: Path, methods: Iterable[str]) -> None:
    """Add the choices for these methods with all scores to tuned.json; those that are there stay. Raises InputError if a cell of
    tuning is missing."""
    if not (wanted := lacking(out, methods)):
        return
    tried = _scores(out, wanted)
    with locked(out / CHOSEN):
        held = {
            **{method: _choice(contenders.find(method, CONTENDERS), rows) for method, rows in tried.items()},
            **read(out),
        }
        ordered = {one.key: held.pop(one.key) for one in CONTENDERS if one.key in held}
        write_atomically(out / CHOSEN, json.dumps({**ordered, **held}, indent=1).encode())


def read(out: Path) -> Mapping[str, Any]:
    """Return what was chosen by method, with all scores; empty if nothing was. Raises InputError if the file is damaged."""
    held = config.read(out / CHOSEN, ADVICE) or {}
    for method, choice in held.items():
        try:
            choice["settings"][range(len(choice["settings"]))[choice["chosen"]]]
        except (TypeError, KeyError, IndexError):
            raise InputError(
                f"{out / CHOSEN} is damaged: of '{method}' none of its settings is chosen; {ADVICE}"
            ) from None
    return held


def _scores(out: Path, wanted: Collection[Contender]) -> dict[str, list[dict[str, float]]]:
    """Return the figures of every setting by method. Raises InputError if a cell is missing."""
    missing = [one for one in wanted if not (out / FOLDER / f"{records.stem(one.key, 0)}.json").exists()]
    if missing:
        raise InputError(
            f"settings are not chosen yet: {len(missing)} of {len(wanted)} cells of tuning are missing; give the command without "
            "--cell, or run the cells that `run --list` prints"
        )
    found: dict[str, list[dict[str, float]]] = {}
    for one in wanted:
        predictions = records.read_predictions(out / FOLDER / f"{records.stem(one.key, 0)}.csv")
        figures = {name: metrics.over_runs(predictions, FIGURES[name]) for name in FIGURES_USED}
        found.setdefault(one.key.partition(MARK)[0], []).append(figures)
    return found


def _choice(one: Contender, rows: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "chosen": _best(rows),
        "settings": [{"what": one.said(s), **row} for s, row in zip(one.settings, rows, strict=True)],
    }


def _best(rows: list[dict[str, float]]) -> int:
    merits = [sum(figures.values()) / len(figures) for figures in rows]
    return merits.index(max(merits))


def edge(one: Contender, number: int) -> str:
    """Say of which numbers of a setting the highest or the lowest was chosen of those that were tried: a better one may lie beyond.

    Numbers of which two were tried are always at an end.
    """
    said: dict[str, str] = {}
    for name, value in one.settings[number].recipe.items():
        tried = sorted({setting.recipe[name] for setting in one.settings})
        if len(tried) > 1 and value in (tried[0], tried[-1]):
            said[name] = f"{'highest' if value == tried[-1] else 'lowest'} of {len(tried)}"
    if said.get("lr_local") == said.get("lr_global"):  # one rate for both
        said.pop("lr_local", None)
    return ", ".join(f"{name} {where}" for name, where in said.items())


def tuned(out: Path, key: str) -> Contender:
    """Return a contender with the setting that was chosen for it, or for the one that it is derived from."""
    choose(out, [key])
    one = contenders.find(extensions.basis_of(key), (*CONTENDERS, *contenders.doubles()))
    chosen = read(out).get(origin(key), {"chosen": 0})
    return extensions.extend(one.with_setting(one.settings[int(chosen["chosen"])]), key)

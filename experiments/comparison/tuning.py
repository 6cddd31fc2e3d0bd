"""Choosing each contender's numbers: the same budget for all, on one cohort that no run of the comparison sees.

The choice is the setting with the highest mean of AUC and balanced accuracy at the validation thresholds, both averaged over sites,
on that cohort's held-out cases; the first of equal ones. Real data has no cohort to spare: there one fold of a further shuffle
decides, whose patients other folds hold out too. The report says so.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from experiments.comparison import contenders, extensions, metrics, records
from experiments.comparison.contenders import CONTENDERS, MOST_SETTINGS, Contender
from experiments.comparison.metrics import FIGURES
from shared.canonical import write_atomically
from shared.errors import InputError

FOLDER, CHOSEN = "tuning", "tuned.json"
MARK = "~"
SCENARIO = "tuning"
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


def scores(out: Path) -> dict[str, list[dict[str, float]]]:
    """Return the figures of every setting by method. Raises InputError if a cell is missing."""
    found: dict[str, list[dict[str, float]]] = {}
    wanted = list(candidates())
    lacking = [one for one in wanted if not (out / FOLDER / f"{records.stem(one.key, 0)}.json").exists()]
    if lacking:
        raise InputError(
            f"settings are not chosen yet: {len(lacking)} of {len(wanted)} cells of tuning are missing; give the command without "
            "--cell, or run the cells that `run --list` prints"
        )
    for one in wanted:
        method = one.key.partition(MARK)[0]
        predictions = records.read_predictions(out / FOLDER / f"{records.stem(one.key, 0)}.csv")
        figures = {name: metrics.over_runs(predictions, FIGURES[name]) for name in FIGURES_USED}
        found.setdefault(method, []).append(figures)
    return found


def choose(out: Path) -> dict[str, int]:
    """Write the choices with all scores to tuned.json, unless they are there, and return the number of each method's setting."""
    path = out / CHOSEN
    if not path.exists():
        tried = scores(out)
        best = {method: _best(rows) for method, rows in tried.items()}
        text = {one.key: [setting.text for setting in one.settings] for one in CONTENDERS}
        whole = {
            method: {
                "chosen": best[method],
                "settings": [{"what": w, **r} for w, r in zip(text[method], rows, strict=True)],
            }
            for method, rows in tried.items()
        }
        write_atomically(path, json.dumps(whole, indent=1).encode())
    held = json.loads(path.read_text(encoding="utf-8"))
    return {method: int(values["chosen"]) for method, values in held.items()}


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
    chosen = choose(out)
    basis = extensions.basis_of(key)
    one = contenders.find(basis, (*CONTENDERS, *contenders.doubles()))
    origin = basis.removesuffix("-2x")
    settled = one.with_setting(one.settings[chosen.get(origin, 0)])
    return extensions.extend(settled, key)

"""Writes what a comparison's finished cells say: predictions, tables, plots, summary.json and report.html."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.comparison.report import (
    comparing,
    exploratory,
    figures,
    finished,
    latex,
    main_tables,
    method_tables,
    page,
    plots,
    primary,
    resampling,
    tables,
)
from experiments.comparison.report.comparing import Pair
from experiments.comparison.report.finished import Comparison
from experiments.comparison.report.page import Contents
from experiments.comparison.report.primary import Primary
from experiments.comparison.report.tables import Table
from shared.canonical import write_atomically

PAGE, SUMMARY, TABLES, PLOTS = "report.html", "summary.json", "tables", "plots"


def write(out: Path) -> Path:
    """Write the report of whatever is finished in a comparison's folder, and return the page's path.

    Raises InputError if the folder holds no comparison, nothing is finished, a cell is damaged, or matplotlib is missing.
    """
    comparison = finished.load(out)
    finished.write_predictions(out, comparison)
    draws = resampling.draw(comparison)
    found, pairs = primary.compute(comparison, draws), comparing.compute(comparison, draws)
    made = [one for one in all_tables(comparison, found, pairs) if one.rows]
    _write_tables(out / TABLES, made)
    with plots.style():
        drawn = {one.name: (one, plots.save(out / PLOTS, one)) for one in figures.drawn(comparison, draws)}
    contents = Contents(comparison=comparison, primary=found, tables={one.name: one for one in made}, plots=drawn)
    write_atomically(out / SUMMARY, json.dumps(summary(comparison, found, made), indent=1, allow_nan=False).encode())
    write_atomically(out / PAGE, page.page(contents).encode())
    return out / PAGE


def _write_tables(folder: Path, made: Sequence[Table]) -> None:
    folder.mkdir(exist_ok=True)
    for one in made:
        texts = {"md": tables.markdown(one), "tex": latex.latex(one), "csv": tables.comma_separated(one)}
        for suffix, text in texts.items():
            write_atomically(folder / f"{one.name}.{suffix}", text.encode())


def all_tables(comparison: Comparison, found: Primary, pairs: Sequence[Pair]) -> Iterator[Table]:
    """Yield every table, some of them without rows."""
    yield main_tables.primary_table(comparison, found)
    yield main_tables.no_loss_table(found)
    yield from main_tables.main_tables(comparison)
    yield main_tables.cost_table(comparison)
    yield exploratory.switch_table(comparison, pairs)
    yield exploratory.later_table(comparison, pairs)
    yield from exploratory.pair_tables(comparison, pairs)
    yield method_tables.switches_table(comparison)
    yield method_tables.unseen_table(comparison)
    yield method_tables.methods_table(comparison)
    yield method_tables.tuning_table(comparison)


def summary(comparison: Comparison, found: Primary, made: Sequence[Table]) -> dict[str, Any]:
    """Return the report's numbers as plain values; None for what is not finite."""
    return {
        "synthetic": comparison.synthetic,
        "config": {**comparison.config, "plan": comparison.setting},
        "missing": finished.missing(comparison),
        "bootstrap": {"draws": resampling.DRAWS, "seed": resampling.SEED},
        "primary": {
            "words": primary.words(found),
            "complete": found.complete,
            "tests": [_plain({**asdict(one), "verdict": one.verdict}) for one in found.tests],
            "no_loss": [_plain({**asdict(one), "held": one.held}) for one in found.no_loss],
        },
        "tables": {one.name: {"caption": one.caption, "rows": tables.flat(one)} for one in made},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Accuracy over epsilon, from finished cells: Markdown for people, JSON for programs."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.privacy.cells import ARMS

FIGURES = {"auc": "AUC", "at_validation": "balanced accuracy"}
Cell = Mapping[str, Any]


def rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return a row a budget, the smallest first and none last: noise, what is spent, figures' means and deviations over runs."""
    budgets = sorted({cell["budget"] for cell in cells}, key=lambda budget: float("inf") if budget is None else budget)
    return [_row(budget, [cell for cell in cells if cell["budget"] == budget]) for budget in budgets]


def _row(budget: float | None, cells: Sequence[Cell]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "budget": budget,
        "runs": len(cells),
        "sigma": max(cell["sigma"] for cell in cells),
        "spent_pld": max((one["pld"] for cell in cells for one in cell["spent"].values()), default=None),
        "spent_rdp": max((one["rdp"] for cell in cells for one in cell["spent"].values()), default=None),
        "seconds": statistics.mean(cell["seconds"] for cell in cells),
    }
    for arm in ARMS:
        for figure in FIGURES:
            over_runs = [site_mean(cell, arm, figure) for cell in cells]
            deviation = statistics.stdev(over_runs) if len(over_runs) > 1 else None
            row[f"{arm}_{figure}"] = {"mean": statistics.mean(over_runs), "deviation": deviation}
    return row


def site_mean(cell: Cell, arm: str, figure: str) -> float:
    """Return a figure's mean over the sites of a cell."""
    return statistics.mean(_figure(one[arm], figure) for one in cell["sites"].values())


def _figure(found: Mapping[str, Any], figure: str) -> float:
    return float(found["auc"] if figure == "auc" else found[figure]["balanced_accuracy"])


def markdown(found: Sequence[Mapping[str, Any]], choices: Mapping[str, Any]) -> str:
    """Return the table, with what it is of."""
    head = ["epsilon", "noise sigma", "spent, PLD (RDP)"]
    head += [f"{arm}: {name}" for arm in ARMS for name in FIGURES.values()]
    lines = [
        "# Accuracy over epsilon",
        "",
        "SYNTHETIC phantom cohorts, scenario shifted, means over sites (deviation over runs). Balanced accuracy at each site's own",
        "validation threshold. Epsilon is what the smallest site spends over all rounds, for one patient more or less.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---:|' * len(head)}",
    ]
    for row in found:
        private = row["budget"] is not None
        cells = [
            f"{row['budget']:g}" if private else "inf",
            f"{row['sigma']:.3g}",
            f"{row['spent_pld']:.3f} ({row['spent_rdp']:.3f})" if private else "unbounded",
        ]
        cells += [_with_deviation(row[f"{arm}_{figure}"]) for arm in ARMS for figure in FIGURES]
        lines.append(f"| {' | '.join(cells)} |")
    said = ", ".join(f"{name} {value}" for name, value in choices.items() if value != "")
    return "\n".join([*lines, "", f"{found[0]['runs']} run(s); {said}.", ""])


def _with_deviation(value: Mapping[str, float | None]) -> str:
    deviation = value["deviation"]
    return f"{value['mean']:.3f}" + ("" if deviation is None else f" ({deviation:.3f})")

"""How the model does: what sites reported of each version, and what each round made. Pure.

A site reports the figures of one model: of the one it uses. How its probe, its own adapter alone, the global part and both parts
compare, a site computes for itself at the end (`site-agent report`), and tells of it only if its settings say so.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aggregator.facts.material import Material
from aggregator.store.rounds import RoundRecord
from shared.contract import ALLOWED_METRICS, ARMS

Points = dict[int, float]
ARM_FIGURES = ("auc", "balanced_accuracy")
"""Shown of each model of a site's comparison."""


def make(material: Material) -> dict[str, Any]:
    """Return curves by metric over versions, and a row for each round."""
    reported: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(dict))
    for one in material.evaluations:
        for name, value in one["metrics"].items():
            reported[name][one["site"]][one["version"]] = value
    for update in material.accepted:
        for name, value in update.metrics.items():
            reported[name][update.site][update.round] = value
    return {
        "version": material.state.version,
        "digest": material.state.digest,
        "figures_of": _figures_of(material),
        "curves": [_curve(name, reported[name]) for name in ALLOWED_METRICS if name in reported],
        "arms": _arms(material.arms),
        "rounds": [_round(record) for record in material.records],
    }


def _arms(told: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each site that tells of it found when it compared the models at the end, arms in the order of ARMS."""
    by_site: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for one in told:
        by_site[one["site"]][one["arm"]] = one
    return [
        {
            "site": site,
            "cases": max(one["cases"] for one in found.values()),
            "version": max(one["version"] for one in found.values()),
            "figures": {arm: dict(found[arm]["metrics"]) for arm in ARMS if arm in found},
        }
        for site, found in sorted(by_site.items())
    ]


def _figures_of(material: Material) -> str:
    """Which model the reported figures are of."""
    recipe = material.contract.recipe
    if recipe.dp_noise:
        return "none, for under differential privacy no figures leave a site"
    if recipe.mode == "non-interference":
        return "global (the global part alone: nothing that leaves a site may depend on its local part)"
    serves = recipe.method.serves
    return "dual (global and local part together)" if len(serves) > 1 else f"{next(iter(serves))} part"


def _curve(name: str, sites: Mapping[str, Points]) -> dict[str, Any]:
    """One metric: a line for each site and the mean of those that reported. The training loss goes by rounds, the rest by
    versions."""
    at: dict[int, list[float]] = defaultdict(list)
    for points in sites.values():
        for x, value in points.items():
            at[x].append(value)
    return {
        "metric": name,
        "over": "round" if name == "train_loss" else "version",
        "mean": [[x, round(sum(values) / len(values), 6), len(values)] for x, values in sorted(at.items())],
        "sites": {site: _points(points.items()) for site, points in sorted(sites.items())},
    }


def _points(points: Iterable[tuple[int, float]]) -> Sequence[list[float]]:
    return [[x, round(value, 6)] for x, value in sorted(points)]


def arm_words(figures: Mapping[str, Mapping[str, float]], arm: str) -> str:
    """Return what a site found of one model, AUC and balanced accuracy, in short; "-" for nothing."""
    told = figures.get(arm, {})
    shown = [f"{told[name]:.3f}" if name in told else "-" for name in ARM_FIGURES]
    return " / ".join(shown) if told else "-"


def _round(record: RoundRecord) -> dict[str, Any]:
    state = record.state
    manifest = json.loads(record.manifest) if record.manifest else {"entries": [], "left_out": {}}
    return {
        "round": state.number,
        "phase": state.phase,
        "base_version": state.base_version,
        "version": record.version,
        "invited": len(state.invited),
        "updates": len(manifest["entries"]) if record.manifest else len(state.accepted),
        "left_out": manifest["left_out"],
        "opened_at": state.opened_at,
        "closed_at": state.closed_at,
        "aggregation_error": record.diagnostics.get("aggregation_error"),
    }

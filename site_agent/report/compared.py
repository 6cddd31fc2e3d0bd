"""The four arms on a site's own cases, from the score of every case: figures with intervals, paired differences, changed cases."""

from typing import Any

import numpy as np

from shared.contract import ARMS
from site_agent.report import intervals
from site_agent.report.intervals import Estimate, Pairs
from site_agent.training import case_scores, metrics
from site_agent.training.case_scores import CaseScores

Facts = dict[str, Any]
RATES = ("balanced_accuracy", "sensitivity", "specificity")
DIFFERENCES = (("dual", "alone"), ("dual", "probe"))
"""What federation brought over training alone, and over no training but of a head."""
HALF = 0.0
"""The margin of probability 0.5."""


def of(scores: CaseScores) -> Facts | None:
    """Return everything about the held-out cases, or about the validation cases if there are no others; None without any.

    `at_threshold`, and what hangs on it, stands at the site's own threshold; without validation cases there is none, and
    `changes` are those at probability 0.5.
    """
    validation, test = scores.of("validation"), scores.of("test")
    cases = test if len(test) else validation
    if not len(cases):
        return None
    cuts = {arm: case_scores.threshold(validation, arm) for arm in ARMS}
    own = all(cut is not None for cut in cuts.values())
    used = {arm: HALF if cut is None else cut for arm, cut in cuts.items()}
    right = {arm: _right(cases, arm, cut) for arm, cut in used.items()}
    return {
        "set": cases.sets[0],
        "cases": len(cases),
        "diseased": int((cases.labels == 1).sum()),
        "normal": int((cases.labels == 0).sum()),
        "validation_cases": len(validation),
        "arms": {arm: _arm(cases, arm, cuts[arm]) for arm in ARMS},
        "differences": [
            {"first": first, "second": second, "figures": _differences(cases, right, first, second)}
            for first, second in DIFFERENCES
        ],
        "at": "threshold" if own else "half",
        "changes": _changes(cases, right, used),
    }


def _right(cases: CaseScores, arm: str, cut: float) -> np.ndarray:
    """Return whether each case is called what it is."""
    return np.asarray((cases.margins[arm] >= cut) == (cases.labels == 1))


def _arm(cases: CaseScores, arm: str, cut: float | None) -> Facts:
    area = intervals.auc(cases.margins[arm], cases.labels)
    own = None if cut is None else _rates(cases, arm, cut) | {"threshold": float(metrics.probability(cut))}
    return {"auc": area.to_jsonable() if area else None, "at_half": _rates(cases, arm, HALF), "at_threshold": own}


def _rates(cases: CaseScores, arm: str, cut: float) -> Facts:
    """Sensitivity, specificity and their mean, each with its interval; `right` of `of` cases. None for a class without cases."""
    right = _right(cases, arm, cut)
    found: dict[str, Facts | None] = {}
    parts: list[Estimate] = []
    for name, label in (("sensitivity", 1), ("specificity", 0)):
        ours = right[cases.labels == label]
        found[name] = None
        if len(ours):
            parts.append(intervals.rate(int(ours.sum()), len(ours)))
            found[name] = parts[-1].to_jsonable() | {"right": int(ours.sum()), "of": len(ours)}
    both = intervals.mean(*parts).to_jsonable() if len(parts) == 2 else None
    return {"balanced_accuracy": both, **found}


def _differences(cases: CaseScores, right: dict[str, np.ndarray], first: str, second: str) -> dict[str, Facts | None]:
    """The first arm's AUC and rates less the second's, of the same cases."""
    area = intervals.auc_difference(cases.margins[first], cases.margins[second], cases.labels)
    found: dict[str, Estimate | None] = {"auc": area, "balanced_accuracy": None}
    for name, label in (("sensitivity", 1), ("specificity", 0)):
        mine = cases.labels == label
        pairs = Pairs.of(right[first][mine], right[second][mine])
        found[name] = intervals.rate_difference(pairs) if pairs.count else None
    if (up := found["sensitivity"]) and (down := found["specificity"]):
        found["balanced_accuracy"] = intervals.mean(up, down)
    return {name: one.to_jsonable() if one else None for name, one in found.items()}


def _changes(cases: CaseScores, right: dict[str, np.ndarray], cuts: dict[str, float]) -> Facts:
    """Who is called otherwise by dual than by alone, and how sure each was: probabilities of disease."""
    alone, dual = right["alone"], right["dual"]
    pairs = Pairs.of(dual, alone)
    shown = []
    for at in np.flatnonzero(alone != dual):
        shown.append(
            {
                "case": cases.keys[at],
                "label": int(cases.labels[at]),
                "alone": float(metrics.probability(cases.margins["alone"][at])),
                "dual": float(metrics.probability(cases.margins["dual"][at])),
                "now": "right" if dual[at] else "wrong",
            }
        )
    return {
        "both_right": pairs.both,
        "now_right": pairs.first,
        "now_wrong": pairs.second,
        "both_wrong": pairs.neither,
        "threshold_alone": float(metrics.probability(cuts["alone"])),
        "threshold_dual": float(metrics.probability(cuts["dual"])),
        "cases": sorted(shown, key=lambda one: (one["now"], one["label"], one["case"])),
    }

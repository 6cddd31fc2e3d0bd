"""Scores of cases under a model, and the figures of an arm at both thresholds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.contract import ALLOWED_METRICS
from site_agent.data import windows
from site_agent.data.cases import Case
from site_agent.data.cohort import labels
from site_agent.models.backbone import Prefix
from site_agent.models.classifier import CineClassifier
from site_agent.training import metrics, micro_batch, parallel
from site_agent.training.activations import Activations
from site_agent.training.parallel import ALONE, Group


def scores(
    model: CineClassifier,
    activations: Activations,
    cases: Sequence[Case],
    states: Sequence[Callable[[], None]] = (lambda: None,),
    group: Group = ALONE,
) -> list[np.ndarray]:
    """Return the logit margin of every case, float64 (n,), for each of several states of the trained part.

    Each of `states` brings the model into one; they share one pass of the frozen part. Windows of a tall volume are combined as
    CineMA does. Several processes share the windows, and all return all.
    """
    found = group.gathered(lambda: _logits(model, activations, cases, states, group))
    logits = np.concatenate(found, axis=1).astype(np.float64)
    return [_margins(activations, cases, of_state) for of_state in logits]


def _logits(
    model: CineClassifier,
    activations: Activations,
    cases: Sequence[Case],
    states: Sequence[Callable[[], None]],
    group: Group,
) -> np.ndarray:
    """Logits of this process's share of all windows under each state: (states, n windows, 2)"""
    views = [v for case in cases for v in activations.windows(case)]

    def compute(prefix: Prefix) -> np.ndarray:
        logits = []
        for put in states:
            put()
            with activations.compute.autocast():
                logits.append(model.suffix(prefix).float().cpu().numpy())
        return np.stack(logits)

    found = micro_batch.over(activations, views[parallel.share(len(views), group)], compute)
    return np.concatenate([np.zeros((len(states), 0, 2), np.float32), *found], axis=1)


def _margins(activations: Activations, cases: Sequence[Case], logits: np.ndarray) -> np.ndarray:
    """Logits of all windows (n windows, 2) → margin of each case (n,)."""
    margins, at = [], 0
    for case in cases:
        count = len(activations.windows(case))
        combined = windows.combine_logits(logits[at : at + count])
        margins.append(combined[1] - combined[0])
        at += count
    return np.array(margins, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores and labels of one set of cases."""

    scores: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(
        cls, model: CineClassifier, activations: Activations, cases: Sequence[Case], group: Group = ALONE
    ) -> "Scored":
        (found,) = scores(model, activations, cases, group=group)
        return cls(found, labels(cases))


@dataclass(frozen=True, slots=True)
class Judged:
    """A version on the site's validation cases. own: the figures of the model that the site uses. reportable: those that the
    protocol allows to leave, of the model that the recipe lets speak. Both empty without cases."""

    own: dict[str, Any]
    reportable: dict[str, float]


def reportable(found: Mapping[str, Any]) -> dict[str, float]:
    """Return what of `figures` the protocol allows to leave: finite numbers, at the validation threshold."""
    flat = {"auc": found["auc"], **found["at_validation"]}
    return {name: value for name, value in flat.items() if name in ALLOWED_METRICS and np.isfinite(value)}


def figures(validation: Scored, cases: Scored) -> dict[str, Any]:
    """Return what is reported of an arm on `cases`: AUC, and the confusion at probability 0.5 and at the threshold that the
    validation cases give (shrunk, see `metrics.shrunk_threshold`). `threshold` is a probability."""
    cut = metrics.shrunk_threshold(validation.scores, validation.labels)
    return {
        "n": len(cases.labels),
        "auc": metrics.auc(cases.scores, cases.labels),
        "at_half": figures_at(cases, 0.0),
        "at_validation": {**figures_at(cases, cut), "threshold": float(metrics.probability(cut))},
    }


def figures_at(cases: Scored, threshold: float) -> dict[str, float]:
    """Return the confusion at a threshold, a margin."""
    found = metrics.confusion(cases.scores, cases.labels, threshold)
    return {
        "balanced_accuracy": found.balanced_accuracy,
        "sensitivity": found.sensitivity,
        "specificity": found.specificity,
    }

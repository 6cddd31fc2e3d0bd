"""How well a score separates disease from normal, and where to cut it.

A score is the logit margin z = logit(disease) - logit(normal), so that probability 0.5 is z = 0.
"""

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, slots=True)
class Confusion:
    """Balanced accuracy, sensitivity (disease found) and specificity (normal left alone), each in [0, 1]."""

    balanced_accuracy: float
    sensitivity: float
    specificity: float


def auc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve by scikit-learn, NaN if a class is missing. scores, labels: (n,)."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if len(np.unique(labels)) == 2 else math.nan


def confusion(scores: Array, labels: Array, threshold: float) -> Confusion:
    """Call disease what scores at least `threshold`. A class without cases gives NaN."""
    called = scores >= threshold
    sensitivity = float(called[labels == 1].mean()) if (labels == 1).any() else math.nan
    specificity = float((~called[labels == 0]).mean()) if (labels == 0).any() else math.nan
    return Confusion((sensitivity + specificity) / 2, sensitivity, specificity)


def best_threshold(scores: Array, labels: Array) -> float:
    """Return the threshold with the best balanced accuracy: the middle of the best plateau, the one nearest 0 if several tie.

    Returns 0 (probability 0.5) if a class is missing.
    """
    if len(np.unique(labels)) < 2:
        return 0.0
    edges = np.unique(scores)
    candidates = np.concatenate([[edges[0] - 1.0], (edges[:-1] + edges[1:]) / 2, [edges[-1] + 1.0]])
    accuracy = np.array([confusion(scores, labels, t).balanced_accuracy for t in candidates])
    best = np.flatnonzero(accuracy >= accuracy.max() - 1e-12)
    plateaus = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    middles = [float((candidates[p[0]] + candidates[p[-1]]) / 2) for p in plateaus]
    return min(middles, key=abs)


PRIOR_CASES = 8.0
"""Validation cases of the rarer class at which a site's own threshold and the common one weigh the same (our choice)."""


def shrunk_threshold(scores: Array, labels: Array, prior_cases: float = PRIOR_CASES) -> float:
    """Return the site's threshold pulled towards the common one, z = 0: w * best, w = m / (m + prior_cases).

    m is the number of validation cases of the rarer class. A hospital with three normal validation cases cannot place a
    threshold of its own: with m = 3 it keeps 27 % of its distance from 0, with m = 30 it keeps 79 %.
    """
    rarer = min(int((labels == 0).sum()), int((labels == 1).sum()))
    return rarer / (rarer + prior_cases) * best_threshold(scores, labels)


def probability(score: Array | float) -> Array:
    """Logistic function of the margin."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(score, dtype=np.float64))))


def margin(probability: float) -> float:
    """The score of a probability; infinite at 0 and 1."""
    if not 0.0 < probability < 1.0:
        return math.inf if probability >= 1.0 else -math.inf
    return math.log(probability / (1.0 - probability))

"""A model judged on prepared cases: the figures of the agent's report (`training.evaluate`), with counts and 95 % intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.errors import InputError
from site_agent.data.cases import Case
from site_agent.data.cohort import CLASS_NAMES, labels, load_pair
from site_agent.predict import Model, Prediction
from site_agent.report import finite, intervals
from site_agent.training import metrics
from site_agent.training.evaluate import Scored, figures_at

HALF, VALIDATION = "at_half", "at_validation"


@dataclass(frozen=True)
class Evaluation:
    """What a model says of some cases. predictions: beside `cases`."""

    model: Model
    cases: tuple[Case, ...]
    predictions: tuple[Prediction, ...]

    @property
    def scored(self) -> Scored:
        """Margins and labels of all cases."""
        return Scored(np.array([one.margin for one in self.predictions], dtype=np.float64), labels(self.cases))

    def figures(self) -> dict[str, Any]:
        """Return AUC and both confusions as JSON values, each rate with the cases it counts and its interval.

        `at_validation` is at the site's own threshold; it is missing where the model has none.
        """
        scored, threshold = self.scored, self.model.threshold
        auc = intervals.auc(scored.scores, scored.labels)
        found = {
            **self.model.facts(),
            "n": len(self.cases),
            "normal": int((scored.labels == 0).sum()),
            "diseased": int((scored.labels == 1).sum()),
            "auc": metrics.auc(scored.scores, scored.labels),
            "auc_interval": None if auc is None else [auc.low, auc.high],
            HALF: _at(scored, 0.5),
        }
        if threshold is not None and threshold.is_own:
            found[VALIDATION] = {**_at(scored, threshold.probability), "threshold": threshold.probability}
        clean: dict[str, Any] = finite(found)
        return clean


def evaluate(
    model: Model, cases: Sequence[Case], on_progress: Callable[[int, int], None] = lambda done, of: None
) -> Evaluation:
    """Judge prepared cases. Raises InputError if the model tells other classes apart, or a volume cannot be read."""
    if len(model.class_names) != len(CLASS_NAMES):
        raise InputError(
            f"this model tells {len(model.class_names)} classes apart, and a cohort has {len(CLASS_NAMES)} "
            f"({', '.join(CLASS_NAMES)}); use `site-agent predict` for its probabilities"
        )
    predictions = []
    for case in cases:
        predictions.append(model.judge(load_pair(case)))
        on_progress(len(predictions), len(cases))
    return Evaluation(model, tuple(cases), tuple(predictions))


def _at(scored: Scored, probability: float) -> dict[str, Any]:
    """The confusion at a threshold, as `figures_at` has it, with counts and intervals."""
    cut = metrics.margin(probability)
    called = scored.scores >= cut
    sensitivity = _rate(called[scored.labels == 1])
    specificity = _rate(~called[scored.labels == 0])
    both = intervals.mean(sensitivity, specificity) if sensitivity and specificity else None
    return {
        **figures_at(scored, cut),
        "diseased_called": int(called[scored.labels == 1].sum()),
        "normal_not_called": int((~called[scored.labels == 0]).sum()),
        "intervals": {
            name: None if one is None else [one.low, one.high]
            for name, one in (
                ("balanced_accuracy", both),
                ("sensitivity", sensitivity),
                ("specificity", specificity),
            )
        },
    }


def _rate(right: np.ndarray) -> intervals.Estimate | None:
    return intervals.rate(int(right.sum()), len(right)) if len(right) else None

"""Figures are those of scikit-learn and of cases worked by hand; within runs, then averaged; and what cannot be is NaN."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from sklearn import metrics as reference

from experiments.comparison import calibration, metrics
from experiments.comparison.records import Prediction
from shared.errors import InputError
from site_agent.training import metrics as training


def predictions(
    margins: list[float], labels: list[int], *, site: str = "a", run: int = 0, threshold: float = 0.0
) -> list[Prediction]:
    return [
        Prediction(run=run, fold=0, site=site, case=f"{i:04d}", label=label, margin=margin, threshold=threshold)
        for i, (margin, label) in enumerate(zip(margins, labels, strict=True))
    ]


def figures_of(made: list[Prediction], site: str | None = None) -> dict[str, float]:
    """Return all figures of a method, or those of one of its sites alone."""
    held = metrics.FIGURES if site is None else {k: metrics.of_site(v, site) for k, v in metrics.ALONE.items()}
    return {name: metrics.over_runs(made, figure) for name, figure in held.items()}


def random_cases(seed: int) -> metrics.Cases:
    """60 cases of three sites with many equal margins, some on a threshold."""
    rng = np.random.default_rng(seed)
    labels = np.arange(60) % 2
    margins = np.round(rng.normal(size=60) + labels, 1)
    made = [
        Prediction(
            run=0,
            fold=0,
            site="abc"[i // 20],
            case=f"{i:02d}",
            label=int(labels[i]),
            margin=float(margins[i]),
            threshold=(0.3, -0.2, 0.5)[i // 20],
        )
        for i in range(60)
    ]
    return metrics.cases_by_run(made)[0]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def highest_specificity(labels: np.ndarray, margins: np.ndarray, least: float) -> float:
    false, true, _ = reference.roc_curve(labels, margins, drop_intermediate=False)
    return float(1 - false[true >= least].min())


def over_sites(how: Callable[[list[float]], float], cases: metrics.Cases, times: np.ndarray, at: str | None) -> float:
    values = []
    for site in "abc":
        here = np.repeat(cases.sites == site, times)
        labels, margins, thresholds = (
            np.repeat(x, times)[here] for x in (cases.labels, cases.margins, cases.thresholds)
        )
        called = margins >= (0 if at == "half" else thresholds)
        score = (
            reference.roc_auc_score(labels, margins)
            if at is None
            else reference.balanced_accuracy_score(labels, called)
        )
        values.append(float(score))
    return how(values)


def from_sklearn(name: str, cases: metrics.Cases, times: np.ndarray) -> float:
    """The figure of the cases, each there so many times, by scikit-learn's definitions; ECE is not in it."""
    labels, margins, thresholds = (np.repeat(x, times) for x in (cases.labels, cases.margins, cases.thresholds))
    at = next((at for at in ("half", "validation") if at in name), None)
    if name.endswith("_site_mean"):
        return over_sites(lambda values: float(np.mean(values)), cases, times, at)
    if name.endswith("_worst_site"):
        return over_sites(min, cases, times, at)
    if name.startswith("specificity_at_"):
        return highest_specificity(labels, margins, int(name[-2:]) / 100)
    called = margins >= (0 if at == "half" else thresholds)
    scores = {
        "balanced_accuracy": lambda: reference.balanced_accuracy_score(labels, called),
        "sensitivity": lambda: reference.recall_score(labels, called),
        "specificity": lambda: reference.recall_score(labels, called, pos_label=0),
        "mcc": lambda: reference.matthews_corrcoef(labels, called),
        "auc": lambda: reference.roc_auc_score(labels, margins),
        "brier": lambda: reference.brier_score_loss(labels, 1 / (1 + np.exp(-margins))),
    }
    return float(scores[name.removesuffix(f"_{at}")]())


@pytest.mark.parametrize("name", [name for name in metrics.FIGURES if name != "ece"])
def test_a_weight_is_how_often_a_case_is_there_and_figures_are_those_of_scikit_learn(name: str) -> None:
    rng = np.random.default_rng(5)
    for seed in range(5):
        cases = random_cases(seed)
        weights = np.concatenate([np.ones((1, 60), dtype=int), rng.integers(0, 4, size=(4, 60))])
        found = metrics.FIGURES[name](cases, weights.astype(float))
        assert found == pytest.approx([from_sklearn(name, cases, times) for times in weights], abs=1e-12)


def test_the_figures_are_those_that_training_reports() -> None:
    cases = random_cases(3)
    once = np.ones((1, 60))
    confusion = training.confusion(cases.margins, cases.labels, 0.0)
    assert metrics.balanced_accuracy(cases, once, at="half")[0] == pytest.approx(confusion.balanced_accuracy)
    assert metrics.sensitivity(cases, once, at="half")[0] == pytest.approx(confusion.sensitivity)
    assert metrics.specificity(cases, once, at="half")[0] == pytest.approx(confusion.specificity)
    assert metrics.auc(cases, once)[0] == pytest.approx(training.auc(cases.margins, cases.labels))


def test_a_margin_on_the_threshold_is_called_diseased() -> None:
    cases = metrics.cases_by_run(predictions([0.0, 0.7, 0.69], [1, 1, 1], threshold=0.7))[0]
    assert metrics.called(cases, "half").tolist() == [True, True, True]
    assert metrics.called(cases, "validation").tolist() == [False, True, False]


def test_mcc_of_a_table_worked_by_hand() -> None:
    """TP 6, FN 2, FP 1, TN 3: (6 * 3 - 1 * 2) / sqrt(7 * 8 * 4 * 5) = 0.478, the cats and dogs of Wikipedia's phi coefficient."""
    made = predictions([1.0] * 6 + [-1.0] * 2 + [1.0] + [-1.0] * 3, [1] * 8 + [0] * 4)
    assert metrics.over_runs(made, metrics.FIGURES["mcc_half"]) == pytest.approx(16 / math.sqrt(1120))


def test_auc_counts_equal_margins_half() -> None:
    """Hanley and McNeil 1982 (Radiology 143:29), table 1: ratings of 58 normal and 51 abnormal scans, area 0.893."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    ratings = [float(k) for counts in (normal, abnormal) for k in range(5) for _ in range(counts[k])]
    made = predictions(ratings, [0] * 58 + [1] * 51)
    assert metrics.over_runs(made, metrics.auc) == pytest.approx(0.893, abs=5e-4)


def test_calibration_worked_by_hand() -> None:
    """Six at p = 0.1, none diseased: gap 0.1. Four at p = 0.9, three diseased: gap 0.15. ECE 0.6 * 0.1 + 0.4 * 0.15 = 0.12.

    Brier: (6 * 0.01 + 3 * 0.01 + 0.81) / 10 = 0.09.
    """
    made = predictions([logit(0.1)] * 6 + [logit(0.9)] * 4, [0] * 6 + [1, 1, 1, 0])
    found = calibration.of(made)
    assert found.ece == pytest.approx(0.12)
    assert found.ece_of_bins == pytest.approx(0.12)
    assert metrics.over_runs(made, metrics.brier) == pytest.approx(0.09)
    assert (found.n, len(found.bins)) == (10, metrics.BINS)
    assert [(k, one.n) for k, one in enumerate(found.bins) if one.n] == [
        (1, 6),
        (13, 4),
    ]  # 0.1 * 15 = 1.5, 0.9 * 15 = 13.5
    assert (found.bins[13].low, found.bins[13].high) == pytest.approx((13 / 15, 14 / 15))
    assert (found.bins[13].probability, found.bins[13].diseased) == pytest.approx((0.9, 0.75))
    assert math.isnan(found.bins[5].diseased)
    assert math.isnan(found.bins[5].probability)


def test_calibration_of_runs_is_averaged_and_their_bins_are_shared() -> None:
    """Two cases at p = 0.9 in each run; both diseased in one (gap 0.1), one in the other (gap 0.4); together 3 of 4 (gap 0.15)."""
    made = predictions([logit(0.9)] * 2, [1, 1]) + predictions([logit(0.9)] * 2, [1, 0], run=1)
    found = calibration.of(made)
    assert found.ece == pytest.approx(0.25)
    assert found.ece_of_bins == pytest.approx(0.15)
    assert found.bins[13].n == 4


def test_gaps_of_opposite_sign_in_one_bin_cancel_and_in_two_do_not() -> None:
    one_bin = predictions([logit(0.9)] * 10, [1] * 9 + [0])
    two_bins = predictions([logit(0.9), logit(0.1)], [0, 1])
    assert metrics.over_runs(one_bin, metrics.ece) == pytest.approx(0.0, abs=1e-12)
    assert metrics.over_runs(two_bins, metrics.ece) == pytest.approx(0.9)


def test_extreme_margins_are_certain_and_fall_into_the_outer_bins() -> None:
    made = predictions([1000.0, -1000.0], [1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = calibration.of(made)
    assert (found.bins[0].n, found.bins[-1].n, found.ece) == (1, 1, 0.0)


def test_specificity_at_a_sensitivity_worked_by_hand() -> None:
    """Diseased at 1 to 10, normal at 0.5, 1.5, 2.5, 5.5. Nine of ten from 2 on: two of four spared; ten from 1 on: one of four."""
    made = predictions([float(k) for k in range(1, 11)] + [0.5, 1.5, 2.5, 5.5], [1] * 10 + [0] * 4)
    figures = figures_of(made)
    assert figures["specificity_at_90"] == 0.5
    assert figures["specificity_at_95"] == 0.25


def test_a_normal_case_with_the_margin_of_the_deciding_diseased_one_is_not_spared() -> None:
    made = predictions([2.0, 1.0, 1.0, 0.0], [1, 1, 0, 0])
    assert metrics.over_runs(made, partial(metrics.specificity_at, least=0.95)) == 0.5


def test_figures_are_computed_within_runs_and_then_averaged() -> None:
    """Each run separates its classes; all in one heap, a normal case of the second lies above a diseased one of the first."""
    made = predictions([0.0, 1.0], [0, 1]) + predictions([10.0, 11.0], [0, 1], run=7)
    assert metrics.by_run(made, metrics.auc) == {0: 1.0, 7: 1.0}
    assert figures_of(made)["auc"] == 1.0
    assert figures_of(made)["specificity_half"] == 0.0


def test_mean_over_sites_does_not_weigh_by_size_and_the_worst_is_of_each_run() -> None:
    """Site a: 4 cases all right; site b: 2 cases, one of its two classes right. In run 1 it is the other way round."""
    good, bad = ([1.0, 1.0, -1.0, -1.0], [1, 1, 0, 0]), ([1.0, 1.0], [1, 0])
    made = predictions(*good, site="a") + predictions(*bad, site="b")
    figures = figures_of(made)
    assert figures["balanced_accuracy_half_site_mean"] == 0.75
    assert figures["balanced_accuracy_half_worst_site"] == 0.5
    assert figures["balanced_accuracy_half"] == pytest.approx((1 + 2 / 3) / 2)
    made += predictions(*bad, site="a", run=1) + predictions(*good, site="b", run=1)
    assert figures_of(made)["balanced_accuracy_half_worst_site"] == 0.5
    assert [figures_of(made, site)["balanced_accuracy_half"] for site in "ab"] == [0.75, 0.75]


def test_sites_have_their_own_thresholds() -> None:
    made = predictions([0.2, -1.0, -1.0], [1, 0, 0], site="a", threshold=0.5)
    made += predictions([0.2, -1.0], [1, 0], site="b", threshold=0.1)
    assert [figures_of(made, site)["sensitivity_validation"] for site in "ab"] == [0.0, 1.0]
    assert [figures_of(made, site)["sensitivity_half"] for site in "ab"] == [1.0, 1.0]


def test_a_site_without_a_class_is_left_out_of_the_mean_and_of_the_worst() -> None:
    made = predictions([1.0, 1.0, -1.0, -1.0], [1, 0, 0, 0], site="a") + predictions([-1.0], [1], site="b")
    figures = figures_of(made)
    assert figures["balanced_accuracy_half_site_mean"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["balanced_accuracy_half_worst_site"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["sensitivity_half"] == 0.5
    alone = figures_of(made, "b")
    assert alone["sensitivity_half"] == 0.0
    assert {name for name, value in alone.items() if math.isnan(value)} == {
        *(f"{name}_{at}" for name in ("balanced_accuracy", "specificity", "mcc") for at in ("half", "validation")),
        *("auc", "specificity_at_90", "specificity_at_95"),
    }


def test_a_run_without_a_class_is_nan_and_left_out_of_the_mean() -> None:
    made = predictions([1.0, -1.0], [1, 0]) + predictions([1.0], [1], run=1)
    found = metrics.by_run(made, metrics.auc)
    assert found[0] == 1.0
    assert math.isnan(found[1])
    assert metrics.over_runs(made, metrics.auc) == 1.0


def test_one_case_has_the_figures_that_one_case_can_have() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = figures_of(predictions([logit(0.8)], [0]))
    assert figures["brier"] == pytest.approx(0.64)
    assert figures["ece"] == pytest.approx(0.8)
    assert figures["specificity_half"] == 0.0
    for name in ("auc", "auc_worst_site", "sensitivity_half", "specificity_at_90"):
        assert math.isnan(figures[name])


def test_constant_margins_are_a_coin() -> None:
    figures = figures_of(predictions([0.3] * 6, [0, 1] * 3))
    assert figures["auc"] == 0.5
    assert figures["balanced_accuracy_half"] == 0.5
    assert figures["mcc_half"] == 0.0
    assert figures["specificity_at_90"] == 0.0


def test_the_order_of_predictions_changes_nothing() -> None:
    made = predictions([0.1, -0.4, 0.9, 0.2], [0, 1, 1, 0]) + predictions([2.0, -1.0], [1, 0], site="b")
    assert figures_of(made) == figures_of(made[::-1])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"margin": math.nan}, "margin nan"),
        ({"margin": math.inf}, "margin inf"),
        ({"threshold": math.nan}, "no threshold"),
        ({"label": 2}, "label 2"),
        ({"case": "0000"}, "twice"),
    ],
)
def test_a_case_that_cannot_be_used_is_named(change: dict[str, float | str], what: str) -> None:
    made = predictions([0.1, 0.2], [0, 1], site="north", run=3)
    made[1] = replace(made[1], **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"case '{made[1].case}' of site 'north' in run 3 .*{what}"):
        figures_of(made)


def test_the_same_case_name_at_two_sites_is_two_cases() -> None:
    made = predictions([1.0, -1.0], [1, 0], site="a") + predictions([1.0, -1.0], [1, 0], site="b")
    assert len(metrics.cases_by_run(made)[0].labels) == 4


def test_no_predictions_are_refused() -> None:
    with pytest.raises(InputError, match="no predictions"):
        figures_of([])

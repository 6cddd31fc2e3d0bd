"""AUC, confusion and thresholds against counts by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from site_agent.training import metrics

HAND_SCORES = np.array([-2.0, -1.0, 0.5, 1.0, 3.0])
HAND_LABELS = np.array([0, 1, 0, 1, 1])


def mann_whitney(scores, labels):
    """Share of (disease, normal) pairs in the right order, ties half: what an AUC is."""
    pairs = [(d > n) + 0.5 * (d == n) for d in scores[labels == 1] for n in scores[labels == 0]]
    return sum(pairs) / len(pairs)


def test_auc_by_hand():
    # of six pairs only (-1.0, 0.5) is in the wrong order
    assert metrics.auc(HAND_SCORES, HAND_LABELS) == pytest.approx(5 / 6)


def test_auc_counts_ties_half_and_is_nan_without_both_classes():
    assert metrics.auc(np.zeros(4), np.array([0, 0, 1, 1])) == 0.5
    assert math.isnan(metrics.auc(np.arange(3.0), np.ones(3, int)))


@given(
    arrays.arrays(np.float64, st.integers(2, 30), elements=st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 4.0])),
    st.data(),
)
def test_auc_is_the_share_of_pairs_in_the_right_order(scores, data):
    labels = data.draw(arrays.arrays(np.int64, len(scores), elements=st.integers(0, 1)))
    if len(np.unique(labels)) == 2:
        assert metrics.auc(scores, labels) == pytest.approx(mann_whitney(scores, labels))
        assert metrics.auc(-scores, labels) == pytest.approx(1 - mann_whitney(scores, labels))


def test_confusion_by_hand():
    found = metrics.confusion(HAND_SCORES, HAND_LABELS, threshold=1.0)
    assert (found.sensitivity, found.specificity) == (2 / 3, 1.0)  # 1.0 itself counts as disease
    assert found.balanced_accuracy == pytest.approx(5 / 6)


def test_confusion_of_a_missing_class_is_nan_and_not_a_perfect_score():
    found = metrics.confusion(np.array([1.0, 2.0]), np.array([1, 1]), 0.0)
    assert found.sensitivity == 1.0
    assert math.isnan(found.specificity)
    assert math.isnan(found.balanced_accuracy)


def test_the_threshold_lies_in_the_middle_of_the_best_gap():
    scores = np.array([-3.0, -1.0, 2.0, 4.0])
    assert metrics.best_threshold(scores, np.array([0, 0, 1, 1])) == pytest.approx(0.5)


def test_of_equally_good_thresholds_the_one_nearest_to_one_half_wins():
    scores = np.array([-5.0, -4.0, 0.2, 1.0])
    labels = np.array([0, 1, 0, 1])  # cutting at -4.5 or at 0.6 is right in three of four
    assert metrics.best_threshold(scores, labels) == pytest.approx(0.6)


def test_no_threshold_is_better_than_the_chosen_one():
    rng = np.random.default_rng(4)
    for _ in range(20):
        scores, labels = rng.normal(size=15), np.arange(15) % 2
        chosen = metrics.confusion(scores, labels, metrics.best_threshold(scores, labels)).balanced_accuracy
        every = [metrics.confusion(scores, labels, t).balanced_accuracy for t in np.linspace(-4, 4, 401)]
        assert chosen >= max(every) - 1e-12


def test_without_both_classes_the_threshold_is_one_half():
    assert metrics.best_threshold(np.array([1.0, 2.0]), np.array([1, 1])) == 0.0
    assert metrics.shrunk_threshold(np.array([1.0, 2.0]), np.array([1, 1])) == 0.0


@pytest.mark.parametrize(("rarer", "share"), [(3, 3 / 11), (8, 0.5), (30, 30 / 38)])
def test_few_cases_of_the_rarer_class_pull_the_threshold_to_the_common_one(rarer, share):
    labels = np.repeat([0, 1], [rarer, 40])
    scores = np.where(labels == 1, 3.0, 1.0)  # best cut at 2
    assert metrics.shrunk_threshold(scores, labels) == pytest.approx(2 * share)


def test_probability_is_the_logistic_function_of_the_margin():
    np.testing.assert_allclose(metrics.probability(np.array([0.0, math.log(3), -math.log(3)])), [0.5, 0.75, 0.25])

"""Scores of cases, and the figures that are reported of them."""

import math

import numpy as np
import pytest
import torch

from site_agent.data import cohort, windows
from site_agent.training import evaluate
from site_agent.training.evaluate import Scored
from tests.support import tiny_site


@pytest.mark.parametrize("frames", ["stacked", "siamese"])
def test_a_score_is_the_margin_between_the_two_logits(tmp_path, frames):
    cases = tiny_site.write_cases(tmp_path, 3)
    model = tiny_site.classifier(frames)
    images = torch.stack([torch.from_numpy(cohort.load_input(case, tiny_site.SIZE)) for case in cases])
    with torch.no_grad():
        logits = model(images).numpy()
    (found,) = evaluate.scores(model, tiny_site.activations(model), cases)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, logits[:, 1] - logits[:, 0], atol=1e-5)


def test_the_windows_of_a_tall_volume_are_combined_by_their_mean_probability(tmp_path):
    low, tall = tiny_site.write_cases(tmp_path / "a", 1)[0], tiny_site.write_cases(tmp_path / "b", 2, slices=7)[1]
    model = tiny_site.classifier()
    crops = torch.from_numpy(windows.split(cohort.load_pair(tall), tiny_site.SIZE))
    with torch.no_grad():
        probabilities = model(crops).double().softmax(dim=1).mean(dim=0)
    expected = float(torch.log(probabilities[1]) - torch.log(probabilities[0]))
    (found,) = evaluate.scores(model, tiny_site.activations(model), [low, tall, low])
    assert len(crops) == 3
    assert found[1] == pytest.approx(expected, abs=1e-5)
    assert found[0] == pytest.approx(found[2], abs=1e-6)  # its place in a batch shows in the last bits


def test_no_cases_have_no_scores(tmp_path):
    model = tiny_site.classifier()
    (found,) = evaluate.scores(model, tiny_site.activations(model), [])
    assert found.shape == (0,)


def test_figures_use_the_validation_cases_threshold_on_the_other_cases():
    validation = Scored(np.array([1.0, 1.0, 3.0, 3.0]), np.array([0, 0, 1, 1]))  # best cut 2, two of the rarer class
    test = Scored(np.array([0.3, 0.2, 2.0, -1.0]), np.array([0, 1, 1, 0]))
    found = evaluate.figures(validation, test)
    cut = 2 * 2 / 10
    assert found["n"] == 4
    assert found["auc"] == 0.75
    assert found["at_half"] == {"balanced_accuracy": 0.75, "sensitivity": 1.0, "specificity": 0.5}
    assert found["at_validation"]["threshold"] == pytest.approx(1 / (1 + math.exp(-cut)))
    assert (found["at_validation"]["sensitivity"], found["at_validation"]["specificity"]) == (0.5, 1.0)

"""The loss of a case: cross entropy by hand, weighted by class, of logits that are shifted by the site's prior or not."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from shared.recipe import Recipe
from site_agent.models.adapter_tensors import Ownership
from site_agent.training import evaluate, local
from site_agent.training.local import CaseLoss, Position
from site_agent.training.views import View
from tests.support import tiny_site

PLAIN = Recipe(rank_local=2, augmentation="none", class_balanced=False)
CPU = torch.device("cpu")
LOGITS = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, -1.0]])
LABELS = torch.tensor([0, 1, 1])


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Three normal cases and six others."""
    return tiny_site.write_cases(tmp_path_factory.mktemp("cases"), 9)


@pytest.mark.parametrize(
    ("adjusted", "balanced", "expected"),
    [
        # -log p of the label; the prior is (1/3, 2/3), the weights n / (2 n_c) are (1.5, 0.75).
        # logits (1, -1), label 1: log(1 + e^2), and with the prior log(1 + e^2 / 2)
        (False, False, [math.log(2), math.log(2), math.log(1 + math.e**2)]),
        (True, False, [math.log(3), math.log(1.5), math.log(1 + math.e**2 / 2)]),
        (False, True, [1.5 * math.log(2), 0.75 * math.log(2), 0.75 * math.log(1 + math.e**2)]),
        (True, True, [1.5 * math.log(3), 0.75 * math.log(1.5), 0.75 * math.log(1 + math.e**2 / 2)]),
    ],
)
def test_losses_by_hand_with_adjustment_and_balance_each_on_and_off(cases, adjusted, balanced, expected):
    recipe = replace(PLAIN, logit_adjustment=adjusted, class_balanced=balanced)
    found = CaseLoss.of(cases, recipe, CPU)(LOGITS, LABELS)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
def test_adjustment_is_cross_entropy_of_logits_plus_the_logarithm_of_the_prior(cases, balanced):
    """Menon et al. 2021, arXiv:2007.07314, equation 10, with tau = 1."""
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(50, 2, generator=generator), torch.randint(0, 2, (50,), generator=generator)
    recipe = replace(PLAIN, logit_adjustment=True, class_balanced=balanced)
    prior = torch.tensor([3 / 9, 6 / 9])
    weight = torch.tensor([9 / 6, 9 / 12]) if balanced else None
    expected = F.cross_entropy(logits + prior.log(), labels, weight=weight, reduction="none")
    torch.testing.assert_close(CaseLoss.of(cases, recipe, CPU)(logits, labels), expected)


def test_where_classes_are_as_many_it_changes_nothing(cases):
    even = [*(case for case in cases if case.label == 0), *[case for case in cases if case.label][:3]]
    losses = [CaseLoss.of(even, replace(PLAIN, logit_adjustment=on), CPU)(LOGITS, LABELS) for on in (False, True)]
    torch.testing.assert_close(*losses)


def test_a_class_without_cases_counts_as_one_case_and_not_as_minus_infinity(cases):
    ill = [case for case in cases if case.label]
    found = CaseLoss.of(ill, replace(PLAIN, logit_adjustment=True), CPU)(LOGITS, LABELS)
    assert found.isfinite().all()
    assert float(found[0]) == pytest.approx(math.log(1 + 6))  # shares 1/6 and 1


@pytest.mark.parametrize("adjusted", [False, True])
def test_training_uses_it_and_judging_does_not(cases, adjusted):
    """With all rates 0 a round's loss is that of the model as it is; the logits that it is judged by carry no prior."""
    recipe = replace(PLAIN, logit_adjustment=adjusted, lr_global=0, lr_local=0, lr_head=0, local_epochs=1, batch_size=9)
    model = tiny_site.classifier(recipe=recipe)
    activations = tiny_site.activations(model)
    with torch.no_grad():
        logits = model.suffix(activations.prefixes([View(case, "plain") for case in cases]))
    shift = torch.tensor([1 / 3, 2 / 3]).log() if adjusted else torch.zeros(2)
    expected = F.cross_entropy(logits + shift, torch.tensor([case.label for case in cases]))
    loss = local.train_round(model, activations, cases, recipe, Ownership("global+local-bias"), Position(1, 1, 7))
    assert loss == pytest.approx(float(expected), rel=1e-5)
    (margins,) = evaluate.scores(model, activations, cases)
    torch.testing.assert_close(torch.from_numpy(margins), (logits[:, 1] - logits[:, 0]).double(), atol=1e-5, rtol=1e-5)

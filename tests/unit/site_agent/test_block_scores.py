"""Scores of blocks: relative gradient norms under a fitted head, as autograd gives them for the whole cohort at once."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from shared.recipe import Recipe
from site_agent.models import lora
from site_agent.training import block_scores
from site_agent.training.views import View
from tests.support import tiny_site

RECIPE = Recipe(name="head-only", rank_local=0, augmentation="none", class_balanced=False, local_epochs=1)


def scored(cases, recipe=RECIPE, blocks=(0, 1, 2)):
    model = tiny_site.classifier(recipe=recipe, rank=1, blocks=blocks)
    activations = tiny_site.activations(model)
    return block_scores.scores(model, activations, cases, recipe, 2, 7), model, activations


@pytest.mark.parametrize("count", [9, 20])
def test_they_are_norms_of_gradients_over_norms_of_weights(tmp_path, count):
    """Lee et al. 2023, arXiv:2210.11466. Of more cases than go through at once, too."""
    cases = tiny_site.write_cases(tmp_path, count)
    found, model, activations = scored(cases)
    whole = copy.deepcopy(model).requires_grad_(True)
    logits = whole.suffix(activations.prefixes([View(case, "plain") for case in cases]))
    F.cross_entropy(logits, torch.tensor([case.label for case in cases])).backward()
    assert len(found) == 3
    for block, score in enumerate(found):
        weights = [layer.weight for layer in lora.adapted_layers(whole.backbone.blocks[block]).values()]
        gradient = torch.cat([weight.grad.flatten() for weight in weights]).norm()
        size = torch.cat([weight.detach().flatten() for weight in weights]).norm()
        assert score == pytest.approx(float(gradient / size), rel=1e-4)
    assert len(set(found)) == 3


def test_only_blocks_behind_the_cut_have_one(tmp_path):
    cases = tiny_site.write_cases(tmp_path, 9)
    every, late = scored(cases)[0], scored(cases, blocks=(1, 2))[0]
    assert late == pytest.approx(every[1:], rel=1e-4)


def test_they_are_a_function_of_cases_and_seed_and_leave_the_network_frozen(tmp_path):
    cases = tiny_site.write_cases(tmp_path, 9)
    before = {name: value.clone() for name, value in tiny_site.classifier(recipe=RECIPE, rank=1).named_parameters()}
    found, model, _ = scored(cases)
    assert found == scored(cases)[0]
    for name, value in model.backbone_module().named_parameters():
        if ".lora_" not in name:
            assert not value.requires_grad
            assert value.grad is None
            assert torch.equal(value, before[f"backbone.{name}"])
    assert all(layer.active == () for layer in lora.adapted_layers(model).values())


def test_the_loss_is_the_recipes(tmp_path):
    cases = tiny_site.write_cases(tmp_path, 9)
    assert scored(cases)[0] != scored(cases, replace(RECIPE, class_balanced=True))[0]

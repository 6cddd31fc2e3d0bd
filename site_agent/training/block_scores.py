"""Which transformer blocks are worth adapting: a score that one pass of gradients gives, before anything is trained.

score_b = || dL/dW_b || / || W_b ||, W_b all adaptable linear weights of block b, L the loss over a site's training cases under the
frozen network with a head fitted on it. Source: Lee et al. 2023, arXiv:2210.11466 (relative gradient norm, which chooses what to
fine-tune under distribution shift). Sites may share it: it is one number a block.
"""

from collections.abc import Sequence

import torch

from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.data.cohort import labels
from site_agent.models import lora
from site_agent.models.classifier import CineClassifier
from site_agent.training import arms, local
from site_agent.training.activations import Activations
from site_agent.training.views import View

AT_ONCE = 16


def scores(
    model: CineClassifier, activations: Activations, cases: Sequence[Case], recipe: Recipe, rounds: int, seed: int
) -> list[float]:
    """Return a score for each block from `model.first_block` on; blocks before it have no gradient, so that should be the first.

    Leaves the model with a fitted head and no low-rank part switched on.
    """
    arms.fit_probe(model, activations, cases, recipe, rounds, seed)
    loss_of = local.CaseLoss.of(cases, recipe, activations.compute.device)
    blocks = model.backbone.blocks[model.first_block or 0 :]
    weights = [[layer.weight for layer in lora.adapted_layers(block).values()] for block in blocks]
    for weight in (one for of_block in weights for one in of_block):
        weight.requires_grad_(True)
    try:
        for start in range(0, len(cases), AT_ONCE):
            some = cases[start : start + AT_ONCE]
            wanted = torch.from_numpy(labels(some)).to(activations.compute.device)
            logits = model.suffix(activations.prefixes([View(case, "plain") for case in some])).float()
            (loss_of(logits, wanted).sum() / len(cases)).backward()
        return [_relative(of_block) for of_block in weights]
    finally:
        for weight in (one for of_block in weights for one in of_block):
            weight.requires_grad_(False)
            weight.grad = None


def _relative(weights: Sequence[torch.Tensor]) -> float:
    gradients = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None])
    sizes = torch.stack([weight.detach().norm() for weight in weights])
    return float(gradients.norm() / sizes.norm())

"""One weight for each part, fitted at the site: y = W0 x + v_g dW_g x + v_l dW_l x.

Source: Qi et al. 2024, arXiv:2406.07925 (FDLoRA), its fusion step: few cases, no gradients, loss + a penalty on | v |. There the
factors are weighted, here their products, which mean the same whatever the factorisation. The weights are the gates of all layers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from site_agent.data.cases import Case
from site_agent.data.cohort import labels
from site_agent.models import lora
from site_agent.models.classifier import CineClassifier
from site_agent.training.activations import Activations
from site_agent.training.views import View

CASES, EVALUATIONS, PENALTY = 32, 25, 0.05
START = ((0.5, 0.5), (1.0, 0.5), (0.5, 1.0))
"""Each part was trained to do the whole task alone. The simplex is as large as the weights: from scipy's own, a twentieth of that,
so few looks do not come near the minimum."""


def reset(model: CineClassifier) -> None:
    """Let every part count as it is: what it is trained as."""
    _put(model, (1.0, 1.0))


def fit(
    model: CineClassifier, activations: Activations, cases: Sequence[Case], loss_of: nn.Module, seed: int
) -> tuple[float, float]:
    """Set the gates to the best weights found on up to CASES training cases, drawn half from each class; return them.

    The model's parts must be switched on. Nelder and Mead's simplex method, at most EVALUATIONS looks.
    """
    from scipy.optimize import minimize

    chosen = _few(cases, seed)
    prefix = activations.prefixes([View(case, "plain") for case in chosen])
    wanted = torch.from_numpy(labels(chosen)).to(activations.compute.device)

    def cost(weights: np.ndarray) -> float:
        _put(model, weights)
        with torch.no_grad(), activations.compute.autocast():
            logits = model.suffix(prefix).float()
        return float(loss_of(logits, wanted).mean()) + PENALTY * float(np.abs(weights).sum())

    options = {"maxfev": EVALUATIONS, "initial_simplex": np.array(START)}
    found = minimize(cost, np.array(START[0]), method="Nelder-Mead", options=options)
    _put(model, found.x)
    return float(found.x[0]), float(found.x[1])


def _few(cases: Sequence[Case], seed: int) -> list[Case]:
    rng = np.random.default_rng([seed, len(cases)])
    by_label = [[case for case in cases if case.label == label] for label in (0, 1)]
    return [own[i] for own in by_label for i in sorted(rng.permutation(len(own))[: CASES // 2])]


def _put(model: CineClassifier, weights: Sequence[float] | np.ndarray) -> None:
    with torch.no_grad():
        for layer in lora.adapted_layers(model).values():
            for part, weight in zip(lora.PARTS, weights, strict=True):
                layer.lora_gate[part].fill_(float(weight))

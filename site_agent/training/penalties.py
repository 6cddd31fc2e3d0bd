"""What is added to the loss besides the cases: terms that hold parts near something, or apart. Each is off at 0.

Norms and inner products of dW = s B A are computed from r x r Gram matrices, never from an out x in product:
tr(dW_i^T dW_j) = s_i s_j sum((B_i^T B_j) * (A_i A_j^T)).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from shared.methods import Part, Phase
from shared.recipe import Recipe
from site_agent.models import adapter_tensors, lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.classifier import CineClassifier
from site_agent.models.lora import DualLoRALinear

TINY = 1e-12
"""Squared norms below this count as nothing: a product that is zero has no direction."""


@dataclass(frozen=True)
class Penalties:
    """The terms of one round; made while the model holds what the round begins with.

    received: pairs of a trained and shared parameter and the value it was received with. anchored: pairs of a parameter of the
    personal part and the received value of the shared one in the same place. patients: n_k of this site.
    """

    recipe: Recipe
    layers: Sequence[DualLoRALinear]
    received: Sequence[tuple[nn.Parameter, torch.Tensor]]
    anchored: Sequence[tuple[nn.Parameter, torch.Tensor]]
    patients: int

    @classmethod
    def of(cls, model: CineClassifier, recipe: Recipe, owned: Ownership, patients: int) -> "Penalties":
        """Return the terms for a model that was just loaded with the received global part."""
        groups = adapter_tensors.parameters(model, owned)
        shared = (*groups.global_lora, *groups.dense, *groups.head_shared) if recipe.proximal else ()
        anchors = adapter_tensors.counterparts(model) if any(p.anchored for p in recipe.method.passes) else ()
        return cls(
            recipe,
            tuple(lora.adapted_layers(model).values()),
            [(parameter, parameter.detach().clone()) for parameter in shared],
            [(own, shared.detach().clone()) for own, shared in anchors],
            patients,
        )

    def add_gradient(self, phase: Phase) -> None:
        """Add the gradient of all terms of a phase to what the parameters have."""
        terms = list(self._terms(phase))
        if terms:
            torch.autograd.backward(torch.stack(terms).sum())
        decay = self.recipe.local_decay + self.recipe.shrinkage_patients / self.patients
        if decay and "local" in phase.trained:
            for layer in self.layers:
                _add_decay(layer, decay)

    def _terms(self, phase: Phase) -> Iterator[torch.Tensor]:
        recipe = self.recipe
        if recipe.proximal and "global" in phase.trained:
            yield recipe.proximal / 2 * _distance(self.received)
        if recipe.ditto_lambda and phase.anchored:
            yield recipe.ditto_lambda / 2 * _distance(self.anchored)
        if recipe.orthogonality and phase.active == set(lora.PARTS):
            yield recipe.orthogonality * torch.stack([overlap(layer) for layer in self.layers]).mean()

    @torch.no_grad()
    def keep_bounds(self) -> None:
        """Bring every local product back to its largest norm, by scaling B: a projection, after a step."""
        if not self.recipe.local_norm_cap:
            return
        for layer in self.layers:
            most = self.recipe.local_norm_cap * layer.weight.norm()
            norm = squared_norm(layer, "local").sqrt()
            if norm > most:
                layer.lora_B["local"].mul_(most / norm)


def inner(layer: DualLoRALinear, first: Part, second: Part) -> torch.Tensor:
    """tr(dW_first^T dW_second) of one layer."""
    of_a = layer.lora_A[first] @ layer.lora_A[second].T  # (r_1, r_2)
    of_b = layer.scaled(first).T @ layer.scaled(second)
    product: torch.Tensor = (of_a * of_b).sum()
    return product


def squared_norm(layer: DualLoRALinear, part: Part) -> torch.Tensor:
    """|| dW ||^2 in the Frobenius norm."""
    return inner(layer, part, part).clamp_min(0.0)


def overlap(layer: DualLoRALinear) -> torch.Tensor:
    """|| dW_g^T dW_l ||^2 / (|| dW_g ||^2 || dW_l ||^2), from 0 to 1; 0 where one of them is zero.

    || A_g^T (B_g^T B_l) A_l ||^2 = tr(M^T (A_g A_g^T) M (A_l A_l^T)) with M = B_g^T B_l, scales and gates in B.
    """
    a_g, a_l = layer.lora_A["global"], layer.lora_A["local"]
    cross = layer.scaled("global").T @ layer.scaled("local")  # (r_g, r_l)
    numerator = ((a_g @ a_g.T) @ cross * (cross @ (a_l @ a_l.T))).sum()
    sizes = squared_norm(layer, "global") * squared_norm(layer, "local")
    return torch.where(sizes > TINY, numerator / sizes.clamp_min(TINY), torch.zeros_like(sizes))


@torch.no_grad()
def _add_decay(layer: DualLoRALinear, decay: float) -> None:
    """Add the gradient of decay / 2 || s B A ||^2: decay s^2 (B^T B) A and decay s^2 B (A A^T). Written out, so that
    no graph is built for it in every step. A gate is a factor of s."""
    a, b = layer.lora_A["local"], layer.lora_B["local"]
    of_a, of_b, factor = a @ a.T, b.T @ b, decay * layer.scales["local"] ** 2
    gradients = []
    if "local" in layer.lora_gate:
        gate = layer.lora_gate["local"]
        gradients.append((gate, factor * gate * (of_a * of_b).sum()))
        factor = factor * gate**2
    for parameter, gradient in (*gradients, (a, factor * of_b @ a), (b, factor * b @ of_a)):
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def _distance(pairs: Sequence[tuple[nn.Parameter, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([(parameter - value).square().sum() for parameter, value in pairs]).sum()

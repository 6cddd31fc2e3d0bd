"""One site's share of one round: what its recipe trains, phase by phase, on the cached activations.

Of the global part only the factors that the recipe trains in this round have a gradient and a place in the optimiser.

What a step sees and how fast it learns, `schedule` says; what is added to the loss, `penalties`; how the gradient comes about in
the memory there is, `gradient` and `micro_batch`; how several processes share it, `parallel`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.errors import InputError
from shared.methods import GLOBAL_ALONE, Part, Phase
from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.models import adapter_tensors, lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.classifier import CineClassifier
from site_agent.privacy import gradient as private_gradient
from site_agent.privacy import sampling
from site_agent.privacy.gradient import PrivateGradient
from site_agent.privacy.stream import Stream
from site_agent.training import checkpoint, fusion, memory, schedule
from site_agent.training.activations import Activations
from site_agent.training.checkpoint import Keeper, Progress
from site_agent.training.gradient import Gradient
from site_agent.training.micro_batch import MicroBatch
from site_agent.training.parallel import ALONE, Group
from site_agent.training.penalties import Penalties
from site_agent.training.schedule import Batch, Position

PART_OF: dict[str, Part] = {
    **dict.fromkeys(("global", "global_own", "dense", "head_shared"), "global"),
    **dict.fromkeys(("local", "gates", "head_private"), "local"),
}
"""The part that a group of parameters is trained with."""


class Stopped(Exception):
    """Training was asked to stop; the round counts as not trained, but goes on from its last checkpoint."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a caller may watch: after every optimiser step, with the optimiser; and whether to stop."""

    on_step: Callable[[int, int, torch.optim.Optimizer], None] = lambda step, steps, optimiser: None
    should_stop: Callable[[], bool] = lambda: False


def class_weights(labels: np.ndarray, balanced: bool) -> torch.Tensor:
    """Weights n / (2 n_c) per class, so that both classes count the same over an epoch; ones if not balanced."""
    counts = np.bincount(labels, minlength=2).astype(np.float64)
    weights = len(labels) / (2 * np.maximum(counts, 1)) if balanced else np.ones(2)
    return torch.tensor(weights, dtype=torch.float32)


def train_round(
    model: CineClassifier,
    activations: Activations,
    cases: Sequence[Case],
    recipe: Recipe,
    owned: Ownership,
    position: Position,
    *,
    hooks: Hooks = Hooks(),
    micro_batch: MicroBatch | None = None,
    keeper: Keeper | None = None,
    group: Group = ALONE,
    stream: Stream | None = None,
) -> float:
    """Train the model in place for one round; return the mean loss of its first pass's last epoch. Raises Stopped when asked to.

    Afterwards the parts that the method serves are switched on.

    A fresh AdamW each round (the received global part has moved since the last one), gradients clipped by norm. With a
    keeper, training goes on from the newest checkpoint, and leaves one now and then and when it is stopped.

    Of several processes rank 0 has the keeper, and its hooks say when to stop. All begin with the same model and end with it.

    stream: what patients and noise of the pass that trains the shared part are drawn from, where the recipe asks for differential
    privacy. Raises InputError if there is none then. The loss is nan if nobody was drawn in the last epoch.
    """
    batches = _batches(cases, recipe, position, stream)
    fitting, largest = micro_batch or MicroBatch(), max((batch.views for batch in batches), key=len)
    group.gathered(lambda: fitting.find(model, activations, largest, memory.for_training(group.local_size)))
    if any(phase.anchored for phase in recipe.method.passes):
        adapter_tensors.begin_personal(model)
    penalties = Penalties.of(model, recipe, owned, len(cases))
    if recipe.method.fused:
        fusion.reset(model)
    with adapter_tensors.only_trained(model, recipe.trained(position.round)):
        groups = _parameter_groups(model, recipe, owned)
        parameters = [p for group in groups for p in group["params"]]
        device = activations.compute.device
        optimiser = torch.optim.AdamW(
            groups,
            betas=(recipe.beta1, recipe.beta2),
            weight_decay=recipe.weight_decay,
            fused=device.type == "cuda" or None,  # one kernel for many small tensors
        )
        loss_of = CaseLoss.of(cases, recipe, device)
        gradient = Gradient(model, activations, parameters, loss_of, fitting, group)
        private = _private(gradient, groups, owned, recipe, position.round, len(cases), stream)
        first, losses = 0, list[float]()
        held, *_ = group.gathered(lambda: keeper.newest() if keeper is not None else None)
        if held is not None:
            first, losses = held.step, list(held.losses)
            _restore(model, owned, optimiser, device, held)
        with closing(gradient.looked_up(batches[first:])) as looked:
            for step, batch in enumerate(batches[first:], start=first):
                stopping = group.told(hooks.should_stop())
                if keeper is not None and step > first and (keeper.due or stopping):
                    keeper.save(_progress(model, owned, optimiser, device, step, losses))
                if stopping:
                    raise Stopped
                lora.use(model, batch.phase.active)
                _set_rates(optimiser, recipe, position, batch)
                if private is not None and batch.phase == GLOBAL_ALONE:
                    loss = private.of(batch, step, looked)
                else:
                    loss = gradient.of(batch, looked)
                penalties.add_gradient(batch.phase)
                _let_rest(optimiser, batch.phase)
                nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
                optimiser.step()
                penalties.keep_bounds()
                if batch.epoch == recipe.local_epochs - 1 and batch.phase in recipe.passes()[0] and batch.views:
                    losses.append(loss)
                hooks.on_step(step + 1, len(batches), optimiser)
        lora.use(model, recipe.method.serves)
    if recipe.method.fused:
        group.gathered(lambda: fusion.fit(model, activations, cases, loss_of, position.seed))
    return float(np.mean(losses)) if losses else math.nan


def _batches(cases: Sequence[Case], recipe: Recipe, position: Position, stream: Stream | None) -> list[Batch]:
    if not recipe.dp_noise:
        return list(schedule.batches(cases, recipe, position))
    if stream is None:
        raise InputError(
            f"recipe parameter dp_noise is {recipe.dp_noise:g}, and there is no key to draw noise from; nothing is trained "
            "without one"
        )
    return list(sampling.batches(cases, recipe, position, stream))


def _private(
    gradient: Gradient,
    groups: Sequence[Mapping[str, Any]],
    owned: Ownership,
    recipe: Recipe,
    round_number: int,
    patients: int,
    stream: Stream | None,
) -> PrivateGradient | None:
    """Return what makes the gradients of the pass that trains what is shared; None without differential privacy."""
    if not recipe.dp_noise or stream is None:
        return None
    travelling = adapter_tensors.travelling(gradient.model, owned, recipe, round_number)
    trained = [p for group in groups if PART_OF[group["name"]] in GLOBAL_ALONE.trained for p in group["params"]]
    private_gradient.check_covers(travelling, trained)
    return PrivateGradient(gradient, travelling, recipe, patients, stream)


class CaseLoss(nn.Module):
    """Cross entropy of each case: logits (n, classes), labels (n,) → (n,), weighted by class, after a shift of the logits."""

    def __init__(self, weight: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.shift = weight, shift

    @classmethod
    def of(cls, cases: Sequence[Case], recipe: Recipe, device: torch.device) -> "CaseLoss":
        """Return the recipe's loss for a site with these training cases.

        Logit adjustment shifts by log pi_c, pi_c the share of class c (Menon et al. 2021, arXiv:2007.07314, equation 10).
        """
        counts = np.bincount([case.label for case in cases], minlength=2).astype(np.float64)
        shares = np.maximum(counts, 1) / max(len(cases), 1)
        shift = np.log(shares) if recipe.logit_adjustment else np.zeros(2)
        weight = class_weights(np.array([case.label for case in cases]), recipe.class_balanced)
        return cls(weight.to(device), torch.tensor(shift, dtype=torch.float32, device=device))

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits + self.shift, labels, weight=self.weight, reduction="none")


def _progress(
    model: CineClassifier,
    owned: Ownership,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    step: int,
    losses: Sequence[float],
) -> Progress:
    return Progress(
        step=step,
        losses=list(losses),
        global_tensors=_as_torch(adapter_tensors.global_tensors(model, owned)),
        local_tensors=_as_torch(adapter_tensors.local_tensors(model, owned)),
        optimiser=optimiser.state_dict(),
        generators=checkpoint.generators(device),
    )


def _restore(
    model: CineClassifier,
    owned: Ownership,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    held: Progress,
) -> None:
    tensors = held.global_tensors | held.local_tensors
    adapter_tensors.load_both(model, owned, {name: value.numpy() for name, value in tensors.items()})
    optimiser.load_state_dict(held.optimiser)
    checkpoint.set_generators(held.generators, device)


def _as_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in tensors.items()}


def _parameter_groups(model: CineClassifier, recipe: Recipe, owned: Ownership) -> list[dict[str, Any]]:
    """What is trained, by who owns it; what has no gradient in this round is in no group."""
    of = adapter_tensors.parameters(model, owned)
    groups = [
        ("global", of.global_lora, recipe.lr_global),
        ("global_own", of.global_own, recipe.lr_global),
        ("dense", of.dense, recipe.lr_global),
        ("local", of.local_lora, recipe.lr_local),
        ("gates", of.gates if recipe.gate else (), recipe.lr_local),
        ("head_shared", of.head_shared, recipe.lr_head),
        ("head_private", of.head_private, recipe.lr_head),
    ]
    trained = [(name, [p for p in group if p.requires_grad], rate) for name, group, rate in groups]
    return [
        # a gate that decays would not go back to 1 but to nothing
        {
            "name": name,
            "params": group,
            "lr": rate,
            "base_lr": rate,
            **({"weight_decay": 0.0} if name == "gates" else {}),
        }
        for name, group, rate in trained
        if group
    ]


def _set_rates(optimiser: torch.optim.Optimizer, recipe: Recipe, position: Position, batch: Batch) -> None:
    factor = schedule.learning_rate_factor(recipe, position, batch.at)
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor


def _let_rest(optimiser: torch.optim.Optimizer, phase: Phase) -> None:
    """Take away the gradients of what a phase does not train: it neither moves nor counts in clipped norm and moments."""
    for group in optimiser.param_groups:
        if PART_OF[group["name"]] not in phase.trained:
            for parameter in group["params"]:
                parameter.grad = None

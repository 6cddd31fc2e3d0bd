"""One site's share of one round: both low-rank parts and the head, trained on the cached activations.

Of the global part only the factors that the recipe trains in this round have a gradient and a place in the optimiser.

What a step sees and how fast it learns, `schedule` says.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.models import adapter_tensors
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.classifier import CineClassifier
from site_agent.training import ahead, checkpoint, schedule
from site_agent.training.activations import Activations, Looked
from site_agent.training.checkpoint import Keeper, Progress
from site_agent.training.schedule import Batch, Position


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
    micro_batch: int = 0,
    keeper: Keeper | None = None,
) -> float:
    """Train the model in place for one round; return the mean loss of its last epoch. Raises Stopped when asked to stop.

    A fresh AdamW each round (the received global part has moved since the last one), gradients clipped by norm. With a
    keeper, training goes on from the newest checkpoint, and leaves one now and then and when it is stopped.
    """
    with adapter_tensors.only_trained(model, recipe.trained(position.round)):
        groups = _parameter_groups(model, recipe, owned)
        parameters = [p for group in groups for p in group["params"]]
        optimiser = torch.optim.AdamW(groups, betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay)
        device = activations.compute.device
        loss_of = _loss(cases, recipe, device)
        total, first, losses = schedule.steps_of(len(cases), recipe), 0, list[float]()
        if keeper is not None and (held := keeper.newest()) is not None:
            first, losses = held.step, list(held.losses)
            _restore(model, owned, optimiser, device, held)
        steps = list(schedule.batches(cases, recipe, position))[first:]
        with closing(ahead.looked_up((batch.views for batch in steps), activations)) as looked:
            for step, (batch, found) in enumerate(zip(steps, looked, strict=True), start=first):
                if keeper is not None and step > first and (keeper.due or hooks.should_stop()):
                    keeper.save(_progress(model, owned, optimiser, device, step, losses))
                if hooks.should_stop():
                    raise Stopped
                _set_rates(optimiser, recipe, position, batch)
                optimiser.zero_grad(set_to_none=True)
                loss = _backward(model, activations, batch, found, loss_of, micro_batch)
                _let_rest(optimiser)
                nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
                optimiser.step()
                if batch.epoch == recipe.local_epochs - 1:
                    losses.append(loss)
                hooks.on_step(step + 1, total, optimiser)
        return float(np.mean(losses))


def _loss(cases: Sequence[Case], recipe: Recipe, device: torch.device) -> nn.Module:
    weight = class_weights(np.array([case.label for case in cases]), recipe.class_balanced)
    return nn.CrossEntropyLoss(weight=weight.to(device), reduction="none")


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
        ("local", of.local_lora, recipe.lr_local),
        ("head_shared", of.head_shared, recipe.lr_head),
        ("head_private", of.head_private, recipe.lr_head),
    ]
    trained = [(name, [p for p in group if p.requires_grad], rate) for name, group, rate in groups]
    return [{"name": name, "params": group, "lr": rate, "base_lr": rate} for name, group, rate in trained if group]


def _set_rates(optimiser: torch.optim.Optimizer, recipe: Recipe, position: Position, batch: Batch) -> None:
    """Apply the schedule. Alternating: first half of the steps the global part, also what of it stays here, and the shared head;
    second half local and private head."""
    factor = schedule.learning_rate_factor(recipe, position, batch.at)
    for group in optimiser.param_groups:
        private = group["name"] in ("local", "head_private")
        group["rests"] = recipe.mode == "alternating" and private == (batch.at < 0.5)
        group["lr"] = group["base_lr"] * factor


def _let_rest(optimiser: torch.optim.Optimizer) -> None:
    """Take the gradients of resting groups away: they neither move nor count in the clipped norm or AdamW's moments."""
    for parameter in (p for group in optimiser.param_groups if group["rests"] for p in group["params"]):
        parameter.grad = None


def _backward(
    model: CineClassifier,
    activations: Activations,
    batch: Batch,
    looked: Sequence[Looked],
    loss_of: nn.Module,
    micro_batch: int,
) -> float:
    """Accumulate the gradient of the batch's mean loss, `micro_batch` samples at a time; return the loss."""
    device, size = activations.compute.device, micro_batch or len(looked)
    value = 0.0
    for start in range(0, len(looked), size):
        labels = torch.from_numpy(batch.labels[start : start + size]).to(device)
        prefix = activations.finish(looked[start : start + size])
        with activations.compute.autocast():
            logits = model.suffix(prefix)
        loss = loss_of(logits.float(), labels).sum() / len(looked)
        loss.backward()
        value += float(loss.detach())
    return value

"""What federation brought *this* hospital: the same cases under four models.

    probe    frozen backbone, only a head, fitted at the site
    alone    the site's own dual LoRA (rank r_g + r_l) and head, never federated, same number of steps
    global   the federated model with everything that is the site's own switched off: local part, private head parts, and what
             a recipe trains of the global part and does not share
    dual     the federated model with the site's local part

A jointly trained model with one part off keeps its ranking but loses its offset: judge `global` by its AUC and at its own
validation threshold, not at probability 0.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from shared.methods import GLOBAL, PARTS, Part
from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.data.cohort import labels
from site_agent.models import lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.classifier import CineClassifier
from site_agent.training import case_scores, evaluate, local, micro_batch, schedule
from site_agent.training.activations import Activations
from site_agent.training.case_scores import CaseScores, CaseSet
from site_agent.training.evaluate import Scored
from site_agent.training.micro_batch import MicroBatch
from site_agent.training.parallel import ALONE, Group
from site_agent.training.views import View


@dataclass(frozen=True, slots=True)
class Arm:
    """A state of the trained part of a model: its adapters and heads, and which parts of both count."""

    tensors: Mapping[str, torch.Tensor]
    parts: frozenset[Part]
    head_parts: frozenset[Part]

    @classmethod
    def of(cls, model: CineClassifier) -> "Arm":
        """Return the state that a model is in."""
        tensors = {name: value.detach().clone() for name, value in _trained_part(model).items()}
        layers = lora.adapted_layers(model).values()
        return cls(tensors, frozenset(p for p in PARTS if any(p in one.active for one in layers)), model.head_parts)

    def put(self, model: CineClassifier) -> None:
        """Bring a model into this state."""
        lora.switch(model, self.parts)
        model.head_parts = self.head_parts
        with torch.no_grad():
            for name, value in _trained_part(model).items():
                value.copy_(self.tensors[name])


def _trained_part(model: CineClassifier) -> dict[str, torch.Tensor]:
    heads = {id(value) for value in (*model.heads().values(), *model.private_heads().values())}
    return {
        name: value
        for name, value in model.named_parameters()
        if ".lora_" in name or value.requires_grad or id(value) in heads
    }


@dataclass(frozen=True, slots=True)
class Compared:
    """The arms beside each other. figures: {arm: {validation, test}}, thresholds from the validation cases; {arm: {}} without any.
    scores: what they are computed from, case by case."""

    figures: dict[str, Any]
    scores: CaseScores


def compare(
    model: CineClassifier,
    activations: Activations,
    arms: Mapping[str, Arm],
    validation: Sequence[Case],
    test: Sequence[Case],
    group: Group = ALONE,
) -> Compared:
    """Score the cases under all arms, which share one pass of the frozen part over them."""
    states = [lambda arm=arm: arm.put(model) for arm in arms.values()]
    parts: dict[CaseSet, CaseScores] = {}
    for name, cases in zip(case_scores.SETS, (validation, test), strict=True):
        if cases:
            found = evaluate.scores(model, activations, cases, states, group)
            parts[name] = CaseScores(
                keys=tuple(case.key for case in cases),
                sets=(name,) * len(cases),
                labels=labels(cases),
                margins=dict(zip(arms, found, strict=True)),
            )
    result: dict[str, Any] = {arm: {} for arm in arms}
    for arm in arms if validation else ():
        scored = {name: Scored(part.margins[arm], part.labels) for name, part in parts.items()}
        result[arm] = {name: evaluate.figures(scored["validation"], one) for name, one in scored.items()}
    return Compared(result, case_scores.joined(list(parts.values())))


def fit_probe(
    model: CineClassifier, activations: Activations, cases: Sequence[Case], recipe: Recipe, rounds: int, seed: int
) -> None:
    """Fit the heads of `model` on frozen features, its low-rank parts switched off: as many steps as a federated site trains,
    same batches, views, class weights and schedule."""
    lora.switch(model, ())
    model.head_parts = PARTS
    heads, device = [*model.heads().values(), *model.private_heads().values()], activations.compute.device
    optimiser = torch.optim.AdamW(heads, lr=recipe.lr_head, betas=(recipe.beta1, recipe.beta2))
    loss_of = local.CaseLoss.of(cases, recipe, device)
    pooled: dict[View, torch.Tensor] = {}
    for number in range(1, rounds + 1):
        position = schedule.Position(number, rounds, seed)
        steps = list(schedule.batches(cases, recipe, position))
        pooled = _pooled(model, activations, [view for batch in steps for view in batch.views], pooled)
        for batch in steps:
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr_head * schedule.learning_rate_factor(recipe, position, batch.at)
            optimiser.zero_grad(set_to_none=True)
            wanted = torch.from_numpy(batch.labels).to(device)
            loss_of(model.head(torch.stack([pooled[view] for view in batch.views])), wanted).mean().backward()
            nn.utils.clip_grad_norm_(heads, recipe.clip_norm)
            optimiser.step()


def _pooled(
    model: CineClassifier, activations: Activations, views: Sequence[View], known: Mapping[View, torch.Tensor]
) -> dict[View, torch.Tensor]:
    """Return the frozen features of `views`, (2, feature_dim) each; what is `known` of them is not computed again."""
    found = {view: known[view] for view in views if view in known}
    missing = list(dict.fromkeys(view for view in views if view not in known))
    features = [row for rows in micro_batch.over(activations, missing, model.pooled) for row in rows.float()]
    return found | dict(zip(missing, features, strict=True))


def fit_alone(
    model: CineClassifier,
    activations: Activations,
    cases: Sequence[Case],
    recipe: Recipe,
    owned: Ownership,
    rounds: int,
    seed: int,
    hooks: local.Hooks,
    fitting: MicroBatch,
    group: Group = ALONE,
) -> None:
    """Train `model`, at its start, as a federation of one; without noise, which what stays at the site needs none of."""
    recipe = replace(recipe, dp_noise=0.0, dp_epsilon=0.0)
    for number in range(1, rounds + 1):
        position = schedule.Position(number, rounds, seed)
        local.train_round(
            model, activations, cases, recipe, owned, position, hooks=hooks, micro_batch=fitting, group=group
        )


def switch_local_off(model: CineClassifier) -> None:
    """Turn a dual model whose global part is a version's into its global arm: no local product, no private bias or head beside a
    shared one (what a new site would be given)."""
    lora.use(model, GLOBAL)

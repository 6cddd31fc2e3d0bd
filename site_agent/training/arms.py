"""What federation brought *this* hospital: the same cases under four models.

    probe    frozen backbone, only a head, fitted at the site
    alone    the site's own dual LoRA (rank r_g + r_l) and head, never federated, same number of steps
    global   the federated model with everything that is the site's own switched off: local part, private head parts, and what
             a recipe trains of the global part and does not share
    dual     the federated model with the site's local part

A jointly trained model with one part off keeps its ranking but loses its offset: judge `global` by its AUC and at its own
validation threshold, not at probability 0.5.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.data.cohort import labels
from site_agent.models import lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.classifier import CineClassifier
from site_agent.training import evaluate, local
from site_agent.training.activations import Activations
from site_agent.training.evaluate import Scored

ARMS = ("probe", "alone", "global", "dual")


def fit_probe(
    model: CineClassifier, activations: Activations, cases: Sequence[Case], recipe: Recipe, rounds: int, seed: int
) -> None:
    """Fit the heads of `model`, whose low-rank parts must be off, on frozen features: as many steps as a federated site
    trains, same batches, views, class weights and schedule."""
    pooled = _pooled_of_every_view(model, activations, cases, recipe)
    heads = list(model.heads().values())
    optimiser = torch.optim.AdamW(heads, lr=recipe.lr_head, betas=(recipe.beta1, recipe.beta2))
    weight = local.class_weights(labels(cases), recipe.class_balanced).to(activations.device)
    loss_of = nn.CrossEntropyLoss(weight=weight, reduction="none")
    for number in range(1, rounds + 1):
        position = local.Position(number, rounds, seed)
        for batch in local.batches(cases, activations, recipe, position):
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr_head * local.learning_rate_factor(recipe, position, batch.at)
            features = torch.stack([pooled[v.key] for v in batch.views])
            optimiser.zero_grad(set_to_none=True)
            wanted = torch.from_numpy(batch.labels).to(activations.device)
            loss_of(model.head(features), wanted).mean().backward()
            nn.utils.clip_grad_norm_(heads, recipe.clip_norm)
            optimiser.step()


def _pooled_of_every_view(
    model: CineClassifier, activations: Activations, cases: Sequence[Case], recipe: Recipe
) -> dict[tuple[str, str, int], torch.Tensor]:
    views = [v for case in cases for v in activations.training_views(case, recipe.views)]
    pooled: dict[tuple[str, str, int], torch.Tensor] = {}
    with torch.no_grad():
        for start in range(0, len(views), evaluate.SUFFIX_BATCH):
            batch = views[start : start + evaluate.SUFFIX_BATCH]
            features = model.pooled(activations.prefixes(batch)).float()
            pooled |= {v.key: f for v, f in zip(batch, features, strict=True)}
    return pooled


class Comparison:
    """Evaluates the four arms on validation and test cases of one site."""

    def __init__(
        self, activations: Activations, train: Sequence[Case], validation: Sequence[Case], test: Sequence[Case]
    ) -> None:
        self._activations, self._train = activations, train
        self._sets = {"validation": validation, "test": test}

    def figures(self, model: CineClassifier) -> dict[str, Any]:
        """Return {validation, test} -> figures of the model as it stands, thresholds from the validation cases."""
        scored = {name: Scored.of(model, self._activations, cases) for name, cases in self._sets.items() if len(cases)}
        if "validation" not in scored:
            return {}
        return {name: evaluate.figures(scored["validation"], s) for name, s in scored.items()}

    def probe(self, model: CineClassifier, recipe: Recipe, rounds: int, seed: int) -> dict[str, Any]:
        """Figures of a head fitted on frozen features. `model` is used up."""
        lora.switch(model, ())
        fit_probe(model, self._activations, self._train, recipe, rounds, seed)
        return self.figures(model)

    def alone(
        self,
        model: CineClassifier,
        recipe: Recipe,
        owned: Ownership,
        rounds: int,
        seed: int,
        hooks: local.Hooks,
        micro_batch: int,
    ) -> dict[str, Any]:
        """Figures of the same model and recipe trained as a federation of one. `model` is used up."""
        for number in range(1, rounds + 1):
            position = local.Position(number, rounds, seed)
            local.train_round(
                model, self._activations, self._train, recipe, owned, position, hooks=hooks, micro_batch=micro_batch
            )
        return self.figures(model)


def switch_local_off(model: CineClassifier, owned: Ownership) -> None:
    """Turn a dual model whose global part is a version's into its global arm: no local product, private biases zero (what a
    new site would be given)."""
    only: tuple[lora.Part, ...] = ("global",)
    lora.switch(model, only)
    if owned.head == "global+local-bias":
        with torch.no_grad():
            for name, value in model.heads().items():
                if name.endswith(".bias"):
                    value.zero_()

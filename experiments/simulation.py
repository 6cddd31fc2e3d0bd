"""A federation in one process: the site's own trainer and the aggregator's own rule, without a wire between them.

For reference figures (a model trained on all cases pooled) and for choosing settings quickly. What is reported as the demo's
result comes from real processes over gRPC, never from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.adapter import Adapter
from shared.contract import Contract, RoundPolicy
from shared.recipe import Recipe
from site_agent.config import SiteConfig
from site_agent.data.cohort import Cohort
from site_agent.new_adapter import AdapterChoices, init_adapter
from site_agent.training import evaluate, local
from site_agent.training.evaluate import Scored
from site_agent.training.site import SiteTrainer, load_base


@dataclass(frozen=True)
class Setting:
    """Where data and base model lie, and the seed of everything that is drawn."""

    cohort: Path
    weights: Path
    seed: int = 0
    rounds: int = 8
    recipe: Recipe = field(default_factory=Recipe)
    choices: AdapterChoices = field(default_factory=AdapterChoices)

    def start(self, sites: int) -> tuple[Contract, Adapter]:
        """Return the contract and version 0."""
        initial = init_adapter(self.weights, "", replace(self.choices, seed=self.seed))
        policy = RoundPolicy(rounds=self.rounds, invited=sites, quorum=sites)
        contract = Contract(
            federation="simulation",
            adapter_digest=initial.digest,
            manifest=initial.manifest,
            recipe=self.recipe,
            policy=policy,
        )
        return contract, initial

    def trainer(self, site: str, contract: Contract, cohort: Cohort) -> SiteTrainer:
        """Return a site's trainer on its prepared cohort."""
        config = SiteConfig(
            aggregator="127.0.0.1:1", plain_site=site, cohort=cohort.folder, weights=self.weights, seed=self.seed
        )
        loaded = load_base(self.weights, "", contract.manifest.metadata.frames)  # type: ignore[arg-type]
        return SiteTrainer(config, site, contract, loaded, cohort)


def centralise(setting: Setting, sites: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Train one model of rank r_g on the pooled training cases; return figures per site, thresholds from pooled validation.

    The upper reference, and a check that the phantom is neither trivial nor hopeless.
    """
    members = [Cohort.load(setting.cohort / s) for s in sites]
    pooled = replace(members[0], vendor="pooled", cases=tuple(case for member in members for case in member.cases))
    contract, initial = setting.start(1)
    trainer = setting.trainer("pooled", contract, pooled)
    tensors, current = trainer.initial_local(), initial
    for number in range(1, setting.rounds + 1):
        trained = trainer.train(number, current, tensors, local.Hooks())
        tensors, current = trained.local_tensors, current.successor(trained.global_tensors, number)
    validation = Scored.of(trainer.model, trainer.activations, trainer.validation_cases)
    return {
        member.vendor: evaluate.figures(validation, Scored.of(trainer.model, trainer.activations, member.test()))
        for member in members
    }


def mean_of(figures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return AUC and both balanced accuracies averaged over sites."""
    return {
        "auc": float(np.mean([f["auc"] for f in figures])),
        "at_half": float(np.mean([f["at_half"]["balanced_accuracy"] for f in figures])),
        "at_validation": float(np.mean([f["at_validation"]["balanced_accuracy"] for f in figures])),
    }

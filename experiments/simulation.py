"""A federation in one process: the site's own trainer and door out and the aggregator's own rule, without a wire between them.

For reference figures (a model trained on all cases pooled) and for choosing settings and recipes quickly. What is reported as
the demo's result comes from real processes over gRPC, never from here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from aggregator import aggregation, gate, results
from aggregator.aggregation import Tensors
from aggregator.optimisers import State
from shared.adapter import Adapter
from shared.canonical import canonical_json, sha256_hex
from shared.contract import Contract, RoundPolicy
from shared.feedback import Sent
from shared.recipe import Recipe
from site_agent import egress
from site_agent.config import SiteConfig, Stored
from site_agent.data.cohort import Cohort
from site_agent.egress import Update, UpdateFacts
from site_agent.new_adapter import AdapterChoices, init_adapter
from site_agent.privacy.stream import Stream
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
    cache: Path | None = None
    """Folder for frozen activations; None: beside the sites' cohorts."""
    cache_dtype: Stored = "float32"
    cache_mb: int = 16384
    """0 keeps none."""
    validation_fold: int = 0
    weights_size: str = ""
    """tiny or base, for a bare CineMA file."""

    def start(self, sites: int) -> tuple[Contract, Adapter]:
        """Return the contract and version 0."""
        initial = init_adapter(self.weights, self.weights_size, replace(self.choices, seed=self.seed))
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
            aggregator="127.0.0.1:1",
            plain_site=site,
            cohort=cohort.folder,
            weights=self.weights,
            weights_size=self.weights_size,
            seed=self.seed,
            cache=self.cache or cohort.folder.parent / "activations",
            cache_dtype=self.cache_dtype,
            cache_mb=self.cache_mb,
            validation_fold=self.validation_fold,
        )
        loaded = load_base(self.weights, self.weights_size, contract.manifest.metadata.frames)  # type: ignore[arg-type]
        return SiteTrainer(config, site, contract, loaded, cohort)


def centralise(setting: Setting, sites: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Train one model of rank r_g on the pooled training cases; return figures per site, thresholds from pooled validation.

    The pooled reference, and a check that the phantom is neither trivial nor hopeless.
    """
    members = [Cohort.load(setting.cohort / s) for s in sites]
    pooled = replace(members[0], vendor="pooled", cases=tuple(case for member in members for case in member.cases))
    contract, initial = setting.start(1)
    trainer = setting.trainer("pooled", contract, pooled)
    tensors, current = trainer.initial_local(), initial
    for number in range(1, setting.rounds + 1):
        trained = trainer.train(number, current, tensors, local.Hooks())
        tensors, current = trained.local_tensors, _next(current, trained.global_tensors, number)
    validation = Scored.of(trainer.model, trainer.activations, trainer.validation_cases)
    return {
        member.vendor: evaluate.figures(validation, Scored.of(trainer.model, trainer.activations, member.test()))
        for member in members
    }


@dataclass(frozen=True)
class SimulatedRound:
    """What a round left: each site's update and private tensors, and the version made of them."""

    updates: Mapping[str, Update]
    private: Mapping[str, Mapping[str, np.ndarray]]
    version: Adapter
    change: Sent | None
    """What is broadcast, where the recipe's broadcast codec is lossy."""
    figures: Mapping[str, float]
    """What the aggregator says about the round (aggregator/aggregation.py)."""

    @property
    def train_loss(self) -> float:
        """Mean over the sites; nan under differential privacy, where none is told."""
        return float(np.mean([update.facts.metrics.get("train_loss", np.nan) for update in self.updates.values()]))


def federate(
    contract: Contract,
    initial: Adapter,
    trainers: Mapping[str, SiteTrainer],
    tamper: Callable[[str, Update], Update] = lambda site, update: update,
) -> Iterator[SimulatedRound]:
    """Train all rounds of a contract with these sites, every one in every round.

    tamper: what a site sends in place of the update it made; a site's own model is what it trained.
    """
    recipe, sites = contract.recipe, sorted(trainers)
    private = {site: trainers[site].initial_local() for site in sites}
    owed: dict[str, dict[str, np.ndarray]] = {site: {} for site in sites}
    patients = {site: trainers[site].training_patients for site in sites}
    current = initial
    kept_back: Mapping[str, np.ndarray] = {}
    moments: State = {}
    for number in range(1, contract.policy.rounds + 1):
        updates: dict[str, Update] = {}
        for site in sites:
            stream = _stream(trainers[site], number) if recipe.dp_noise else None
            trained = trainers[site].train(number, current, private[site], local.Hooks(), stream=stream)
            facts = UpdateFacts(
                round=number,
                base_version=current.version,
                training_patients=patients[site],
                metrics=trained.metrics,
            )
            seed = canonical_json([trainers[site].seed, number])
            updates[site], owed[site] = egress.seal(
                current, trained.global_tensors, recipe, facts, len(sites), owed[site], seed
            )
            private[site] = trained.local_tensors

        sent = {site: tamper(site, update) for site, update in updates.items()}
        weight = aggregation.weights(_counted(recipe, current, sent, patients), recipe.weighting, recipe.weight_cap)

        def deltas(sent: Mapping[str, Update] = sent, counted: Mapping[str, float] = weight) -> dict[str, Tensors]:
            return {site: sent[site].layout.read([sent[site].payload]) for site in counted}

        result = results.make(contract, number, number, current, deltas, weight, kept_back, moments)
        moments = result.moments
        current, kept_back = result.version, result.change.residual if result.change else {}
        yield SimulatedRound(updates, dict(private), current, result.change, result.figures)


def _counted(
    recipe: Recipe, received: Adapter, sent: Mapping[str, Update], patients: Mapping[str, int]
) -> dict[str, int]:
    """Return the patients of the sites whose update the recipe's norm gate lets count."""
    sizes = {
        site: gate.norms(recipe.rule, received.tensors, update.layout.read([update.payload]))
        for site, update in sent.items()
        if recipe.norm_gate
    }
    out = gate.too_large(sizes, recipe.norm_gate)
    return {site: count for site, count in patients.items() if site not in out}


def _stream(trainer: SiteTrainer, number: int) -> Stream:
    """What a site's noise is drawn from in a round: here, where nothing is private and all is to repeat, a function of its seed."""
    return Stream(bytes.fromhex(sha256_hex(canonical_json([trainer.seed, number, "noise"]))))


def _next(current: Adapter, made: Mapping[str, np.ndarray], version: int) -> Adapter:
    """Return the version after this one; what did not travel in the round stays as it was."""
    return current.successor({**current.tensors, **made}, version)


def mean_of(figures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return AUC and both balanced accuracies averaged over sites."""
    return {
        "auc": float(np.mean([f["auc"] for f in figures])),
        "at_half": float(np.mean([f["at_half"]["balanced_accuracy"] for f in figures])),
        "at_validation": float(np.mean([f["at_validation"]["balanced_accuracy"] for f in figures])),
    }

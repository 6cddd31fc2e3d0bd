"""One cell: a run's sites under one budget, with the product's own trainer and rules, and without a wire.

One noise multiplier serves all sites, as in a contract: the least with which the costliest keeps to the budget over all rounds.
Sites with more patients spend less.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments import simulation
from experiments.comparison.scenarios import SHIFTED, VALIDATION_FOLD, Phantom, Sites
from experiments.simulation import Setting
from shared.canonical import write_atomically
from shared.errors import InputError
from shared.recipe import Recipe
from site_agent.data.cohort import Cohort
from site_agent.new_adapter import AdapterChoices
from site_agent.privacy import accountant, sampling
from site_agent.privacy.accountant import Epsilon, Release
from site_agent.training import arms, evaluate
from site_agent.training.evaluate import Scored
from site_agent.training.site import SiteTrainer

ARMS = ("global", "dual")
LEAST_SIGMA = 0.1
"""Noise multipliers below this are not looked at by `sigma_for`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What all cells have in common. Nothing of it was tuned under noise."""

    weights: Path
    weights_size: str = ""
    rounds: int = 8
    local_epochs: int = 2
    batch_size: int = 16
    rank: int = 8
    lr_global: float = 5e-3
    lr_local: float = 5e-3
    lr_head: float = 1e-2
    clip: float = 1.0
    delta: float = 1e-5
    scale: float = 1.0
    test_cases: int = 100

    def recipe(self) -> Recipe:
        """Return the recipe without noise and without clipping of patients."""
        return Recipe(
            name="ffa-lora",
            mode="non-interference",
            class_balanced=False,
            augmentation="none",
            rank_local=self.rank,
            alpha_local=2.0 * self.rank,
            lr_global=self.lr_global,
            lr_local=self.lr_local,
            lr_head=self.lr_head,
            local_epochs=self.local_epochs,
            batch_size=self.batch_size,
        )

    def private(self, budget: float, sigma: float) -> Recipe:
        """Return the recipe with differential privacy."""
        return replace(self.recipe(), dp_noise=sigma, dp_clip=self.clip, dp_delta=self.delta, dp_epsilon=budget)

    def settled(self) -> dict[str, Any]:
        """Return everything but where files lie."""
        values = asdict(self)
        del values["weights"]
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where cohorts and frozen activations lie; other experiments' will do."""

    cohorts: Path
    activations: Path


def release(choices: Choices, patients: int) -> Release:
    """Return what a site of so many patients releases in a round, at a noise multiplier of 1."""
    return sampling.release(patients, choices.private(1.0, 1.0))


def sigma_of(choices: Choices, patients: Mapping[str, int], budget: float) -> float:
    """Return the noise multiplier with which every site keeps to the budget over all rounds."""
    ones = {release(choices, count) for count in patients.values()}
    return max(sigma_for(one.q, one.steps * choices.rounds, budget, choices.delta) for one in ones)


def sigma_for(q: float, steps: int, epsilon_most: float, delta: float) -> float:
    """Return the least noise multiplier, rounded up by 0.1 % at most, with which so many steps cost at most this epsilon by PLD."""
    low, high = 0.0, 1.0
    while _epsilon(q, high, steps, delta) > epsilon_most:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        if middle >= LEAST_SIGMA and _epsilon(q, middle, steps, delta) <= epsilon_most:
            high = middle
        else:
            low = middle
    return high


def _epsilon(q: float, sigma: float, steps: int, delta: float) -> float:
    return accountant.epsilon([Release(q=q, sigma=sigma, steps=steps)], delta).pld


def spent(choices: Choices, patients: Mapping[str, int], sigma: float) -> dict[str, Epsilon]:
    """Return what each site spends over all rounds."""
    of = {site: release(choices, count) for site, count in patients.items()}
    return {
        site: accountant.epsilon([replace(one, sigma=sigma, steps=one.steps * choices.rounds)], choices.delta)
        for site, one in of.items()
    }


def run(choices: Choices, place: Place, number: int, budget: float | None) -> dict[str, Any]:
    """Train and evaluate run `number` under a budget, None for no noise; return the cell's facts."""
    began = time.perf_counter()
    phantom = Phantom(folder=place.cohorts, scale=choices.scale, test_cases=choices.test_cases)
    sites = phantom.sites(SHIFTED, number)
    patients = {site: len(cohort.train(VALIDATION_FOLD)) for site, cohort in sites.cohorts.items()}
    sigma = 0.0 if budget is None else sigma_of(choices, patients, budget)
    found = {} if budget is None else spent(choices, patients, sigma)
    prepared = time.perf_counter()
    figures = dict(
        _figures(choices, place, sites, choices.recipe() if budget is None else choices.private(budget, sigma))
    )
    return {
        "run": number,
        "budget": budget,
        "seed": sites.seed,
        "sigma": sigma,
        "patients": patients,
        "spent": {site: asdict(one) for site, one in found.items()},
        "sites": figures,
        "accountant_s": prepared - began,
        "seconds": time.perf_counter() - began,
        "choices": choices.settled(),
    }


def _figures(choices: Choices, place: Place, sites: Sites, recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    setting = Setting(
        cohort=place.cohorts,
        weights=choices.weights,
        weights_size=choices.weights_size,
        seed=sites.seed,
        rounds=choices.rounds,
        recipe=recipe,
        choices=AdapterChoices(rank=choices.rank, alpha=2.0 * choices.rank),
        cache=place.activations,
        cache_dtype="float16",
        validation_fold=VALIDATION_FOLD,
    )
    contract, initial = setting.start(len(sites.cohorts))
    trainers = {site: setting.trainer(site, contract, cohort) for site, cohort in sites.cohorts.items()}
    *_, last = simulation.federate(contract, initial, trainers)
    for site, cohort in sites.cohorts.items():
        trainer = trainers[site]
        sets = cohort.validation(VALIDATION_FOLD), cohort.test()
        dual = [trainer.score(last.version, last.private[site], cases) for cases in sets]
        yield site, {"dual": evaluate.figures(*dual), "global": evaluate.figures(*_global(trainer, cohort))}


def _global(trainer: SiteTrainer, cohort: Cohort) -> list[Scored]:
    """Scores of validation and test cases under the global part of the model that was scored last."""
    arms.switch_local_off(trainer.model)
    return [
        Scored.of(trainer.model, trainer.activations, cases)
        for cases in (cohort.validation(VALIDATION_FOLD), cohort.test())
    ]


def path_of(out: Path, number: int, budget: float | None) -> Path:
    """Return where a cell is kept."""
    return out / "cells" / f"run{number}-epsilon-{'inf' if budget is None else f'{budget:g}'}.json"


def write(out: Path, cell: Mapping[str, Any]) -> None:
    write_atomically(path_of(out, cell["run"], cell["budget"]), json.dumps(cell, indent=1).encode())


def read(out: Path, choices: Choices, number: int, budget: float | None) -> dict[str, Any] | None:
    """Return a finished cell; None if there is none. Raises InputError if it was run with other choices."""
    path = path_of(out, number, budget)
    if not path.exists():
        return None
    cell: dict[str, Any] = json.loads(path.read_bytes())
    for name, value in choices.settled().items():
        if cell["choices"].get(name) != value:
            raise InputError(
                f"{path} was run with {name} {cell['choices'].get(name)}, now it is {value}; choose another --out"
            )
    return cell

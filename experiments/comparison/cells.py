"""Running one cell: one contender on one run's sites, with the product's own trainer and rules, and without a wire."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments import simulation
from experiments.comparison import blocks, geometry
from experiments.comparison.contenders import Contender, Options
from experiments.comparison.records import Cell, Prediction, RoundRecord
from experiments.comparison.scenarios import VALIDATION_FOLD, Sites
from experiments.simulation import Setting, SimulatedRound
from shared import forms
from shared.adapter import Adapter
from site_agent.config import Stored
from site_agent.data.cases import Case
from site_agent.data.cohort import Cohort
from site_agent.new_adapter import AdapterChoices
from site_agent.training import metrics, schedule
from site_agent.training.evaluate import Scored
from site_agent.training.site import SiteTrainer

POOLED = "pooled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all cells of a comparison have in common."""

    weights: Path
    weights_size: str = ""
    one_frame: Path
    """The same kind of network, pre-trained on single frames."""
    depth: int
    """Transformer blocks of the network."""
    width: int
    """Its embedding dimension: no residual of an attention layer has a higher rank."""
    cache: Path
    """Frozen activations; cells on the same cohort share them."""
    rounds: int = 8
    recipe: Options = field(default_factory=dict)
    adapter: Options = field(default_factory=dict)
    cache_dtype: Stored = "float16"
    cache_mb: int = 16_384


@dataclass(frozen=True)
class Federation:
    """One that has ended: its trainers and private tensors by site, all its rounds, and what they started from."""

    trainers: Mapping[str, SiteTrainer]
    initial: Adapter
    rounds: tuple[SimulatedRound, ...]

    @property
    def last(self) -> SimulatedRound:
        return self.rounds[-1]


def run(bench: Bench, contender: Contender, sites: Sites, scenario: str, number: int) -> tuple[Cell, list[Prediction]]:
    """Train and evaluate; return the record and the predictions of all held-out cases."""
    began = time.perf_counter()
    federations = list(_federations(bench, contender, sites))
    predictions = [
        prediction
        for one in federations
        for site, cohort in sites.cohorts.items()
        if site in one.trainers or POOLED in one.trainers
        for prediction in _predict(one, site, cohort, number, sites.fold)
    ]
    cell = Cell(
        scenario=scenario,
        method=contender.key,
        run=number,
        seconds=time.perf_counter() - began,
        steps=sum(steps(one) for one in federations),
        bytes_up=sum(bytes_up(one) for one in federations) if contender.together == "federated" else 0,
        bytes_down=sum(bytes_down(one) for one in federations) if contender.together == "federated" else 0,
        digest=federations[0].last.version.digest if contender.together == "federated" else "",
        rounds=_records(federations),
        blocks=federations[0].initial.manifest.metadata.blocks,
    )
    return cell, predictions


def _federations(bench: Bench, contender: Contender, sites: Sites) -> Iterator[Federation]:
    """Yield what the sites train together: one federation, one of all their cases, or one for each site."""
    if contender.together == "alone":
        for site, cohort in sites.cohorts.items():
            yield federate(bench, contender, {site: cohort}, sites.seed)
    elif contender.together == "pooled":
        yield federate(bench, contender, {POOLED: _pooled(sites.cohorts)}, sites.seed)
    else:
        yield federate(bench, contender, sites.cohorts, sites.seed)


def _pooled(cohorts: Mapping[str, Cohort]) -> Cohort:
    first = next(iter(cohorts.values()))
    return replace(first, vendor=POOLED, cases=tuple(case for one in cohorts.values() for case in one.cases))


def setting(bench: Bench, contender: Contender, seed: int, sites: int) -> Setting:
    """Return a contender's simulation with so many sites; its cohorts are given to the trainers directly."""
    rank = int(contender.adapter.get("rank", AdapterChoices().rank))
    most_residual = min(bench.width, max(sites - 1, 1) * rank * bench.rounds)
    return Setting(
        cohort=bench.weights,
        weights=bench.one_frame if contender.one_frame else bench.weights,
        weights_size=bench.weights_size,
        seed=seed,
        rounds=bench.rounds,
        recipe=contender.made_recipe(bench.recipe),
        choices=contender.choices(bench.adapter, bench.depth, most_residual),
        cache=bench.cache,
        cache_dtype=bench.cache_dtype,
        cache_mb=bench.cache_mb,
        validation_fold=VALIDATION_FOLD,
    )


def federate(bench: Bench, contender: Contender, cohorts: Mapping[str, Cohort], seed: int) -> Federation:
    """Train all rounds."""
    of = setting(bench, contender, seed, len(cohorts))
    if contender.picked_blocks:
        of = replace(of, choices=replace(of.choices, blocks=blocks.picked(of, cohorts, bench.depth)))
    contract, initial = of.start(len(cohorts))
    trainers = {site: of.trainer(site, contract, cohort) for site, cohort in cohorts.items()}
    return Federation(trainers, initial, tuple(simulation.federate(contract, initial, trainers)))


def _predict(one: Federation, site: str, cohort: Cohort, run: int, fold: int) -> Iterator[Prediction]:
    """Yield the predictions of a site's held-out cases, with its threshold from its own validation cases."""
    member = site if site in one.trainers else POOLED
    trainer, private = one.trainers[member], one.last.private[member]

    def scored(cases: tuple[Case, ...]) -> Scored:
        return trainer.score(one.last.version, private, cases)

    validation, test = scored(cohort.validation(VALIDATION_FOLD)), cohort.test()
    threshold = metrics.shrunk_threshold(validation.scores, validation.labels)
    for case, margin in zip(test, scored(test).scores, strict=True):
        yield Prediction(
            run=run,
            fold=fold,
            site=site,
            case=case.key,
            label=case.label,
            margin=float(margin),
            threshold=float(threshold),
        )


def steps(one: Federation) -> int:
    return len(one.rounds) * sum(
        schedule.steps_of(len(trainer.train_cases), trainer.recipe) for trainer in one.trainers.values()
    )


def bytes_up(one: Federation) -> int:
    return sum(len(update.payload) for made in one.rounds for update in made.updates.values())


def bytes_down(one: Federation) -> int:
    """Every site fetches every version packed against the one that it has; the first it draws itself, if its seed is known."""
    versions = [one.initial, *(made.version for made in one.rounds)]
    packed = [len(forms.pack(new.payload, old.payload)) for old, new in pairwise(versions)]
    first = len(one.initial.payload) if one.initial.manifest.metadata.seed is None else 0
    return len(one.trainers) * (first + sum(packed))


def _records(federations: list[Federation]) -> tuple[RoundRecord, ...]:
    """Return what the rounds were like; of several federations of one site each, together."""
    return tuple(_record(federations, index) for index in range(len(federations[0].rounds)))


def _record(federations: list[Federation], index: int) -> RoundRecord:
    alone = len(federations) > 1 or len(federations[0].trainers) == 1
    figures = {} if alone else federations[0].rounds[index].figures
    relations = {site: found for one in federations for site, found in _relations(one, index).items()}
    return RoundRecord(
        number=index + 1,
        train_loss=float(np.mean([one.rounds[index].train_loss for one in federations])),
        aggregation_error=figures.get("aggregation_error"),
        factor_error=figures.get("factor_error"),
        norm_ratio={site: ratio for site, (ratio, _) in relations.items()},
        cosine={site: cosine for site, (_, cosine) in relations.items()},
    )


def _relations(one: Federation, index: int) -> dict[str, tuple[float, float]]:
    """Return || local || / || global || and their cosine by site, where there are both."""
    made, found = one.rounds[index], dict[str, tuple[float, float]]()
    for site, trainer in one.trainers.items():
        recipe, adapter = trainer.recipe, trainer.metadata
        if recipe.rank_local and adapter.rank:
            scales = adapter.alpha / adapter.rank, recipe.alpha_local / recipe.rank_local
            if (pair := geometry.ratio_and_cosine(made.version.tensors, made.private[site], *scales)) is not None:
                found[site] = pair
    return found

"""A vendor that no site of the federation has: leave one out, serve it the global part alone, then adapt to a few of its cases.

Every vendor is left out in turn. With k = 0 its cases are scored by the last version and no local part. With k shots a new local
part is trained beside the global one, which stays as it is, on k of the vendor's training cases, half of each class. Thresholds
are probability 0.5: there are no validation cases to choose one by.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from experiments.comparison import cells
from experiments.comparison.cells import Bench, Federation
from experiments.comparison.contenders import RANK, SCALE, Contender
from experiments.comparison.records import Cell, Prediction
from experiments.comparison.scenarios import VALIDATION_FOLD, Sites
from experiments.comparison.shots import EPOCHS, SHOTS, UNSEEN, key
from shared.contract import Contract
from shared.errors import InputError
from shared.recipe import Recipe
from site_agent.data.cases import Case
from site_agent.data.cohort import Cohort
from site_agent.training.local import Hooks


def run(bench: Bench, contender: Contender, sites: Sites, number: int) -> Iterator[tuple[Cell, list[Prediction]]]:
    """Yield a record and predictions for each number of shots; all come from the same federations."""
    began = time.perf_counter()
    scored: dict[int, list[Prediction]] = {shots: [] for shots in SHOTS}
    federations = []
    for vendor, cohort in sites.cohorts.items():
        others = {site: one for site, one in sites.cohorts.items() if site != vendor}
        made = cells.federate(bench, contender, others, sites.seed)
        federations.append(made)
        for shots in SHOTS:
            scored[shots] += _served(bench, contender, made, vendor, cohort, sites, shots, number)
    for shots in SHOTS:
        cell = Cell(
            scenario=UNSEEN,
            method=key(contender.key, shots),
            run=number,
            seconds=time.perf_counter() - began,
            steps=sum(cells.steps(one) for one in federations),
            bytes_up=sum(cells.bytes_up(one) for one in federations),
            bytes_down=sum(cells.bytes_down(one) for one in federations),
            digest="",
            rounds=(),
        )
        yield cell, scored[shots]


def _served(
    bench: Bench,
    contender: Contender,
    made: Federation,
    vendor: str,
    cohort: Cohort,
    sites: Sites,
    shots: int,
    number: int,
) -> Iterator[Prediction]:
    """Yield the left-out vendor's predictions."""
    version = made.last.version
    recipe = Recipe(
        name="adaptation",
        rank_local=RANK,
        alpha_local=SCALE * RANK,
        augmentation="none",
        local_epochs=EPOCHS,
        shrinkage_patients=contender.recipe.get("shrinkage_patients", 0.0),
    )
    contract = Contract(
        federation="unseen",
        adapter_digest=made.initial.digest,
        manifest=made.initial.manifest,
        recipe=recipe,
        policy=next(iter(made.trainers.values())).contract.policy,
    )
    few = replace(cohort, cases=(*_few(cohort, shots or max(SHOTS), sites.seed), *cohort.test()))
    trainer = cells.setting(bench, contender, sites.seed, 1).trainer(vendor, contract, few)
    private: Mapping[str, np.ndarray] = trainer.initial_local()
    if shots:
        private = trainer.train(1, version, private, Hooks()).local_tensors
    test = cohort.test()
    for case, margin in zip(test, trainer.score(version, private, test).scores, strict=True):
        yield Prediction(
            run=number,
            fold=sites.fold,
            site=vendor,
            case=case.key,
            label=case.label,
            margin=float(margin),
            threshold=0.0,
        )


def _few(cohort: Cohort, count: int, seed: int) -> list[Case]:
    """Return so many training cases, alternating classes, drawn from the seed. Raises InputError if there are too few."""
    training = cohort.train(without_fold=VALIDATION_FOLD)
    rng = np.random.default_rng(seed)  # more shots are the fewer ones and others
    by_label = [[training[i] for i in rng.permutation(len(training)) if training[i].label == label] for label in (0, 1)]
    paired = [case for pair in zip(*by_label, strict=False) for case in pair]
    if len(paired) < count:
        raise InputError(
            f"vendor {cohort.vendor} has {len(paired) // 2} training case(s) of a class, {count // 2} are wanted"
        )
    return paired[:count]

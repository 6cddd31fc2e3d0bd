"""Picks the blocks to adapt by their scores at the sites (site_agent/training/block_scores.py), averaged by patients."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from experiments.simulation import Setting
from shared.recipe import Recipe
from site_agent.data.cohort import Cohort
from site_agent.training import block_scores

COUNT = 2
PROBE_ROUNDS = 2


def picked(setting: Setting, cohorts: Mapping[str, Cohort], depth: int) -> tuple[int, ...]:
    """Return the COUNT blocks with the highest mean score, ascending."""
    every = tuple(range(depth))
    probing = replace(
        setting,
        recipe=Recipe(name="head-only", rank_local=0, augmentation="none"),
        choices=replace(setting.choices, blocks=every, rank=1, residual_rank=0, dense=()),
    )
    contract, _ = probing.start(len(cohorts))
    found = {}
    for site, cohort in cohorts.items():
        trainer = probing.trainer(site, contract, cohort)
        scored = block_scores.scores(
            trainer.model, trainer.activations, trainer.train_cases, trainer.recipe, PROBE_ROUNDS, trainer.seed
        )
        found[site] = trainer.training_patients, np.array(scored)
    total = sum(patients for patients, _ in found.values())
    mean = sum((patients / total * values for patients, values in found.values()), np.zeros(depth))
    return tuple(sorted(int(block) for block in np.argsort(-mean)[:COUNT]))

"""A site's state folder as an agent leaves it, with scores that can be checked by hand; no training, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shared.adapter import Adapter
from shared.canonical import canonical_json, sha256_hex
from shared.contract import ARMS, Contract, RoundPolicy
from shared.recipe import Recipe
from site_agent import round_files, state
from site_agent.egress import Update, UpdateFacts
from site_agent.local_rounds import NO_START
from site_agent.report import CASES, REPORT
from site_agent.training.case_scores import CaseScores, CaseSet
from tests.support import adapters

VALIDATION = 12


def scores(labels: Sequence[int], margins: Mapping[str, Sequence[float]], validation: int = VALIDATION) -> CaseScores:
    """Return held-out cases with these labels and margins (of an arm that is not named: 1 for disease, -1 for normal), and
    validation cases that every arm tells apart, so that its own threshold is 0."""
    of_validation = [1, 0] * (validation // 2)
    sets: list[CaseSet] = ["validation"] * len(of_validation) + ["test"] * len(labels)
    right = np.array([*of_validation, *labels]) * 2.0 - 1
    table = {arm: right.copy() for arm in ARMS}
    for arm, values in margins.items():
        table[arm][len(of_validation) :] = values
    keys = [f"mnms/{name[0].upper()}{at:03d}" for at, name in enumerate(sets)]
    return CaseScores(keys=tuple(keys), sets=tuple(sets), labels=np.array([*of_validation, *labels]), margins=table)


def contract(recipe: Recipe = Recipe(), rounds: int = 4) -> Contract:
    """Return what the site agreed to."""
    adapter, _ = adapters.fitting(recipe.name)
    return Contract(
        federation="hearts",
        adapter_digest=adapter.digest,
        manifest=adapter.manifest,
        recipe=recipe,
        policy=RoundPolicy(rounds=rounds),
    )


def write(
    folder: Path, found: CaseScores | None, agreed: Contract | None = None, rounds: int = 2, **changes: Any
) -> Adapter:
    """Write a state folder with `rounds` finished rounds; with a report if there are scores. Returns its newest version.

    changes: fields of report.json that are otherwise.
    """
    agreed = agreed or contract()
    opened = state.State(folder)
    opened.bind(agreed)
    version = replace(adapters.adapter(), version=rounds, parent_digest="ab" * 32)
    opened.store_global(version)
    for number in range(1, rounds + 1):
        opened.append_history({"version": number, "round": number, "validation": figures(0.6 + 0.1 * number)})
        _write_round(folder, agreed, number)
    if found is not None:
        report = {
            "site": "siemens",
            "federation": agreed.federation,
            "contract": agreed.sha256,
            "rounds": agreed.policy.rounds,
            "cases": 30,
            "healthy_share": 0.5,
            "training_patients": 24,
            "validation_patients": len(found.of("validation")),
            "test_patients": len(found.of("test")),
            "adapter": {"version": version.version, "digest": version.digest, "parameters": 92, "bytes": 368},
            "update": {"parameters": 92, "bytes": 368},
            "arms": {arm: {} for arm in ARMS},
            "cases_sha256": sha256_hex(found.to_csv()),
            "history": opened.history(),
            "phases_s": {},
            **changes,
        }
        (folder / CASES).write_bytes(found.to_csv())
        (folder / REPORT).write_bytes(canonical_json(report))
    opened.close()
    return version


def figures(auc: float) -> dict[str, Any]:
    point = {"balanced_accuracy": auc - 0.05, "sensitivity": auc - 0.05, "specificity": auc - 0.05}
    return {"n": VALIDATION, "auc": auc, "at_half": point, "at_validation": {**point, "threshold": 0.5}}


def _write_round(folder: Path, agreed: Contract, number: int) -> None:
    layout = agreed.recipe.upload_layout(agreed.manifest, number, 3)
    told = {} if agreed.recipe.dp_noise else {"train_loss": 1.0 / number}
    facts = UpdateFacts(round=number, base_version=number - 1, training_patients=24, metrics=told)
    update = Update(facts, layout, adapters.delta(layout, number))
    round_files.write(folder / round_files.ROUNDS, update, {}, NO_START, {})
    round_files.mark(round_files.folder_of(folder / round_files.ROUNDS, number), "accepted")

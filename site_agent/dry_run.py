"""What would leave this site in a round, without a network: train one, seal it, and write down every field and number."""

import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from shared import certificates, codecs
from shared.adapter import Adapter
from shared.canonical import canonical_json, write_atomically
from shared.contract import Contract
from shared.errors import InputError
from shared.protocol import VERSION
from site_agent import egress, starting
from site_agent.client import Joined
from site_agent.config import SiteConfig
from site_agent.egress import Update, UpdateFacts
from site_agent.privacy import accountant, budget, debits, sampling
from site_agent.privacy.stream import Stream
from site_agent.training import local
from site_agent.training.site import SiteTrainer

WORDS, PAYLOAD, NUMBERS = "leaves.json", "delta.bin", "numbers.safetensors"


@dataclass(frozen=True, slots=True)
class WouldLeave:
    """Every field that one round's calls would carry. `update`: the payload as it would be sent."""

    join: dict[str, Any]
    upload: dict[str, Any]
    evaluation: dict[str, Any]
    privacy: dict[str, Any]
    """What a round releases, and what these numbers are not; nothing without differential privacy."""
    update: Update
    numbers: dict[str, np.ndarray]

    @property
    def fields(self) -> dict[str, Any]:
        """All but the numbers, by call."""
        said = {"Join": self.join, "BeginUpload, UploadDelta": self.upload}
        if self.evaluation:
            said["ReportEvaluation"] = self.evaluation
        return said | ({"differential privacy": self.privacy} if self.privacy else {})

    def write(self, folder: Path) -> None:
        """Write the fields, the payload's bytes, and the numbers they stand for. Raises OSError."""
        write_atomically(folder / WORDS, json.dumps(self.fields, indent=1).encode(), 0o600)
        write_atomically(folder / PAYLOAD, self.update.payload, 0o600)
        write_atomically(folder / NUMBERS, save(self.numbers), 0o600)


def run(config: SiteConfig, contract: Contract, adapter: Path | None, hooks: local.Hooks = local.Hooks()) -> WouldLeave:
    """Train round 1 as the contract says, with the site's own cases, and return what would leave: the very bytes, if the agent that
    joins has the same name and settings.

    adapter: the coordinator's file of version 0; without one it is drawn from the seed in the contract. Nothing is written and
    nothing is sent. Under differential privacy the noise is drawn from a key that is thrown away, and nothing is debited: the bytes
    are not the agent's, and as private as what they are made from. Raises InputError for data, weights or an adapter that the
    contract cannot be kept with, and without an accountant; ConsentWithheld for a contract that the agent would refuse.
    """
    config.agreed.check(contract)
    budget.check_ready(contract)
    site = certificates.holder_in(config.tls.certificate).site if config.tls else config.plain_site
    first = starting.first_look(config)
    budget.check_offer(contract, first.training_patients)
    trainer = starting.trainer(config, Joined(site, contract, first.training_patients, 0), first.cohort)
    received = _version_0(starting.version_0(trainer, contract), contract, adapter)
    local_before = trainer.initial_local()
    stream = Stream.fresh() if trainer.recipe.dp_noise else None
    trained = trainer.train(1, received, local_before, hooks, stream=stream)
    facts = UpdateFacts(
        round=1,
        base_version=0,
        training_patients=trainer.training_patients,
        metrics=config.agreed.may_leave(trained.metrics),
    )
    update, _ = egress.seal(
        received,
        trained.global_tensors,
        trainer.recipe,
        facts,
        contract.policy.invited,
        seed=canonical_json([trainer.seed, 1]),
    )
    judged = trainer.validate(received, trained.local_tensors)
    return WouldLeave(
        join={
            "federation": contract.federation,
            "protocol_version": VERSION,
            "agent_id": "a random number that the state folder holds",
            "software_version": importlib.metadata.version("med-duallora"),
            "base_model_sha256": first.base_model_sha256,
            "training_patients": first.training_patients,
            "codecs": list(codecs.CODECS),
            "recipes": "the names of the recipes that are installed",
        },
        upload={
            "round": 1,
            "base_version": 0,
            "digest": update.digest,
            "bytes": len(update.payload),
            "codec": update.facts.codec,
            "training_patients": update.facts.training_patients,
            "metrics": dict(update.facts.metrics),
            "tensors": {spec.name: {"shape": list(spec.shape), "type": spec.dtype} for spec in update.layout.tensors},
        },
        evaluation={}
        if trainer.recipe.dp_noise
        else {
            "round": 1,
            "version": 1,
            "cases": judged.own.get("n", 0),
            "metrics": "of version 1, which other sites have a part in: "
            + ", ".join(config.agreed.may_leave(judged.reportable)),
        },
        privacy=_privacy(trainer, config.state) if trainer.recipe.dp_noise else {},
        update=update,
        numbers=update.layout.split(update.payload),
    )


def _privacy(trainer: SiteTrainer, state: Path) -> dict[str, Any]:
    recipe, rounds = trainer.recipe, trainer.contract.policy.rounds
    release = sampling.release(trainer.training_patients, recipe)
    cost = accountant.epsilon([release], recipe.dp_delta)
    spent = [debits.release_of(one.facts) for one in debits.read(state, missing_ok=True).entries]
    afforded = accountant.afforded(spent, release, recipe.dp_delta, recipe.dp_epsilon, rounds)
    return {
        "noise": "of a key that was thrown away: the agent draws another one, so its bytes differ",
        "debit": "none was written: these numbers are in no budget, so they must not leave this site",
        "figures": "none leave, and no evaluation is reported",
        "release": f"{release.steps} steps, every patient in each with probability {release.q:.4g}, noise {release.sigma:g}",
        "a round": f"epsilon {cost.pld:.4g} at delta {recipe.dp_delta:g} (by RDP {cost.rdp:.4g})",
        "budget": f"epsilon {recipe.dp_epsilon:g} affords {afforded} of {rounds} rounds"
        + (f" beside {len(spent)} debits of this state folder" if spent else ""),
    }


def _version_0(drawn: Adapter | None, contract: Contract, file: Path | None) -> Adapter:
    if file is None:
        if drawn is None:
            raise InputError(
                "version 0 cannot be drawn from this contract; give the coordinator's file: --adapter v0.safetensors"
            )
        return drawn
    given = Adapter.read(file)
    if given.digest != contract.adapter_digest:
        raise InputError(
            f"{file} has digest {given.digest[:12]}, the contract names {contract.adapter_digest[:12]}; ask the coordinator"
        )
    return given

"""What an agent does before its first round: look at what lies here, join, get model and data ready. And before each round:
read what that begins with."""

import asyncio
import importlib.metadata
from dataclasses import dataclass

import structlog
import torch

from shared.adapter import Adapter
from shared.contract import Contract
from shared.errors import IdentityInUse, InputError
from site_agent import new_adapter
from site_agent.client import FederationClient, Joined
from site_agent.config import SiteConfig
from site_agent.damage import Damaged
from site_agent.data.cases import Case
from site_agent.data.cohort import CLASS_NAMES, Cohort
from site_agent.lineage import Start
from site_agent.local_rounds import LocalRounds
from site_agent.models import weights
from site_agent.round_files import Tensors
from site_agent.state import State
from site_agent.training.orders import LeadingTrainer
from site_agent.training.parallel import ALONE, Group
from site_agent.training.site import SiteTrainer, load_base
from site_agent.view import View

log = structlog.get_logger()
TAKEOVER_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What Join must say: which base model lies here and how many patients there are to train on."""

    base_model_sha256: str
    cohort: Cohort
    training_patients: int


def first_look(config: SiteConfig) -> FirstLook:
    """Read cohort and base model. Raises InputError for what cannot be trained on."""
    torch.set_num_threads(config.threads)
    cohort = Cohort.load(config.cohort)
    training = training_cases(config, cohort)
    loaded = load_base(config.weights, config.weights_size, "stacked", warn=False)
    return FirstLook(weights.base_model_sha256(loaded.model), cohort, len(training))


def training_cases(config: SiteConfig, cohort: Cohort) -> tuple[Case, ...]:
    """Return the cases outside the validation fold. Raises InputError unless both classes are among them."""
    training = cohort.train(without_fold=config.validation_fold)
    for label, name in enumerate(CLASS_NAMES):
        if all(case.label != label for case in training):
            raise InputError(
                f"empty class: no {name} case (label {label}) is left in {config.cohort} outside validation fold "
                f"{config.validation_fold}; set another validation_fold, or prepare more cases"
            )
    return training


async def join(client: FederationClient, state: State, config: SiteConfig, first: FirstLook, view: View) -> Joined:
    """Join, and say what was agreed to. Raises what the aggregator refused with.

    If this agent's id is new, the aggregator may still keep the site's certificate for the one before: that is waited for. If
    it keeps it for longer, a second agent runs, and IdentityInUse is raised.
    """
    while True:
        try:
            return await client.join(
                federation=config.federation,
                base_model_sha256=first.base_model_sha256,
                training_patients=first.training_patients,
                software_version=importlib.metadata.version("med-duallora"),
            )
        except IdentityInUse as error:
            left = state.takeover_s
            if left <= 0:
                raise
            pause = min(TAKEOVER_PAUSE_S, left)
            log.warning("takeover_awaited", error=str(error), retry_in_s=pause, gives_up_in_s=round(left))
            view.warned(
                f"{error}. This agent is new here and waits for at most {left:.0f} s more, in case the other one has ended"
            )
            await asyncio.sleep(pause)


def trainer(config: SiteConfig, joined: Joined, cohort: Cohort, group: Group = ALONE) -> SiteTrainer:
    """Return model and data, ready for the federation's adapter; in a group, those that the other processes follow."""
    if group.size > 1:
        return LeadingTrainer.lead(config, joined.site, joined.contract, cohort, group)
    return SiteTrainer.load(config, joined.site, joined.contract, cohort)


def version_0(trainer: SiteTrainer, contract: Contract) -> Adapter | None:
    """Return version 0, drawn here; None if that is not the contract's: its file names no seed, or what it was made by (another
    release of torch, somebody's own program) drew other numbers."""
    metadata = contract.manifest.metadata
    if metadata.seed is None:
        return None
    try:
        drawn = new_adapter.draw(trainer.network, metadata)
    except InputError:
        return None
    return drawn if drawn.digest == contract.adapter_digest else None


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a round begins with, and the local adapter and the residual that are meant by it."""

    start: Start
    local: Tensors
    residual: Tensors


def beginning(rounds: LocalRounds, trainer: SiteTrainer, number: int, received: Adapter) -> Beginning:
    """Return what round `number` begins with when it is given this version.

    A file that goes bad after it was found sound is set aside when all is looked through again.
    """
    while True:
        start = rounds.start(number, received)
        try:
            local = rounds.local(start.local) or trainer.initial_local()
            return Beginning(start, local, rounds.residual(start.residual))
        except Damaged as damage:
            log.warning("round_begun_again", round=number, path=damage.path.name, reason=damage.reason)

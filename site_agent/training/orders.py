"""What rank 0 has the other processes of its site do: the same work as its own, at the same time.

Rank 0 is the agent, with the network, the state folder, the view and the log. The others have a trainer each, and wait for
its orders, which may take days to come.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self, TypeVar, cast

import numpy as np
import torch

from shared.adapter import Adapter
from shared.contract import Contract
from shared.errors import InputError
from site_agent.config import SiteConfig
from site_agent.data.cohort import Cohort
from site_agent.privacy.stream import Stream
from site_agent.training import local
from site_agent.training.arms import Compared
from site_agent.training.checkpoint import Checkpoints
from site_agent.training.evaluate import Judged
from site_agent.training.parallel import Ended, Failed, Group
from site_agent.training.site import SiteTrainer, Tensors, Trained

TrainerT = TypeVar("TrainerT", bound=SiteTrainer)


@dataclass(frozen=True, slots=True)
class Train:
    round_number: int
    received: Adapter
    local_before: Tensors

    def carry_out(self, trainer: SiteTrainer) -> None:
        trainer.train(self.round_number, self.received, self.local_before, local.Hooks())


@dataclass(frozen=True, slots=True)
class Validate:
    adapter: Adapter
    local_now: Tensors

    def carry_out(self, trainer: SiteTrainer) -> None:
        trainer.validate(self.adapter, self.local_now)


@dataclass(frozen=True, slots=True)
class Compare:
    initial: Adapter
    final: Adapter
    local_now: Tensors

    def carry_out(self, trainer: SiteTrainer) -> None:
        trainer.compare_arms(self.initial, self.final, self.local_now, local.Hooks())


@dataclass(frozen=True, slots=True)
class Fill:
    round_number: int

    def carry_out(self, trainer: SiteTrainer) -> None:
        trainer.fill_cache(self.round_number)


Order = Train | Validate | Compare | Fill


@dataclass(frozen=True, slots=True)
class Begin:
    """What comes before the first order: which site, under which contract."""

    site: str
    contract: Contract


class LeadingTrainer(SiteTrainer):
    """Rank 0's: what it is asked to compute it orders from the others, and does with them. One thing at a time."""

    @classmethod
    def lead(cls, config: SiteConfig, site: str, contract: Contract, cohort: Cohort, group: Group) -> Self:
        """Return it once every process has a trainer; errors as SiteTrainer's, of whichever process."""
        group.told(Begin(site, contract))
        return _ready(lambda: cls.load(config, site, contract, cohort, group), group)

    def train(
        self,
        round_number: int,
        received: Adapter,
        local_before: Mapping[str, np.ndarray],
        hooks: local.Hooks,
        checkpoints: Checkpoints | None = None,
        stream: Stream | None = None,
    ) -> Trained:
        self._group.told(Train(round_number, received, dict(local_before)))
        return super().train(round_number, received, local_before, hooks, checkpoints, stream)

    def validate(self, adapter: Adapter, local_now: Mapping[str, np.ndarray]) -> Judged:
        self._group.told(Validate(adapter, dict(local_now)))
        return super().validate(adapter, local_now)

    def compare_arms(
        self, initial: Adapter, final: Adapter, local_now: Mapping[str, np.ndarray], hooks: local.Hooks
    ) -> Compared:
        self._group.told(Compare(initial, final, dict(local_now)))
        return super().compare_arms(initial, final, local_now, hooks)

    def fill_cache(
        self,
        round_number: int,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> int:
        self._group.told(Fill(round_number))
        return super().fill_cache(round_number, should_stop, on_progress)


def follow(config: SiteConfig, group: Group) -> None:
    """Do what rank 0 orders, until it has no more; for a process of another rank.

    An error in a share of work is rank 0's to deal with. Raises ProcessLost when that ended without a word, and anything that
    goes wrong in between: then rank 0 loses this process.
    """
    torch.set_num_threads(config.threads)
    with suppress(Ended):
        begin = cast(Begin, group.told(None))
        with suppress(Failed):  # then rank 0 has no order after it
            trainer = _ready(
                lambda: SiteTrainer.load(config, begin.site, begin.contract, Cohort.load(config.cohort), group), group
            )
        while True:
            order = cast(Order, group.told(None))
            with suppress(Failed, local.Stopped):
                order.carry_out(trainer)


def _ready(load: Callable[[], TrainerT], group: Group) -> TrainerT:
    """Return this process's trainer once all have theirs, on the same cases."""
    trainers: list[TrainerT] = []

    def fingerprint() -> str:
        trainers.append(load())
        return trainers[0].fingerprint

    found = group.gathered(fingerprint)
    group.gathered(lambda: _check_same(found))
    return trainers[0]


def _check_same(fingerprints: Sequence[str]) -> None:
    if len(set(fingerprints)) > 1:
        raise InputError(
            "the processes of this site do not see the same cases and settings; give all of them one site.toml, and on another "
            "machine an equal copy of the cohort"
        )

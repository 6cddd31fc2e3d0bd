"""Same seed, same versions, quorum = all: the same final adapter to the bit, whatever order the sites report in."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shared.adapter import Adapter
from site_agent.agent import Agent
from site_agent.client import Joined, Task
from site_agent.config import SiteConfig
from site_agent.training.site import SiteTrainer
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import SITES, Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration


class Queue:
    """Makes the updates of every round arrive in one order."""

    def __init__(self, order: tuple[str, ...]) -> None:
        self._before = {later: earlier for earlier, later in pairwise(order)}
        self._arrived: dict[tuple[str, int], asyncio.Event] = defaultdict(asyncio.Event)

    async def turn(self, site: str, round_number: int) -> None:
        """Return once the site before this one has its receipt."""
        if site in self._before:
            await self._arrived[self._before[site], round_number].wait()

    def arrived(self, site: str, round_number: int) -> None:
        self._arrived[site, round_number].set()


class Queued(Agent):
    """An agent that holds its update back until it is its turn."""

    def __init__(self, config: SiteConfig, queue: Queue) -> None:
        super().__init__(config, Silent())
        self._site, self._queue = config.plain_site, queue

    async def _train(
        self, joined: Joined, trainer: SiteTrainer, task: Task, received: Adapter, local_before: dict[str, np.ndarray]
    ) -> bool:
        trained = await super()._train(joined, trainer, task, received, local_before)
        await self._queue.turn(self._site, task.round)
        return trained

    async def _do_round(self, joined: Joined, trainer: SiteTrainer, task: Task) -> None:
        await super()._do_round(joined, trainer, task)
        self._queue.arrived(self._site, task.round)


async def final_adapter(
    materials: Materials, folder: Path, order: tuple[str, ...], seeds: Mapping[str, int] | None = None
) -> Adapter:
    """Run two rounds in which the sites' updates arrive in `order`; return the last version."""
    store = federation.create_store(folder, materials.adapter)
    queue = Queue(order)
    async with serve(store) as running:
        configs = [
            federation.site_config(materials, folder, running.address, site, seed=(seeds or {}).get(site, 0))
            for site in SITES
        ]
        await federation.finish(*(Queued(config, queue) for config in configs))
    assert [federation.order_of_arrival(store, number) for number in (1, 2)] == [list(order)] * 2
    phase, version, adapter = federation.outcome(store)
    assert (phase, version) == ("finished", 2)
    return adapter


async def test_the_order_of_arrival_does_not_change_a_bit_of_the_result(materials, tmp_path):
    forwards = await final_adapter(materials, tmp_path / "forwards", SITES)
    backwards = await final_adapter(materials, tmp_path / "backwards", SITES[::-1])
    assert forwards.digest == backwards.digest
    first, second = (federation.manifests(str(tmp_path / name / "fed.db")) for name in ("forwards", "backwards"))
    assert first == second
    assert forwards.payload != Adapter.read(materials.adapter).payload


async def test_the_same_seed_gives_the_same_digest_again_and_another_seed_another_one(materials, tmp_path):
    once = await final_adapter(materials, tmp_path / "once", SITES)
    again = await final_adapter(materials, tmp_path / "again", SITES)
    other = await final_adapter(materials, tmp_path / "other", SITES, seeds={"ge": 1})
    assert once.digest == again.digest
    assert once.digest != other.digest

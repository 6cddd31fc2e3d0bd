"""A site without training: the agent's own client and its door out, with random numbers in place of what it would have learnt.

Run as a program it is one site of a federation: `SitePlan` as JSON is its only argument. It prints one JSON line when it has
joined, one for each round it took part in, one whenever it was told to wait, and one at the end. With `held` it waits before
each round for a line on its standard input, and ends when that is closed.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared import logs
from shared.adapter import Adapter
from shared.layout import Layout
from shared.protocol import MAX_WAIT_S
from shared.recipe import Recipe
from shared.tls import TlsFiles
from site_agent import egress
from site_agent.client import FederationClient, Joined, Task
from site_agent.egress import UpdateFacts
from site_agent.ledger import Ledger

PATIENTS = 10
FIGURES = {
    "auc": 0.9123456789,
    "balanced_accuracy": 0.8123456789,
    "sensitivity": 0.7123456789,
    "specificity": 0.9023456789,
}
LARGEST = 1e-3
"""Standard deviation of what the first rank component changes by in a round; that of the last is an eighth of it."""
SPREAD = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """What one site does, and where. `certificates` is the folder of its TLS files, empty for plain text."""

    address: str
    name: str
    base_model: str
    log: str
    seed: int = 0
    certificates: str = ""
    fresh: bool = False
    """Draw new numbers in every round; else those drawn before the first, which takes no time in a round."""
    held: bool = False
    reports: bool = False
    """Report figures of the version before, and a training loss, as an agent does."""
    wait_s: float = MAX_WAIT_S
    """How long the aggregator is asked to hold a question."""

    @property
    def tls(self) -> TlsFiles | None:
        """The site's TLS files."""
        folder = Path(self.certificates)
        return (
            TlsFiles(folder / "ca.pem", folder / f"{self.name}.pem", folder / f"{self.name}.key")
            if folder.name
            else None
        )


def random_changes(layout: Layout, *seed: int) -> dict[str, np.ndarray]:
    """Return what these numbers stand for: Gaussian changes whose rank components have scales from LARGEST down to an eighth.

    Rows of A and columns of B are components. The first steps of Adam would give every number nearly the same size, which is
    easier for a quantiser.
    """
    rng, changes = np.random.default_rng(seed), dict[str, np.ndarray]()
    for spec in layout.tensors:
        values = rng.standard_normal(spec.shape, np.float32) * np.float32(LARGEST)
        if ".lora_A" in spec.name:
            values *= scales(spec.shape[0])[:, None]
        elif ".lora_B" in spec.name:
            values *= scales(spec.shape[1])
        changes[spec.name] = values
    return changes


def scales(rank: int) -> np.ndarray:
    """Return the relative scales of rank components: from 1 to 1 / SPREAD in equal ratios."""
    return np.geomspace(1.0, 1.0 / SPREAD, rank).astype(np.float32)


class Site:
    """Takes part in every round until the federation is finished."""

    def __init__(self, plan: SitePlan, say: Callable[..., None], turn: Callable[[], Awaitable[object]]) -> None:
        self._plan, self._say, self._turn = plan, say, turn
        self._client = FederationClient(
            plan.address,
            plan.tls,
            f"agent-of-{plan.name}",
            Ledger(Path(plan.log).with_suffix(".egress.jsonl")),
            plain_site=plan.name,
            give_up_after_s=60.0,
        )
        self._held: Adapter | None = None
        self._owed: dict[str, np.ndarray] = {}
        self._changes: dict[str, np.ndarray] = {}

    async def take_part(self) -> None:
        """Join and follow instructions to the end."""
        try:
            joined = await self._client.join(
                federation="", base_model_sha256=self._plan.base_model, training_patients=PATIENTS, software_version=""
            )
            self._changes = random_changes(joined.contract.manifest.layout, self._plan.seed)
            self._say(joined=True)
            await self._follow(joined)
        finally:
            await self._client.close()

    async def _follow(self, joined: Joined) -> None:
        following, number, version = "UNSPECIFIED", 0, 0
        await self._turn()
        while True:
            task = await self._client.await_round(
                round_number=number, following=following, version=version, wait_s=self._plan.wait_s
            )
            following, number = task.instruction, task.round
            if task.instruction == "TRAIN":
                version = task.version
                self._say(round=number, **await self._do_round(joined, task))
                following = "WAIT"
                await self._turn()
            elif task.instruction == "WAIT":
                self._say(waited=True)
            elif task.instruction in ("FINISHED", "EVICTED"):
                self._say(ended=task.instruction)
                return

    async def _do_round(self, joined: Joined, task: Task) -> dict[str, float]:
        manifest, recipe = joined.contract.manifest, joined.contract.recipe
        began = time.perf_counter()
        self._held = received = await self._client.fetch(joined.contract, task, self._held)
        fetched = time.perf_counter()
        if self._plan.reports and task.version:
            await self._client.report_evaluation(task.round - 1, task.version, PATIENTS, FIGURES)
        changes = random_changes(manifest.layout, self._plan.seed, task.round) if self._plan.fresh else self._changes
        metrics = {"train_loss": 0.123456789} if self._plan.reports else {}
        facts = UpdateFacts(round=task.round, base_version=task.version, training_patients=PATIENTS, metrics=metrics)
        update, self._owed = egress.seal(
            received,
            _trained(received.tensors, changes, recipe, task.round),
            recipe,
            facts,
            joined.contract.policy.invited,
            self._owed,
        )
        sealed = time.perf_counter()
        await self._client.upload(update, fresh=True)
        return {"fetch_s": fetched - began, "upload_s": time.perf_counter() - sealed}


def _trained(
    received: Mapping[str, np.ndarray], changes: Mapping[str, np.ndarray], recipe: Recipe, number: int
) -> dict[str, np.ndarray]:
    return {name: value + changes[name] for name, value in received.items() if recipe.travels(name, number)}


def main(argument: str) -> None:
    """Be one site."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    plan = SitePlan(**json.loads(argument))
    logs.configure(Path(plan.log))

    def say(**facts: Any) -> None:
        print(json.dumps(facts), flush=True)

    async def turn() -> None:
        if plan.held and not await asyncio.to_thread(sys.stdin.readline):
            sys.exit(0)

    asyncio.run(Site(plan, say, turn).take_part())


if __name__ == "__main__":
    main(sys.argv[1])

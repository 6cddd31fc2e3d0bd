"""Local adapters and residuals keep to their place: through a lossy codec, a lost receipt, a late update and a rollback."""

import asyncio
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from structlog.testing import capture_logs

from aggregator import steering, verify
from aggregator.store import engine
from shared.adapter import Adapter
from site_agent.agent import Agent
from site_agent.client import Joined, Task
from site_agent.config import SiteConfig
from site_agent.egress import Update
from site_agent.local_rounds import LocalRound
from site_agent.round_files import Tensors
from site_agent.state import State
from site_agent.training.site import SiteTrainer, Trained
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import NAME, Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration

SITES = ("siemens", "philips")


async def undisturbed(materials: Materials, folder: Path, codec: str, rounds: int = 2) -> Adapter:
    """Return the last version of a federation that nobody interrupts."""
    store = federation.create_store(folder, materials.adapter, SITES, rounds=rounds, codec=codec)
    async with serve(store) as running:
        await federation.finish(*federation.agents_of(materials, folder, running.address, SITES))
    federation.assert_finished(store, rounds)
    return federation.outcome(store)[2]


def rounds_of(folder: Path, site: str, *numbers: int) -> list[LocalRound]:
    """Return rounds of a site that has left."""
    held = State(folder / f"state-{site}")
    found = [held.rounds.find(number) for number in numbers]
    held.close()
    return [one for one in found if one is not None]


async def test_a_bf16_federation_finishes_verifies_and_sends_half_the_bytes(materials, tmp_path):
    sent = {}
    finals = {}
    for codec in ("f32", "bf16"):
        with capture_logs() as events:
            finals[codec] = await undisturbed(materials, tmp_path / codec, codec)
        uploads = [e for e in events if e.get("rpc") == "UploadDelta" and e.get("side") == "site"]
        sent[codec] = sum(event["payload_bytes_up"] for event in uploads)
        opened = engine.open_store(str(tmp_path / codec / "fed.db"))
        checks = verify.verify(opened, NAME, None)
        opened.close()
        assert [(check.phase, check.difference, check.updates) for check in checks] == [("closed", "", 2)] * 2
    assert sent["f32"] == 2 * sent["bf16"] > 0
    assert finals["f32"].digest != finals["bf16"].digest
    for name, value in finals["f32"].tensors.items():
        np.testing.assert_allclose(finals["bf16"].tensors[name], value, atol=2e-3)
    assert not (tmp_path / "f32/state-siemens/rounds/0001/residual.safetensors").exists()
    first, second = rounds_of(tmp_path / "bf16", "siemens", 1, 2)
    assert (first.start.residual, second.start.residual) == (0, 1)


class Recorded:
    """A site's trainer, and for each round the global part that its training was given and the one it returned."""

    def __init__(self, trainer: SiteTrainer) -> None:
        self._trainer = trainer
        self.rounds: dict[int, tuple[Adapter, Tensors]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def train(self, number: int, received: Adapter, *rest: Any) -> Trained:
        trained = self._trainer.train(number, received, *rest)
        self.rounds[number] = (received, {name: value.copy() for name, value in trained.global_tensors.items()})
        return trained


class Recording(Agent):
    """An agent whose training is recorded; all that follows it is its own."""

    recorded: Recorded

    async def _join(self) -> tuple[Joined, SiteTrainer]:
        joined, trainer = await super()._join()
        self.recorded = Recorded(trainer)
        return joined, cast(SiteTrainer, self.recorded)


def as_bf16(tensors: Tensors) -> tuple[bytes, Tensors]:
    """Return a bf16 payload and what it says, rounded by torch: to nearest, ties to even."""
    rounded = {name: torch.from_numpy(tensors[name].astype(np.float32)).bfloat16() for name in sorted(tensors)}
    payload = b"".join(value.view(torch.int16).numpy().astype("<i2").tobytes() for value in rounded.values())
    return payload, {name: value.float().numpy() for name, value in rounded.items()}


async def test_the_second_round_sends_what_rounding_the_first_had_lost(materials, tmp_path):
    """Bit for bit, from the files: delta.bin of round 2 is bf16(delta + residual of round 1), delta being what training did."""
    store = federation.create_store(tmp_path, materials.adapter, SITES, codec="bf16")
    async with serve(store) as running:
        agents = federation.agents_of(materials, tmp_path, running.address, SITES, kind=Recording)
        await federation.finish(*agents)
    for agent, site in zip(agents, SITES, strict=True):
        assert isinstance(agent, Recording)
        folders = {number: tmp_path / f"state-{site}/rounds/{number:04d}" for number in (1, 2)}
        kept = {number: load_file(folder / "residual.safetensors") for number, folder in folders.items()}
        owed: Tensors = {}
        for number, (received, trained) in agent.recorded.rounds.items():
            delta = {name: value - received.tensors[name] for name, value in trained.items()}
            owed = {name: value.astype(np.float64) + owed.get(name, 0.0) for name, value in delta.items()}
            payload, said = as_bf16(owed)
            assert (folders[number] / "delta.bin").read_bytes() == payload
            assert (payload != as_bf16(delta)[0]) == (number == 2)  # else this would show nothing
            owed = {name: value - said[name] for name, value in owed.items()}
            assert _bytes(kept[number]) == _bytes(owed)
            assert all(value.any() for value in owed.values())
        assert list(agent.recorded.rounds) == [1, 2]


class PowerCut(Exception):
    """Nothing catches this on purpose."""


class CutBeforeTheNote(Agent):
    """An agent whose machine goes down when the receipt has come and is not yet noted."""

    async def _send(self, update: Update, fresh: bool = False) -> None:
        await self._client.upload(update, fresh=fresh)
        raise PowerCut


async def test_a_receipt_that_was_not_noted_is_asked_for_again_before_the_next_round(materials, tmp_path):
    """Otherwise the next round would begin with the residual of the round before, and the result would differ."""
    expected = await undisturbed(materials, tmp_path / "undisturbed", "bf16")
    store = federation.create_store(tmp_path, materials.adapter, SITES, codec="bf16")
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        with pytest.raises(ExceptionGroup) as caught:
            await CutBeforeTheNote(config, Silent()).run(once=True)
        assert caught.group_contains(PowerCut)
        assert [one.fate for one in rounds_of(tmp_path, "siemens", 1)] == ["unsent"]
        other = asyncio.create_task(
            federation.finish(*federation.agents_of(materials, tmp_path, running.address, SITES[1:]))
        )
        await federation.arrived(store, 1, *SITES)
        await federation.finish(Agent(config, Silent()))
        await other
    assert federation.outcome(store)[2].digest == expected.digest
    assert [one.fate for one in rounds_of(tmp_path, "siemens", 1, 2)] == ["accepted"] * 2


class Noting(Agent):
    """An agent that notes what every round began with, and holds round 4 back until it is told."""

    def __init__(self, config: SiteConfig, held: asyncio.Event, go_on: asyncio.Event) -> None:
        super().__init__(config, Silent())
        self._held, self._go_on = held, go_on
        self.began: dict[int, tuple[int, dict[str, bytes], dict[str, bytes]]] = {}

    async def _train(
        self, joined: Joined, trainer: SiteTrainer, task: Task, received: Adapter, local_before: dict[str, np.ndarray]
    ) -> bool:
        residual = self._state.rounds.residual(self._state.rounds.start(task.round, received).residual)
        self.began[task.round] = (task.version, _bytes(local_before), _bytes(residual))
        if task.round == 4:
            self._held.set()
            await self._go_on.wait()
        return await super()._train(joined, trainer, task, received, local_before)


def _bytes(tensors: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in tensors.items()}


@pytest.mark.parametrize("codec", ["f32", "bf16"])
async def test_after_a_rollback_a_site_begins_with_the_snapshot_of_that_version(materials, tmp_path, codec):
    """Rounds 1 to 3 make versions 1 to 3; while round 4 is being trained the coordinator rolls back to version 1."""
    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=5, codec=codec)
    go_on = asyncio.Event()
    async with serve(store) as running:
        agents = []
        for site in SITES:
            config = federation.site_config(materials, tmp_path, running.address, site)
            agents.append(Noting(config, asyncio.Event(), go_on))
        done = asyncio.create_task(federation.finish(*agents))
        for agent in agents:
            await asyncio.wait_for(agent._held.wait(), federation.TIMEOUT_S)
        await steering.rollback(running.federation, "anna", 1, "version 2 was a mistake")
        go_on.set()
        await done
    federation.assert_finished(store, rounds=5)
    for agent, site in zip(agents, SITES, strict=True):
        assert [version for version, _, _ in agent.began.values()] == [0, 1, 2, 3, 1, 4]
        assert agent.began[5] == agent.began[2]
        assert agent.began[5][1] != agent.began[4][1]
        if codec == "bf16":
            assert agent.began[5][2] != agent.began[4][2]
        second, fourth, fifth, sixth = rounds_of(tmp_path, site, 2, 4, 5, 6)
        assert fourth.fate == "refused"
        assert fifth.start == second.start
        assert (sixth.start.local, sixth.start.residual) == (5, 5)
    opened = engine.open_store(store)
    assert all(check.difference == "" for check in verify.verify(opened, NAME, None))
    opened.close()

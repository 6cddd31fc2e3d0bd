"""Nothing of the local part leaves a site: no 16 bytes of it pass a relay that keeps every byte of whole rounds.

This is about parameters. What a jointly trained global delta says about the cases behind it is another question, and no
search for bytes can answer it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.relay import Relay
from shared.adapter import Adapter
from shared.errors import InvalidAdapter
from shared.layout import Layout
from site_agent import state
from site_agent.agent import Agent
from site_agent.client import Joined, Task
from site_agent.egress import Update, UpdateFacts
from site_agent.training.site import SiteTrainer
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration

SITES = ("siemens", "philips")
WINDOW = 16
"""Bytes: four float32 in a row, at any offset."""
LOCAL_Q = "local.encoder.blocks.1.attn.q.lora_A.weight"
GLOBAL_Q = "base_model.model.encoder.blocks.1.attn.q.lora_A.weight"


@dataclass
class Secrets:
    """Byte strings that must stay, each with the name of what it was cut from."""

    names: dict[bytes, str] = field(default_factory=dict)

    def add(self, name: str, array: np.ndarray) -> None:
        """Note every window of a tensor's bytes that is not one byte over and over; all of it if it is shorter than one."""
        data = array.astype("<f4").tobytes()
        size = min(WINDOW, len(data))
        for start in range(len(data) - size + 1):
            window = data[start : start + size]
            if window.count(window[0]) < size:
                self.names[window] = name

    def found_in(self, capture: bytes) -> set[str]:
        """Return the names of what occurs anywhere in a capture."""
        found = set()
        for size in {len(window) for window in self.names}:
            windows = {capture[start : start + size] for start in range(len(capture) - size + 1)}
            found |= {self.names[window] for window in windows & self.names.keys()}
        return found


class Watched(Agent):
    """An agent whose private tensors and their optimiser state are noted after every optimiser step."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.secrets = Secrets()
        self.folder: Path = self._config.state
        self.sent, self.sent_count = b"", 0

    def _on_step(self, step: int, steps: int, optimiser: Any) -> None:
        super()._on_step(step, steps, optimiser)
        for group in optimiser.param_groups:
            if group["name"] not in ("global_own", "local", "head_private"):
                continue
            for index, parameter in enumerate(group["params"]):
                name = f"{group['name']} {index}"
                self.secrets.add(name, parameter.detach().numpy())
                for part in ("exp_avg", "exp_avg_sq"):
                    self.secrets.add(f"{part} of {name}", optimiser.state[parameter][part].numpy())

    async def _do_round(self, joined: Joined, trainer: SiteTrainer, task: Task) -> None:
        for name, value in trainer.initial_local().items():
            self.secrets.add(f"initial {name}", value)
        await super()._do_round(joined, trainer, task)
        finished = self._state.rounds.find(task.round)
        assert finished is not None
        self.sent = finished.update.payload
        self.sent_count += 1


class Keeping(Watched):
    """An agent that begins with a fixed local adapter, which a learning rate of 0 keeps as it is."""

    async def _join(self) -> tuple[Joined, SiteTrainer]:
        joined, trainer = await super()._join()
        rng = np.random.default_rng(99)
        self.canary = {
            name: rng.uniform(-0.05, 0.05, value.shape).astype(np.float32)
            for name, value in trainer.initial_local().items()
        }
        folder = self._state.folder / "rounds/0000"
        folder.mkdir(parents=True)
        save_file(self.canary, folder / "local.safetensors")
        for name, value in self.canary.items():
            self.secrets.add(f"canary {name}", value)
        return joined, trainer


class Leaking(Watched):
    """An agent that puts numbers of its local part where a global tensor belongs; `numbers` says how many (0: all)."""

    numbers = 0

    async def _train(
        self,
        joined: Joined,
        trainer: SiteTrainer,
        task: Task,
        received: Adapter,
        local_before: Mapping[str, np.ndarray],
    ) -> bool:
        assert await super()._train(joined, trainer, task, received, dict(local_before))
        finished, private = self._state.rounds.find(task.round), self._state.rounds.local(task.round)
        assert finished is not None
        assert private is not None
        update = finished.update
        tensors = {name: value.copy() for name, value in update.layout.split(update.payload).items()}
        count = self.numbers or private[LOCAL_Q].size
        tensors[GLOBAL_Q].reshape(-1)[:count] = private[LOCAL_Q].reshape(-1)[:count]
        self._state.rounds.commit(Update(update.facts, update.layout, update.layout.join(tensors)), private)
        return True


class LeakingFourNumbers(Leaking):
    numbers = 4


class Sending(Agent):
    """An agent that derived a layout of its own: one more tensor than the round takes."""

    derived_layout = False

    async def _do_round(self, joined: Joined, trainer: SiteTrainer, task: Task) -> None:
        received = await self._fetch(joined.contract, trainer, task)
        tensors = {name: np.zeros_like(value) for name, value in received.tensors.items()}
        tensors[LOCAL_Q] = trainer.initial_local()[LOCAL_Q]
        layout = Layout.of(tensors)
        facts = UpdateFacts(
            round=task.round,
            base_version=task.version,
            training_patients=trainer.training_patients,
            metrics={"train_loss": 0.5},
        )
        await self._client.upload(Update(facts, layout, layout.join(tensors), derived_layout=self.derived_layout))


class SendingUnnamed(Sending):
    derived_layout = True


async def run_through_relay(
    materials: Materials, folder: Path, kind: type[Watched], **parameters: str
) -> tuple[list[Watched], Relay]:
    """Run a plain federation of two sites with every connection through one relay; return the agents and what passed."""
    store = federation.create_store(folder, materials.adapter, SITES, rounds=3, **parameters)
    async with serve(store) as running, Relay([running.address], keep=True) as relay:
        agents = [kind(federation.site_config(materials, folder, relay.address, site), Silent()) for site in SITES]
        await federation.finish(*agents)
    federation.assert_finished(store, rounds=3)
    return agents, relay


def leaked(agents: list[Watched], relay: Relay) -> set[str]:
    """Return the names of private values that passed the relay in either direction."""
    secrets = Secrets()
    for agent in agents:
        secrets.names |= agent.secrets.names
    return {name for capture in relay.captures for name in secrets.found_in(bytes(capture))}


def assert_updates_passed(agents: list[Watched], relay: Relay) -> None:
    """Fail if the relay was bypassed: then it would prove nothing that a secret was not seen."""
    captured = [bytes(link.up.kept) for link in relay.links]
    for agent in agents:
        assert agent.sent_count == 3
        assert any(agent.sent in capture for capture in captured)


@pytest.mark.parametrize("head_policy", ["global+local-bias", "local"])
async def test_no_window_of_the_local_part_or_its_optimiser_state_leaves_a_site(materials, tmp_path, head_policy):
    adapter = federation.save_adapter(materials.backbone, tmp_path / "v0.safetensors", head_policy=head_policy)
    agents, relay = await run_through_relay(replace(materials, adapter=adapter), tmp_path, Watched)
    assert_updates_passed(agents, relay)
    watched = {name.rpartition(" ")[0] for agent in agents for name in agent.secrets.names.values()}
    assert watched >= {
        f"{part}{group}" for part in ("", "exp_avg of ", "exp_avg_sq of ") for group in ("local", "head_private")
    }
    assert all(len(agent.secrets.names) > 5000 for agent in agents)
    assert leaked(agents, relay) == set()


@pytest.mark.parametrize("codec", ["f32", "int8"])
async def test_no_window_of_a_global_factor_that_a_recipe_keeps_at_the_site_leaves_it(materials, tmp_path, codec):
    """FedSA-LoRA trains B of the global part and shares A alone (Guo et al. 2024, arXiv:2410.01463)."""
    agents, relay = await run_through_relay(materials, tmp_path, Watched, recipe="fedsa-lora", codec=codec)
    assert_updates_passed(agents, relay)
    watched = {name.rpartition(" ")[0] for agent in agents for name in agent.secrets.names.values()}
    assert watched >= {f"{part}global_own" for part in ("", "exp_avg of ", "exp_avg_sq of ")}
    assert leaked(agents, relay) == set()


async def test_a_local_adapter_that_never_changes_does_not_leave_either(materials, tmp_path):
    agents, relay = await run_through_relay(materials, tmp_path, Keeping, lr_local="0")
    assert_updates_passed(agents, relay)
    for agent in agents:
        kept = state.read_local_adapter(agent.folder)
        assert kept is not None
        assert all(np.array_equal(kept[name], value) for name, value in agent.canary.items() if ".lora_" in name)
    assert leaked(agents, relay) == set()


@pytest.mark.parametrize("kind", [Leaking, LeakingFourNumbers])
async def test_an_agent_that_leaks_local_numbers_under_a_global_name_is_caught(materials, tmp_path, kind):
    agents, relay = await run_through_relay(materials, tmp_path, kind)
    assert_updates_passed(agents, relay)
    assert any(name.startswith("local ") for name in leaked(agents, relay))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Sending, f"extra tensor '{LOCAL_Q}'"),
        (SendingUnnamed, "layout [0-9a-f]{12} is not the round's [0-9a-f]{12}; spell it out in layout_json"),
    ],
)
async def test_an_agent_that_sends_a_tensor_more_is_refused_and_the_federation_goes_on(
    materials, tmp_path, kind, message
):
    store = federation.create_store(tmp_path, materials.adapter, SITES)
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        with pytest.raises(InvalidAdapter, match=message):
            await kind(config, Silent()).run(once=True)
        await federation.finish(*federation.agents_of(materials, tmp_path, running.address, SITES))
    federation.assert_finished(store)

"""A site's agent as a real process that is killed, asked to leave, or finds its files damaged: it goes on, with the same bytes."""

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shared.errors import IdentityInUse
from site_agent import starting, state
from site_agent.agent import Agent
from site_agent.cli.agent import STOPPED_SAFELY
from site_agent.config import SiteConfig
from site_agent.data import cases as case_table
from site_agent.state import State
from site_agent.training import checkpoint
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.running import events
from tests.support.serving import serve

pytestmark = pytest.mark.integration

SITES = ("siemens", "philips")
STEPS_AN_EPOCH = 6
"""22 training cases outside of fold 0, 4 at a time."""
LONG = {"local_epochs": "40", "batch_size": "4", "views": "1"}
"""240 steps: seconds, with a checkpoint after every one."""
ENDLESS = {"local_epochs": "100000"}
LEAVES_WITHIN_S = 30.0
AGENT = (federation.program("site-agent"),)
HURRIED = "import site_agent.cli.agent as a; a.LEAVES_WITHIN_S = 2.0; from site_agent.cli import main; main()"
HURRIED_AGENT = (sys.executable, "-c", HURRIED)


@asynccontextmanager
async def agent_process(
    config: SiteConfig, *options: object, program: Sequence[str] = AGENT
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `site-agent` with its log beside its state folder; it is killed if it still runs at the end."""
    arguments = [*federation.agent_arguments(config), "--log", config.state.with_suffix(".jsonl"), *options]
    with config.state.with_suffix(".err").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *program, *map(str, arguments), stderr=errors, env=federation.PROCESS_ENVIRONMENT
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def steps_done(state: Path) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    paths = sorted((state / "training").glob("checkpoint-*"))
    held = checkpoint.read(paths[-1]) if paths else None
    return held[1].step if held else 0


def newest_checkpoint(state: Path) -> int:
    """Return the number of the newest checkpoint, without reading it."""
    names = [path.name.rpartition("-")[2] for path in (state / "training").glob("checkpoint-*")]
    return max(map(int, names), default=0)


def round_files(state: Path) -> tuple[bytes, bytes]:
    """Return what round 1 left: the update, which is made of the global tensors, and the local adapter."""
    folder = state / "rounds/0001"
    return (folder / "delta.bin").read_bytes(), (folder / "local.safetensors").read_bytes()


def events_of(state: Path, name: str) -> list[dict[str, Any]]:
    return events(state.with_suffix(".jsonl"), name)


def calls_of(state: Path) -> list[object]:
    """Return the calls that the agent has had an answer to."""
    return [event["rpc"] for event in events_of(state, "rpc_finished")]


async def trained_undisturbed(materials: Materials, folder: Path) -> tuple[bytes, bytes]:
    """Return the bytes of a process that nobody kills, which writes no checkpoint either."""
    store = federation.create_store(folder, materials.adapter, SITES, rounds=1, **LONG)
    async with serve(store) as running:
        config = federation.site_config(materials, folder, running.address, "siemens")
        async with agent_process(config, "--checkpoint-s", 3600):
            await federation.arrived(store, 1, "siemens")
        return round_files(config.state)


async def test_an_agent_killed_in_mid_epoch_again_and_again_ends_with_the_same_bytes(materials, tmp_path):
    """SIGKILL at three places; before the last start the newest checkpoint is damaged too."""
    expected = await trained_undisturbed(materials, tmp_path / "undisturbed")
    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=1, **LONG)
    killed_at = []
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        for further in (20, 50, 60):
            begun = newest_checkpoint(config.state)
            async with agent_process(config, "--checkpoint-s", 0) as process:
                await federation.until(
                    lambda begun=begun, more=further: newest_checkpoint(config.state) >= begun + more
                )
                process.send_signal(signal.SIGKILL)
                await process.wait()
            killed_at.append(steps_done(config.state))
        damaged = sorted((config.state / "training").glob("checkpoint-*"))[-1]
        damaged.write_bytes(damaged.read_bytes()[:-1])
        async with agent_process(config, "--checkpoint-s", 0):
            await federation.arrived(store, 1, "siemens")
    assert 0 < killed_at[0] < killed_at[1] < killed_at[2] < 40 * STEPS_AN_EPOCH
    assert any(step % STEPS_AN_EPOCH for step in killed_at)
    resumed_at = [event["step"] for event in events_of(config.state, "training_resumed")]
    assert resumed_at == [*killed_at[:2], killed_at[2] - 1]
    (damage,) = events_of(config.state, "damage_set_aside")
    assert damage["path"] == f"training/{damaged.name}"
    assert round_files(config.state) == expected
    assert not list((config.state / "training").glob("checkpoint-*"))


# --- asked to leave -------------------------------------------------------------------------------------------------


async def assert_leaves(process: asyncio.subprocess.Process, with_signal: signal.Signals = signal.SIGTERM) -> None:
    began = time.monotonic()
    process.send_signal(with_signal)
    assert await asyncio.wait_for(process.wait(), 2 * LEAVES_WITHIN_S) == 130
    took_s = time.monotonic() - began
    print(f"left {took_s:.2f} s after {with_signal.name}")
    assert took_s < LEAVES_WITHIN_S


async def test_sigterm_in_training_leaves_a_checkpoint_and_no_process(materials, tmp_path):
    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=1, **{**LONG, **ENDLESS})
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        async with agent_process(config, "--checkpoint-s", 1) as process:
            await federation.until(lambda: newest_checkpoint(config.state) > 0)
            before = steps_done(config.state)
            await assert_leaves(process)
        first, *_, last = config.state.with_suffix(".err").read_text().splitlines()
        assert first.startswith("siemens in federation hearts at ")
        assert last == STOPPED_SAFELY
        assert len(events_of(config.state, "agent_stopped")) == 1
        assert steps_done(config.state) > before
        async with agent_process(config, "--checkpoint-s", 1) as process:
            await federation.until(lambda: len(events_of(config.state, "training_resumed")) == 1)
            await assert_leaves(process)


async def test_sigterm_in_an_outage_ends_the_agent_at_once(materials, tmp_path):
    """Once before the aggregator was ever heard of, once with a trained round waiting to be sent."""
    address = f"127.0.0.1:{federation.free_port()}"
    config = federation.site_config(materials, tmp_path, address, "siemens")
    async with agent_process(config) as process:
        await federation.until(
            lambda: (
                config.state.with_suffix(".jsonl").exists()
                and len(events_of(config.state, "aggregator_unreachable")) > 0
            )
        )
        await assert_leaves(process)

    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=1, **LONG)
    async with agent_process(config) as process:
        async with serve(store, listen=address):
            await federation.until(lambda: (config.state / "global.safetensors").exists())
        await federation.until(lambda: (config.state / "rounds/0001").exists())
        await assert_leaves(process)
    async with serve(store, listen=address) as running:
        await federation.finish(*federation.agents_of(materials, tmp_path, running.address, SITES))
    federation.assert_finished(store, rounds=1)


async def test_sigterm_ends_an_agent_whose_disk_hangs(materials, tmp_path):
    """A pipe that nobody writes to stands for a file server that is away: the thread that reads it never comes back."""
    cohort = Path(await asyncio.to_thread(shutil.copytree, materials.cohorts / "siemens", tmp_path / "cohort"))
    case = next(case for case in case_table.read(cohort) if case.split == "train" and case.fold != 0)
    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=1)
    address = f"127.0.0.1:{federation.free_port()}"
    config = federation.site_config(materials, tmp_path, address, "siemens", cohort=cohort)
    async with agent_process(config, program=HURRIED_AGENT) as process:
        await federation.until(lambda: len(events_of(config.state, "aggregator_unreachable")) > 0)
        case.ed_path.unlink()  # the table was read and all files were there
        os.mkfifo(case.ed_path)
        async with serve(store, listen=address):
            await federation.until(lambda: (config.state / "contract.json").exists())
            await asyncio.sleep(1)
            await assert_leaves(process)


@pytest.mark.parametrize(
    ("name", "with_signal"), [("global.safetensors", signal.SIGTERM), ("agent.json", signal.SIGINT)]
)
async def test_a_signal_ends_an_agent_whose_state_folder_hangs(materials, tmp_path, name, with_signal):
    """The agent reads its state on the event loop, and the first of it before there is one: neither hears anything then."""
    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=1)
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        config.state.mkdir()
        os.mkfifo(config.state / name)
        async with agent_process(config, program=HURRIED_AGENT) as process:
            if name == "agent.json":
                await federation.until(lambda: (config.state / "lock").exists())
            else:
                await federation.until(lambda: "AwaitRound" in calls_of(config.state))
            await asyncio.sleep(0.5)
            await assert_leaves(process, with_signal)


# --- damage ---------------------------------------------------------------------------------------------------------


class Listening(Silent):
    """What a person is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def warned(self, text: str) -> None:
        self.told.append(text)


async def leave_after_round_1(config: SiteConfig, store: str) -> None:
    """Take part until the site knows that its update counts, and stop."""
    agent = Agent(config, Silent())
    running = asyncio.create_task(agent.run(once=True))
    await federation.arrived(store, 1, "siemens")
    record = config.state / "rounds/0001/round.json"
    await federation.until(lambda: b'"fate":"accepted"' in record.read_bytes())
    agent.stop()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_an_agent_with_a_new_id_waits_until_the_aggregator_lets_the_old_one_go(materials, tmp_path, monkeypatch):
    monkeypatch.setattr(starting, "TAKEOVER_PAUSE_S", 0.2)
    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=1)
    async with serve(store, identity_s=3.0) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        await leave_after_round_1(config, store)
        (config.state / "agent.json").write_bytes(b"\x00")
        listening = Listening()
        others = federation.agents_of(materials, tmp_path, running.address, SITES[1:])
        with capture_logs() as events:
            await federation.finish(Agent(config, listening), *others)
    federation.assert_finished(store, rounds=1)
    waits = [event for event in events if event["event"] == "takeover_awaited"]
    assert waits
    assert "another agent uses the certificate of site 'siemens'" in waits[0]["error"]
    assert 0 < waits[0]["gives_up_in_s"] <= 120
    assert any("This agent is new here and waits for at most" in text for text in listening.told)
    assert (config.state / "damaged-agent.json").read_bytes() == b"\x00"


async def test_an_agent_that_is_new_waits_no_longer_than_the_aggregator_keeps_a_certificate(
    materials, tmp_path, monkeypatch
):
    monkeypatch.setattr(starting, "TAKEOVER_PAUSE_S", 0.2)
    monkeypatch.setattr(state, "TAKEOVER_S", 4.0)
    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=1)
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        await leave_after_round_1(config, store)
        (config.state / "agent.json").unlink()
        listening = Listening()
        with pytest.raises(IdentityInUse):
            await Agent(config, listening).run(once=True)
    assert any("This agent is new here and waits for at most" in text for text in listening.told)


async def test_whatever_is_damaged_after_a_finished_round_the_agent_goes_on(materials, tmp_path):
    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=2)
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        await leave_after_round_1(config, store)
        for name in ("global.safetensors", "initial.safetensors", "rounds/0001/local.safetensors"):
            (config.state / name).write_bytes(b"\x08")
        (config.state / "history.jsonl").write_text("{")
        listening = Listening()
        again = Agent(config, listening)
        await federation.finish(again, *federation.agents_of(materials, tmp_path, running.address, SITES[1:]))
    federation.assert_finished(store)
    kept = {str(path.relative_to(config.state)) for path in config.state.rglob("damaged-*")}
    assert kept == {
        "damaged-global.safetensors",
        "damaged-initial.safetensors",
        "damaged-history.jsonl",
        "rounds/0001/damaged-local.safetensors",
    }
    assert len(listening.told) == 4
    held = State(config.state)
    found = held.rounds.find(2)
    held.close()
    assert found is not None
    assert found.start.local == 0

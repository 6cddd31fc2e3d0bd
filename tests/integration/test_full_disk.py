"""A disk that is really full: a file system of a few hundred kilobytes that only the agent's process sees mounted."""

import asyncio
import contextlib
import json
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from site_agent.config import SiteConfig
from tests.integration import federation
from tests.support.running import events
from tests.support.serving import serve

pytestmark = pytest.mark.integration

SITES = ("siemens", "philips")
SIZE = "512k"
LONG = {"local_epochs": "40", "batch_size": "4"}


class SmallDisk:
    """The file system as it can be reached from outside, through the process that sees it."""

    def __init__(self, process: asyncio.subprocess.Process, mounted_on: Path) -> None:
        self.process = process
        self.folder = Path(f"/proc/{process.pid}/root{mounted_on}")

    def fill(self, *more: Path) -> None:
        """Write until nothing more fits, not even into the last page of `more` files."""
        for path, blocks in ((self.folder / "ballast", (bytes(4096), b"x")), *((path, (b"\n",)) for path in more)):
            with path.open("ab", buffering=0) as file:
                for block in blocks:
                    with contextlib.suppress(OSError):
                        while file.write(block):
                            pass

    def make_room(self) -> None:
        (self.folder / "ballast").unlink()


@asynccontextmanager
async def agent_on_small_disk(config: SiteConfig, mounted_on: Path, state: Path, log: Path) -> AsyncIterator[SmallDisk]:
    """Run `site-agent` in a mount namespace of its own, in which `mounted_on` is a tiny file system."""
    await asyncio.to_thread(mounted_on.mkdir)
    arguments = [*federation.agent_arguments(config), "--state", state, "--log", log, "--checkpoint-s", 0.2]
    agent = shlex.join([federation.program("site-agent"), *map(str, arguments)])
    script = f"mount -t tmpfs -o size={SIZE} tmpfs {shlex.quote(str(mounted_on))} && exec {agent}"
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-m" if os.getuid() == 0 else "-Urm", "sh", "-c", script),
        stderr=asyncio.subprocess.DEVNULL,
        env=federation.PROCESS_ENVIRONMENT,
    )
    try:
        yield SmallDisk(process, mounted_on)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def names_of(log: Path) -> list[str]:
    return [event["event"] for event in events(log)]


async def test_a_state_folder_on_a_full_disk_loses_nothing_and_the_agent_says_what_to_do(materials, tmp_path):
    expected = federation.create_store(tmp_path / "undisturbed", materials.adapter, SITES, rounds=1, **LONG)
    async with serve(expected) as running:
        agents = federation.agents_of(materials, tmp_path / "undisturbed", running.address, SITES)
        await federation.finish(*agents)

    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=1, **LONG)
    log, mounted_on = tmp_path / "agent.jsonl", tmp_path / "small"
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        async with agent_on_small_disk(config, mounted_on, mounted_on / "state", log) as disk:
            training = disk.folder / "state/training"
            await federation.until(lambda: any(training.glob("checkpoint-*")))
            disk.fill()
            await federation.until(lambda: names_of(log).count("state_disk_full") >= 2)
            assert "checkpoint_failed" in names_of(log)
            assert disk.process.returncode is None
            assert not list((disk.folder / "state/rounds").glob("*"))  # nothing half written is in the way
            assert federation.order_of_arrival(store, 1) == []
            disk.make_room()
            await federation.finish(*federation.agents_of(materials, tmp_path, running.address, SITES[1:]))
            assert await asyncio.wait_for(disk.process.wait(), federation.TIMEOUT_S) == 0
    names = names_of(log)
    assert "state_disk_has_room" in names
    assert names.count("round_trained") == 1
    assert federation.outcome(store)[2].digest == federation.outcome(expected)[2].digest


async def test_a_log_on_a_full_disk_does_not_stop_the_agent_and_says_later_what_it_lost(materials, tmp_path):
    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=1)
    mounted_on = tmp_path / "small"
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        async with agent_on_small_disk(config, mounted_on, config.state, mounted_on / "agent.jsonl") as disk:
            log = disk.folder / "agent.jsonl"
            await federation.until(lambda: (config.state / "contract.json").exists())
            disk.fill(log)
            with log.open("rb") as held:  # the file system is gone with the process; what is open stays
                full = log.stat().st_size
                await federation.arrived(store, 1, "siemens")
                assert log.stat().st_size == full
                disk.make_room()
                await federation.finish(*federation.agents_of(materials, tmp_path, running.address, SITES[1:]))
                assert await asyncio.wait_for(disk.process.wait(), federation.TIMEOUT_S) == 0
                lines = [line for line in held.read().splitlines() if line]
    federation.assert_finished(store, rounds=1)
    lost = next(index for index, line in enumerate(lines) if b"log_events_lost" in line)
    assert json.loads(lines[lost])["count"] > 0
    assert any(json.loads(line)["event"] == "federation_finished" for line in lines[lost:])

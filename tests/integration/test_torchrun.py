"""One site in two processes that `torchrun` starts: the adapter of one process, and they end together.

What differs is the order in which floats are added: some 1e-7 of a number after a round, and what AdamW makes of that later.
"""

import asyncio
import json
import os
import pickle
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.adapter import Adapter
from site_agent.cli.agent import STOPPED_SAFELY
from site_agent.config import SiteConfig
from site_agent.training.parallel import ALONE
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support import tiny_site, torchrun_site
from tests.support.running import events, having
from tests.support.serving import serve

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SITES = ("siemens",)
LONG = {"local_epochs": "50", "batch_size": "5", "lr_global": "2e-4", "lr_local": "2e-4", "lr_head": "1e-3"}
"""21 training cases outside of fold 0: 250 steps, the last of each epoch of one case."""
LEAVES_WITHIN_S = 20.0


@dataclass(frozen=True)
class Processes:
    """A torchrun and what it started, each of which has `mark` in its environment."""

    torchrun: asyncio.subprocess.Process
    mark: str

    def alive(self, rank: int | None = None) -> list[int]:
        """Return the ids of those that run, or of the one of a rank."""
        return having(f"MARK={self.mark}", *([] if rank is None else [f"RANK={rank}"]))

    async def gone(self) -> float:
        """Return after how many seconds all have ended."""
        began = time.monotonic()
        while self.torchrun.returncode is None or self.alive():
            assert time.monotonic() - began < 2 * LEAVES_WITHIN_S, "there are processes left"
            await asyncio.sleep(0.05)
        return time.monotonic() - began


@asynccontextmanager
async def torchrun(output: Path, *arguments: object) -> AsyncIterator[Processes]:
    """Run two processes; whichever still run at the end are killed."""
    mark = uuid.uuid4().hex
    command = [federation.program("torchrun"), "--standalone", "--nproc-per-node", "2", *map(str, arguments)]
    environment = {**federation.PROCESS_ENVIRONMENT, "PYTHONPATH": str(ROOT), "MARK": mark}
    with output.open("ab") as file:
        process = await asyncio.create_subprocess_exec(*command, stdout=file, stderr=file, env=environment)
    processes = Processes(process, mark)
    try:
        yield processes
    finally:
        for pid in processes.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


# --- rounds of every kind, without a network ------------------------------------------------------------------------


async def test_two_processes_train_score_and_fill_as_one_does(tmp_path):
    """Each recipe, both modes, with micro-batches and without, a batch that does not divide, one with less cases than processes;
    stopped and resumed; with one process short of memory. Rank 0 hears the error of whichever process has one."""
    cases = tiny_site.write_cases(tmp_path / "cases-of-noise", torchrun_site.CASES)
    for folder in (tmp_path / "two", tmp_path / "one"):
        folder.mkdir()
        (folder / "cases").write_bytes(pickle.dumps(cases))
    async with torchrun(tmp_path / "output", "-m", "tests.support.torchrun_site", tmp_path / "two") as processes:
        assert await asyncio.wait_for(processes.torchrun.wait(), 120) == 0, (tmp_path / "output").read_text()
    expected = torchrun_site.everything(ALONE, tmp_path / "one")
    first, second = (dict(np.load(tmp_path / f"two/rank-{rank}.npz")) for rank in (0, 1))
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(first[name], value, atol=1e-5, err_msg=name)
        assert first[name].tobytes() == second[name].tobytes(), name
    said, also = (json.loads((tmp_path / f"two/rank-{rank}.json").read_text()) for rank in (0, 1))
    assert said["failures"] == ["InputError: case mnms/P003: cannot be read"] * 3
    assert also["failures"] == ["Failed: "] * 3
    assert said["filling"] == also["filling"] == [4, 7, 11, 11]


# --- the agent ------------------------------------------------------------------------------------------------------


def agent(config: SiteConfig) -> list[object]:
    arguments = [*federation.agent_arguments(config), "--log", config.state.with_suffix(".jsonl")]
    return ["--no-python", "--", federation.program("site-agent"), *arguments, "--checkpoint-s", 0.1]


def events_of(config: SiteConfig, name: str) -> list[dict[str, Any]]:
    return events(config.state.with_suffix(".jsonl"), name)


def delta(store: str, initial: Path) -> np.ndarray:
    """Return the change that the global adapter has seen, all numbers in a row."""
    _, _, adapter = federation.outcome(store)
    before = Adapter.read(initial).tensors
    return np.concatenate([(value - before[name]).ravel() for name, value in sorted(adapter.tensors.items())])


async def test_a_site_of_two_processes_is_stopped_loses_one_and_ends_with_the_delta_of_one_process(
    materials: Materials, tmp_path: Path
):
    alone = federation.create_store(tmp_path / "alone", materials.adapter, SITES, rounds=1, **LONG)
    async with serve(alone) as running:
        await federation.finish(*federation.agents_of(materials, tmp_path / "alone", running.address, SITES))

    store = federation.create_store(tmp_path / "two", materials.adapter, SITES, rounds=1, **LONG)
    output = tmp_path / "output"
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        checkpoints = config.state / "training"
        async with torchrun(output, *agent(config)) as processes:
            await federation.until(lambda: any(checkpoints.glob("checkpoint-*")))
            assert len(processes.alive()) == 3
            processes.torchrun.send_signal(signal.SIGTERM)
            took_s = await processes.gone()
        print(f"left {took_s:.2f} s after SIGTERM")
        assert took_s < LEAVES_WITHIN_S
        assert STOPPED_SAFELY in output.read_text()
        assert len(events_of(config, "agent_stopped")) == 1

        output.unlink()
        async with torchrun(output, *agent(config)) as processes:
            await federation.until(lambda: len(events_of(config, "training_resumed")) == 1)
            (further,) = processes.alive(rank=1)
            os.kill(further, signal.SIGKILL)
            took_s = await processes.gone()
        print(f"left {took_s:.2f} s after a process was killed")
        assert took_s < LEAVES_WITHIN_S
        text = output.read_text()
        assert STOPPED_SAFELY in text or "another process of this site has ended" in text

        async with torchrun(output, *agent(config)) as processes:
            assert await asyncio.wait_for(processes.torchrun.wait(), 120) == 0, output.read_text()
    federation.assert_finished(store, rounds=1)
    assert len(events_of(config, "training_resumed")) == 2
    expected, found = delta(alone, materials.adapter), delta(store, materials.adapter)
    difference = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"relative difference of the deltas {difference:.1e}")
    assert difference < 1e-3

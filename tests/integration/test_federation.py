"""Agents and an aggregator over real gRPC: rounds close, what is left behind fits together, and interruptions cost nothing."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from aggregator import setup, steering, verify
from aggregator.store import engine
from shared.adapter import Adapter
from shared.contract import ARMS
from shared.errors import ContractMismatch, InputError
from site_agent import heartbeat, predict
from site_agent.agent import REPORT, Agent, Evicted
from site_agent.cli.agent import STOPPED_SAFELY
from site_agent.client import Joined, Task
from site_agent.config import SiteConfig
from site_agent.data.cohort import Cohort, labels, load_pair
from site_agent.training import metrics
from site_agent.training.site import SiteTrainer
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import NAME, SITES, Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration

TWO = ("siemens", "philips")


async def undisturbed(materials: Materials, folder: Path) -> Adapter:
    """Return the last version of two sites' federation that nobody interrupts."""
    store = federation.create_store(folder, materials.adapter, TWO)
    async with serve(store) as running:
        await federation.finish(*federation.agents_of(materials, folder, running.address, TWO))
    return federation.outcome(store)[2]


async def test_three_sites_finish_and_their_reports_agree_with_the_aggregator_s_store(materials, tmp_path):
    store = federation.create_store(tmp_path, materials.adapter, rounds=3)
    async with serve(store) as running:
        await federation.finish(*federation.agents_of(materials, tmp_path, running.address))
    federation.assert_finished(store, rounds=3)
    final = federation.outcome(store)[2]
    for site in SITES:
        report = json.loads((tmp_path / f"state-{site}" / REPORT).read_text())
        assert (report["site"], report["federation"], report["rounds"]) == (site, NAME, 3)
        assert report["adapter"]["digest"] == final.digest
        assert report["adapter"]["bytes"] == len(final.payload)
        assert set(report["arms"]) == set(ARMS)
        assert [entry["version"] for entry in report["history"]] == [1, 2, 3]
        assert report["arms"]["dual"]["test"]["n"] == federation.PHANTOMS.test_cases


async def test_every_closed_round_recomputes_to_the_bytes_that_were_sent_out(materials, tmp_path):
    await undisturbed(materials, tmp_path / "fed")
    opened = engine.open_store(str(tmp_path / "fed/fed.db"))
    checks = verify.verify(opened, NAME, None)
    opened.close()
    assert [(c.round, c.phase, c.difference, c.updates) for c in checks] == [(1, "closed", "", 2), (2, "closed", "", 2)]


async def test_predict_with_a_state_folder_judges_as_the_site_s_report_says(materials, tmp_path):
    await undisturbed(materials, tmp_path / "fed")
    folder, cases = tmp_path / "fed/state-siemens", Cohort.load(materials.cohorts / "siemens").test()
    model = predict.site_model(materials.backbone, "", folder)
    margins = [model.judge(load_pair(case)).margin for case in cases]
    dual = json.loads((folder / REPORT).read_text())["arms"]["dual"]["test"]
    assert metrics.auc(np.array(margins), labels(cases)) == pytest.approx(dual["auc"])
    found = metrics.confusion(np.array(margins), labels(cases), 0.0)
    assert found.balanced_accuracy == pytest.approx(dual["at_half"]["balanced_accuracy"])

    other = federation.save_random_backbone(tmp_path / "other", seed=2)
    with pytest.raises(ContractMismatch, match="is not the base model of this federation"):
        predict.site_model(other, "", folder)
    with pytest.raises(InputError, match="holds no agent's state"):
        predict.site_model(materials.backbone, "", tmp_path)


@pytest.mark.parametrize(
    ("choices", "parameters"),
    [
        ({"head_policy": "local"}, {"mode": "alternating"}),
        ({"head_policy": "global", "targets": ("fc1", "fc2"), "blocks": (2,)}, {"class_balanced": "false"}),
    ],
    ids=["local head, alternating", "global head, other layers"],
)
async def test_every_way_to_adapt_the_model_runs_to_the_end(materials, tmp_path, choices, parameters):
    adapter = federation.save_adapter(materials.backbone, tmp_path / "v0.safetensors", **choices)
    store = federation.create_store(tmp_path, adapter, TWO, rounds=1, **parameters)
    async with serve(store) as running:
        await federation.finish(*federation.agents_of(materials, tmp_path, running.address, TWO))
    federation.assert_finished(store, rounds=1)


async def test_siamese_frames_run_on_a_one_frame_backbone(materials, tmp_path):
    one_frame = federation.TINY.for_frames("siamese")
    backbone = federation.save_random_backbone(tmp_path / "backbone", seed=1, config=one_frame)
    adapter = federation.save_adapter(backbone, tmp_path / "v0.safetensors", frames="siamese")
    store = federation.create_store(tmp_path, adapter, TWO, rounds=1)
    async with serve(store) as running:
        made_of = Materials(backbone, adapter, materials.cohorts)
        await federation.finish(*federation.agents_of(made_of, tmp_path, running.address, TWO))
    federation.assert_finished(store, rounds=1)


async def test_private_files_are_readable_by_their_owner_only(materials, tmp_path):
    await undisturbed(materials, tmp_path / "fed")
    folder = tmp_path / "fed/state-siemens"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert {"local.safetensors", "delta.bin", "report.json", "contract.json"} <= modes.keys()
    assert {name: mode for name, mode in modes.items() if mode != 0o600} == {}


# --- interruptions --------------------------------------------------------------------------------------------------


class Interrupted(Agent):
    """An agent that is told to stop after its first optimiser step."""

    def _on_step(self, step: int, steps: int, optimiser: Any) -> None:
        super()._on_step(step, steps, optimiser)
        self.stop()


class PowerCut(Exception):
    """Nothing catches this on purpose."""


class CutBeforeUpload(Agent):
    """An agent whose machine goes down when the trained round is on disk and not yet sent."""

    async def _train(
        self, joined: Joined, trainer: SiteTrainer, task: Task, received: Adapter, local_before: dict[str, np.ndarray]
    ) -> bool:
        await super()._train(joined, trainer, task, received, local_before)
        raise PowerCut


class Counting(Agent):
    """An agent that notes which rounds it trained."""

    def __init__(self, config: SiteConfig) -> None:
        super().__init__(config, Silent())
        self.trained: list[int] = []

    async def _train(
        self, joined: Joined, trainer: SiteTrainer, task: Task, received: Adapter, local_before: dict[str, np.ndarray]
    ) -> bool:
        self.trained.append(task.round)
        return await super()._train(joined, trainer, task, received, local_before)


async def test_an_agent_stopped_while_training_goes_on_after_a_restart_with_the_same_result(materials, tmp_path):
    expected = await undisturbed(materials, tmp_path / "undisturbed")
    store = federation.create_store(tmp_path, materials.adapter, TWO)
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(Interrupted(config, Silent()).run(once=True))
        again = Counting(config)
        other = federation.agents_of(materials, tmp_path, running.address, ("philips",))
        await federation.finish(again, *other)
    assert again.trained == [1, 2]
    assert federation.outcome(store)[2].digest == expected.digest


async def test_a_round_trained_before_a_power_cut_is_sent_from_the_outbox_and_not_trained_again(materials, tmp_path):
    expected = await undisturbed(materials, tmp_path / "undisturbed")
    store = federation.create_store(tmp_path, materials.adapter, TWO)
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        with pytest.raises(ExceptionGroup) as caught:
            await CutBeforeUpload(config, Silent()).run(once=True)
        assert caught.group_contains(PowerCut)
        again = Counting(config)
        other = federation.agents_of(materials, tmp_path, running.address, ("philips",))
        await federation.finish(again, *other)
    assert again.trained == [2]
    assert federation.outcome(store)[2].digest == expected.digest


async def test_agents_live_through_a_restart_of_the_aggregator(materials, tmp_path):
    """grpc/grpc#38290: channels of some releases never reconnect; an agent makes a new one."""
    store = federation.create_store(tmp_path, materials.adapter, TWO)
    async with serve(store) as running:
        address = running.address
        first = asyncio.create_task(
            federation.finish(*federation.agents_of(materials, tmp_path, address, ("siemens",)))
        )
        await federation.arrived(store, 1, "siemens")
    await asyncio.sleep(0.5)
    assert not first.done()
    async with serve(store, listen=address) as running:
        await federation.finish(*federation.agents_of(materials, tmp_path, address, ("philips",)))
        await first
    federation.assert_finished(store)


def hurried_plan(materials: Materials, rounds: int) -> setup.FederationPlan:
    """Three sites, of which two are enough when a few seconds have passed."""
    return setup.FederationPlan(
        name=NAME,
        adapter=materials.adapter,
        parameters=federation.FEW_STEPS,
        sites=dict.fromkeys(SITES),
        rounds=rounds,
        quorum=2,
        deadline_s=3.0,
        grace_s=0.0,
    )


class Slow(Agent):
    """An agent that needs longer for a step than a round may take."""

    def _on_step(self, step: int, steps: int, optimiser: Any) -> None:
        super()._on_step(step, steps, optimiser)
        if not self._heartbeat.abandoned.is_set():
            self._heartbeat.abandoned.wait(20)


async def test_a_site_too_late_for_the_last_round_stops_training_and_still_gets_its_report(
    materials, tmp_path, monkeypatch
):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.2)
    store = str(tmp_path / "fed.db")
    setup.create(store, hurried_plan(materials, rounds=1), time.time())
    async with serve(store) as running:
        late = Slow(federation.site_config(materials, tmp_path, running.address, "ge"), Silent())
        await federation.finish(late, *federation.agents_of(materials, tmp_path, running.address, TWO))
    federation.assert_finished(store, rounds=1)
    assert sorted(federation.order_of_arrival(store, 1)) == sorted(TWO)
    report = json.loads((tmp_path / "state-ge" / REPORT).read_text())
    assert report["adapter"]["version"] == 1
    assert set(report["arms"]) == set(ARMS)


async def test_a_site_that_joins_after_the_first_round_has_a_whole_report_too(materials, tmp_path):
    store = str(tmp_path / "fed.db")
    setup.create(store, hurried_plan(materials, rounds=2), time.time())
    async with serve(store) as running:
        others = federation.agents_of(materials, tmp_path, running.address, TWO)
        early = asyncio.create_task(federation.finish(*others))
        await federation.until(lambda: federation.outcome(store)[1] > 0)
        late = Counting(federation.site_config(materials, tmp_path, running.address, "ge"))
        await federation.finish(late)
        await early
    federation.assert_finished(store)
    report = json.loads((tmp_path / "state-ge" / REPORT).read_text())
    assert 1 not in late.trained
    assert report["adapter"]["version"] == 2
    assert all(report["arms"][arm]["test"]["auc"] is not None for arm in ARMS)


async def test_an_evicted_site_stops_and_is_told_why_while_the_others_finish(materials, tmp_path):
    store = federation.create_store(tmp_path, materials.adapter, SITES, rounds=1)
    async with serve(store) as running:
        out, *others = federation.agents_of(materials, tmp_path, running.address, ("ge", *TWO))
        leaving = asyncio.create_task(out.run(once=True))
        await federation.arrived(store, 1, "ge")
        await steering.evict(running.federation, "anna", "ge", "left the study", allow_quorum=2)
        with pytest.raises(Evicted, match="the coordinator evicted this site: left the study"):
            await leaving
        await federation.finish(*others)
    federation.assert_finished(store, rounds=1)


@pytest.mark.parametrize(
    "threads", [{"OMP_NUM_THREADS": "1"}, {"OPENBLAS_NUM_THREADS": "4"}], ids=["one", "as many as numpy starts"]
)
async def test_sigterm_ends_a_waiting_agent_with_130_and_it_goes_on_where_it_was(materials, tmp_path, threads):
    inherited = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    store = federation.create_store(tmp_path, materials.adapter, TWO, rounds=1)
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        process = await asyncio.create_subprocess_exec(
            federation.program("site-agent"),
            *map(str, federation.agent_arguments(config)),
            stderr=asyncio.subprocess.PIPE,
            env={**inherited, **threads},
        )
        await federation.arrived(store, 1, "siemens")
        process.send_signal(signal.SIGTERM)
        _, said = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 130, said
        assert STOPPED_SAFELY in said.decode()
        again = Counting(config)
        await federation.finish(again, *federation.agents_of(materials, tmp_path, running.address, ("philips",)))
    assert again.trained == []
    federation.assert_finished(store, rounds=1)


def test_an_aggregator_that_has_answered_a_call_has_still_not_loaded_torch(materials, tmp_path):
    store = federation.create_store(tmp_path, materials.adapter, TWO)
    heavy = ("torch", "monai", "nibabel", "scipy", "sklearn", "matplotlib", "site_agent")
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print([name for name in {heavy!r} if name in sys.modules]))\n"
        f"sys.argv = ['aggregator', 'serve', '--store', {store!r}, '--plain', '--listen', '127.0.0.1:0']\n"
        "from aggregator.cli import main\n"
        "main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=federation.PROCESS_ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split("listening on ")[1].split()[0]
        answered = federation.run_program("aggregator", "pause", "--aggregator", address, "--plain")
        process.terminate()
        rest, _ = process.communicate(timeout=20)
    assert (answered.returncode, process.returncode) == (0, 0)
    assert rest.splitlines()[-1] == "[]"


class Lingering(Agent):
    """An agent whose last comparison takes a while; it counts the calls that ended meanwhile."""

    async def _finish(self, joined: Joined, trainer: SiteTrainer, task: Task, *, stays: bool) -> None:
        with capture_logs() as events:
            await federation.until(lambda: sum(_is_heartbeat(event, joined.site) for event in events) >= 2)
        await super()._finish(joined, trainer, task, stays=stays)


def _is_heartbeat(event: Any, site: str) -> bool:
    return (event.get("side"), event.get("site"), event.get("rpc")) == ("site", site, "AwaitRound")


async def test_an_agent_is_heard_of_whatever_it_is_busy_with(materials, tmp_path, monkeypatch):
    """Not only while it trains: a silent minute would let another agent take its certificate."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.1)
    store = federation.create_store(tmp_path, materials.adapter, TWO)
    async with serve(store) as running:
        first, second = TWO
        lingering = Lingering(federation.site_config(materials, tmp_path, running.address, first), Silent())
        await federation.finish(lingering, *federation.agents_of(materials, tmp_path, running.address, (second,)))
    federation.assert_finished(store)

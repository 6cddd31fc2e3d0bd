"""Whole federations of real agents under every recipe: version 0 does not travel, a kill costs nothing, all ends well."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from aggregator import verify
from aggregator.store import engine, federations
from experiments import simulation
from shared.adapter import Adapter
from shared.contract import ARMS
from shared.methods import METHODS
from shared.recipe import INSTALLED, factor_of
from site_agent import predict
from site_agent.agent import REPORT, Agent
from site_agent.data.cohort import Cohort, labels, load_pair
from site_agent.training import metrics
from site_agent.training.site import SiteTrainer, load_base
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import NAME, Materials
from tests.support import methods
from tests.support.serving import serve

pytestmark = pytest.mark.integration

TWO = ("siemens", "philips")
ROUNDS = 3


async def run(materials: Materials, folder: Path, kind: type[Agent] = Agent, **parameters: str) -> Adapter:
    """Run a federation of two sites to its end; return its last version."""
    store = federation.create_store(folder, materials.adapter, TWO, ROUNDS, **parameters)
    async with serve(store) as running:
        await federation.finish(*federation.agents_of(materials, folder, running.address, TWO, kind))
    federation.assert_finished(store, ROUNDS)
    opened = engine.open_store(store)
    assert [check.difference for check in verify.verify(opened, NAME, None)] == [""] * ROUNDS
    opened.close()
    return federation.outcome(store)[2]


def fitting(materials: Materials, folder: Path, recipe: str, **choices: Any) -> Materials:
    """Return the materials with an adapter that a recipe can train."""
    wanted = {**methods.choices(recipe, residual_rank=federation.TINY.enc_embed_dim), **choices}
    if not wanted:
        return materials
    adapter = federation.save_adapter(materials.backbone, folder / "v0.safetensors", **wanted)
    return Materials(materials.backbone, adapter, materials.cohorts)


def in_one_process(materials: Materials, folder: Path) -> Adapter:
    """Return what the federation that was run in `folder` ends with when nothing of it is sent."""
    opened = engine.open_store(str(folder / "fed.db"))
    contract = opened.read(federations.contract, NAME)
    opened.close()
    trainers = {}
    for site in TWO:
        config = federation.site_config(materials, folder / "alone", "127.0.0.1:1", site)
        cohort, frames = Cohort.load(config.cohort), contract.manifest.metadata.frames
        loaded = load_base(config.weights, config.weights_size, frames)
        trainers[site] = SiteTrainer(config, site, contract, loaded, cohort)
    *_, last = simulation.federate(contract, Adapter.read(materials.adapter), trainers)
    return last.version


@pytest.mark.parametrize(
    ("recipe", "rank_local"), [(name, str(rank)) for name in INSTALLED for rank in methods.ranks_local(name, rank=4)]
)
async def test_every_recipe_ends_with_a_report_and_a_model_that_judges_as_it_says(
    materials, tmp_path, recipe, rank_local
):
    """And with the same bytes as in one process: what `experiments` measure is what agents and aggregator do."""
    made = fitting(materials, tmp_path, recipe)
    final = await run(made, tmp_path / "fed", recipe=recipe, rank_local=rank_local)
    initial = Adapter.read(made.adapter)
    trains_global = any("global" in phase.trained for phase in METHODS[recipe].passes)
    shared = {factor for number in (1, 2, 3) for factor in methods.recipe(recipe).shared(number)}
    for name, value in final.tensors.items():
        moves = trains_global and factor_of(name) in {None, *shared}
        assert np.array_equal(value, initial.tensors[name]) == (not moves), name
    assert in_one_process(made, tmp_path / "fed").digest == final.digest
    folder, cases = tmp_path / "fed/state-siemens", Cohort.load(materials.cohorts / "siemens").test()
    report = json.loads((folder / REPORT).read_text())
    assert set(report["arms"]) == set(ARMS)
    model = predict.site_model(materials.backbone, "", folder)
    margins = np.array([model.judge(load_pair(case)).margin for case in cases])
    assert metrics.auc(margins, labels(cases)) == pytest.approx(report["arms"]["dual"]["test"]["auc"])


async def test_a_model_without_low_rank_parts_is_not_exported_and_that_is_said(materials, tmp_path):
    made = fitting(materials, tmp_path, "head-only", rank=0)
    await run(made, tmp_path / "fed", recipe="head-only", rank_local="0")
    arguments = ("--state", tmp_path / "fed/state-siemens", "--weights", made.backbone, "--out", tmp_path / "peft")
    refused = await federation.run_beside("site-agent", "export", *arguments)
    assert refused.returncode != 0
    assert "this adapter has rank 0" in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_what_a_report_says_of_an_update_is_the_most_that_left(materials, tmp_path):
    with capture_logs() as events:
        await run(materials, tmp_path, recipe="rolora", codec="int8+zstd")
    sent = [event["bytes"] for event in events if event["event"] == "update_accepted"]
    report = json.loads((tmp_path / "state-siemens" / REPORT).read_text())
    assert len(set(sent)) > 1
    assert max(sent) <= report["update"]["bytes"] < report["adapter"]["bytes"] / 4
    assert report["update"]["parameters"] < report["adapter"]["parameters"]


def downloads_of(events: list[Any], site: str) -> list[int]:
    """Return tensor bytes of each of a site's downloads."""
    return [e["payload_bytes_down"] for e in events if e.get("rpc") == "FetchAdapter" and e["side"] == site]


async def test_version_0_does_not_travel(materials, tmp_path):
    with capture_logs() as events:
        await run(materials, tmp_path)
    drawn = [event["digest"] for event in events if event["event"] == "version_0_drawn"]
    assert drawn == [Adapter.read(materials.adapter).digest] * len(TWO)
    assert len(downloads_of(events, "site")) == len(TWO) * ROUNDS  # the versions 1 to 3


async def test_a_version_0_that_nobody_can_draw_is_downloaded(materials, tmp_path):
    """As if another release of torch had drawn it: other numbers than the seed gives here."""
    drawn = Adapter.read(materials.adapter)
    moved = {name: (value * np.float32(1.5)).astype(np.float32) for name, value in drawn.tensors.items()}
    other = Adapter(drawn.manifest, 0, "", moved)
    other.write(tmp_path / "v0.safetensors")
    elsewhere = Materials(materials.backbone, tmp_path / "v0.safetensors", materials.cohorts)
    with capture_logs() as events:
        await run(elsewhere, tmp_path / "fed")
    assert not [event for event in events if event["event"] == "version_0_drawn"]
    assert len(downloads_of(events, "site")) == len(TWO) * (ROUNDS + 1)


class Interrupted(Agent):
    """An agent that is asked to leave in the middle of every round's training, once."""

    def _on_step(self, step: int, steps: int, optimiser: Any) -> None:
        super()._on_step(step, steps, optimiser)
        marker = self._state.folder / f"interrupted-{self._heartbeat.task.round if self._heartbeat.task else 0}"
        if (
            self._heartbeat.task is not None
            and self._heartbeat.task.instruction == "TRAIN"
            and not marker.exists()
            and step > 1
        ):
            marker.touch()
            self._stopping.set()
            self._loop.call_soon_threadsafe(self.stop)

    async def run(self, *, once: bool) -> None:
        self._loop = asyncio.get_running_loop()
        await super().run(once=once)


async def to_the_end(materials: Materials, folder: Path, address: str, site: str) -> int:
    """Start a site's agent again whenever it has left; return how often."""
    for times in range(10):
        try:
            await Interrupted(federation.site_config(materials, folder, address, site), Silent()).run(once=True)
        except asyncio.CancelledError:
            continue
        return times
    raise AssertionError("the agent never came to its end")


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [
        ("med-duallora", {"codec": "int4"}),
        ("ffa-lora", {}),
        ("fedsa-lora", {"codec": "int8+zstd"}),
        ("rolora", {"codec": "topk"}),
        ("rolora", {"rank_local": "0", "broadcast_codec": "int8"}),
        ("ditto-lora", {"codec": "int8"}),
    ],
)
async def test_sites_that_leave_in_every_round_and_come_back_end_with_the_same_bytes(
    materials, tmp_path, recipe, parameters
):
    made = fitting(materials, tmp_path, recipe)
    undisturbed = await run(made, tmp_path / "undisturbed", recipe=recipe, **parameters)
    folder = tmp_path / "interrupted"
    store = federation.create_store(folder, made.adapter, TWO, ROUNDS, recipe=recipe, **parameters)
    async with serve(store) as running, asyncio.timeout(federation.TIMEOUT_S):
        starts = await asyncio.gather(*(to_the_end(made, folder, running.address, site) for site in TWO))
    assert max(starts) == ROUNDS
    assert federation.outcome(store)[2].digest == undisturbed.digest
    for site in TWO:
        for name in ("rounds/0003/local.safetensors", "rounds/0003/delta.bin"):
            one, other = (tmp_path / kind / f"state-{site}" / name for kind in ("undisturbed", "interrupted"))
            assert one.read_bytes() == other.read_bytes(), (site, name)


@pytest.mark.parametrize(
    ("recipe", "choices", "parameters"),
    [
        ("rolora", {}, {"codec": "int4+zstd", "broadcast_codec": "topk+zstd"}),
        ("med-duallora", {}, {"server_optimiser": "adam", "server_lr": "0.03", "weighting": "capped"}),
        (
            "med-duallora",
            {"head_policy": "global+local"},
            {"gate": "true", "orthogonality": "1", "local_norm_cap": "0.1"},
        ),
        (
            "ffa-lora",
            {"dense": ("enc_down_dict.",)},
            {"server_optimiser": "momentum", "proximal": "0.1", "codec": "int8"},
        ),
        (
            "fedex-lora",
            {},
            {"codec": "int8", "weighting": "uniform", "shrinkage_patients": "5", "logit_adjustment": "true"},
        ),
    ],
)
async def test_in_one_process_a_federation_ends_with_the_same_bytes_as_over_gRPC(
    materials, tmp_path, recipe, choices, parameters
):
    """What goes beyond the recipes by themselves, which are above."""
    made = fitting(materials, tmp_path, recipe, **choices)
    final = await run(made, tmp_path / "fed", recipe=recipe, **parameters)
    assert in_one_process(made, tmp_path / "fed").digest == final.digest

"""What goes wrong at a site: its person is told in one line what, with an exit code, and the federation goes on.

What a coordinator or a hostile peer can get wrong is in test_aggregator_cli.py and test_aggregator_hostile.py.
"""

import asyncio
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog

from shared import protocol
from shared.adapter import Adapter
from shared.errors import InputError, InvalidAdapter, InvalidUpdate, UpdateTooLarge
from shared.layout import Layout
from site_agent.agent import Agent
from site_agent.client import Joined, Task
from site_agent.config import SiteConfig
from site_agent.data import cases as case_table
from site_agent.egress import Update
from site_agent.state import State, read_contract
from site_agent.training.site import SiteTrainer
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration

SITES = ("siemens", "philips")
EXIT_INPUT, EXIT_UNREACHABLE = 3, 4


def assert_refused(finished, code: int, *parts: str) -> None:
    """Fail unless a command ended with this code and one line on standard error that has all the parts."""
    last = finished.stderr.splitlines()[-1] if finished.stderr else ""
    assert finished.returncode == code, finished.stderr
    assert "Traceback" not in finished.stderr
    for part in parts:
        assert part in last


async def run_agent(config: SiteConfig):
    """Run `site-agent` to its end, its log in a file as in service."""
    arguments = federation.agent_arguments(replace(config, log=config.state.with_suffix(".jsonl")))
    return await federation.run_beside("site-agent", *arguments)


async def assert_goes_on(materials: Materials, folder: Path, store: str, address: str) -> None:
    """Fail unless both sites, now as they should be, finish the federation."""
    await federation.finish(*federation.agents_of(materials, folder, address, SITES))
    federation.assert_finished(store, rounds=1)


@pytest.fixture
def store(materials, tmp_path) -> str:
    """A federation of two sites and one round."""
    return federation.create_store(tmp_path, materials.adapter, SITES, rounds=1)


# --- the model ------------------------------------------------------------------------------------------------------


async def test_wrong_base_weights_are_refused_with_both_hashes(materials, store, tmp_path):
    other = federation.save_random_backbone(tmp_path / "other", seed=2)
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens", weights=other)
        assert_refused(
            await run_agent(config),
            EXIT_INPUT,
            "error: base model: federation 'hearts' adapts ",
            "site 'siemens' has ",
            "; give the agent the weights the federation was made with",
        )
        await assert_goes_on(materials, tmp_path, store, running.address)


async def another_rank(materials: Materials, folder: Path) -> Path:
    """Return the state folder of a site that took part with rank 8, global and local."""
    rank_8 = federation.save_adapter(materials.backbone, folder / "rank8.safetensors", rank=8)
    store = federation.create_store(folder / "other", rank_8, SITES, rounds=1, rank_local="8")
    async with serve(store) as running:
        await federation.finish(*federation.agents_of(materials, folder / "other", running.address, SITES))
    return folder / "other/state-siemens"


async def test_a_state_folder_of_an_adapter_of_another_rank_waits_for_a_person(materials, store, tmp_path):
    state = await another_rank(materials, tmp_path)
    async with serve(store, identity_s=0.1) as running:
        agent = Agent(federation.site_config(materials, tmp_path, running.address, "siemens", state=state), Silent())
        with structlog.testing.capture_logs() as events:
            going = asyncio.create_task(agent.run(once=True))
            await federation.until(lambda: any(one["event"] == "consent_withheld" for one in events))
            agent.stop()
            with pytest.raises(asyncio.CancelledError):
                await going
        said = next(one["reason"] for one in events if one["event"] == "consent_withheld")
        assert "adapter rank: agreed 8, offered 4" in said
        assert f"site-agent accept --state {state}" in said
        assert read_contract(state).manifest.metadata.rank == 8
        await assert_goes_on(materials, tmp_path, store, running.address)


async def test_a_local_adapter_of_another_rank_is_refused_by_the_tensor_s_name(materials, store, tmp_path):
    foreign = tmp_path / "state-siemens/rounds/0000"
    shutil.copytree(await another_rank(materials, tmp_path) / "rounds/0001", foreign)
    async with serve(store) as running:
        agent = Agent(federation.site_config(materials, tmp_path, running.address, "siemens"), Silent())
        message = r"tensor local\.encoder\.blocks\.1\.attn\.kv\.lora_A\.weight has shape \[8, 16\], this model needs \[4, 16\]"
        with pytest.raises(InvalidAdapter, match=message):
            await agent.run(once=True)
        shutil.rmtree(foreign)
        await assert_goes_on(materials, tmp_path, store, running.address)


# --- the cohort -----------------------------------------------------------------------------------------------------


async def test_a_missing_cohort_folder_is_named(materials, store, tmp_path):
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens", cohort=tmp_path / "nowhere")
        assert_refused(
            await run_agent(config),
            EXIT_INPUT,
            f"cohort folder {tmp_path / 'nowhere'} does not exist; run `site-agent prepare` or correct the path",
        )
        await assert_goes_on(materials, tmp_path, store, running.address)


async def test_an_unreadable_nifti_is_named_by_its_case_and_the_repaired_site_goes_on(materials, store, tmp_path):
    cohort = Path(shutil.copytree(materials.cohorts / "siemens", tmp_path / "cohorts/siemens"))
    case = next(case for case in case_table.read(cohort) if case.split == "train" and case.fold != 0)
    whole = case.ed_path.read_bytes()
    case.ed_path.write_bytes(whole[: len(whole) // 2])
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens", cohort=cohort)
        assert_refused(await run_agent(config), EXIT_INPUT, f"case {case.key}: ", "; prepare the cohort again")
        case.ed_path.write_bytes(whole)
        await federation.finish(
            Agent(config, Silent()), *federation.agents_of(materials, tmp_path, running.address, ("philips",))
        )
    federation.assert_finished(store, rounds=1)


async def test_an_empty_class_is_named(materials, store, tmp_path):
    cohort = Path(shutil.copytree(materials.cohorts / "siemens", tmp_path / "cohorts/siemens"))
    rows = case_table.read(cohort)
    case_table.write(cohort / "cases.csv", [replace(case, label=1) for case in rows])
    count = sum(case.split == "train" for case in rows)
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens", cohort=cohort)
        assert_refused(
            await run_agent(config), EXIT_INPUT, f"empty class: none of the {count} training case(s) in ", "is normal"
        )
        await assert_goes_on(materials, tmp_path, store, running.address)


async def test_a_class_that_only_the_validation_fold_has_is_an_empty_class(materials, store, tmp_path):
    cohort = Path(shutil.copytree(materials.cohorts / "siemens", tmp_path / "cohorts/siemens"))
    rows = [case for case in case_table.read(cohort) if case.label == 1 or case.split == "test" or case.fold == 0]
    case_table.write(cohort / "cases.csv", rows)
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens", cohort=cohort)
        with pytest.raises(InputError, match=r"empty class: no normal case .* outside validation fold 0; set another"):
            await Agent(config, Silent()).run(once=True)
        await assert_goes_on(materials, tmp_path, store, running.address)


# --- the connection -------------------------------------------------------------------------------------------------


async def test_an_unreachable_aggregator_is_waited_for_and_the_agent_says_until_when(materials, tmp_path):
    address = f"127.0.0.1:{federation.free_port()}"
    config = federation.site_config(materials, tmp_path, address, "siemens", give_up_after_s=2.0)
    finished = await run_agent(config)
    assert_refused(
        finished,
        EXIT_UNREACHABLE,
        f"no answer from {address} for 2 s (UNAVAILABLE: ",
        "start the agent again: nothing is lost",
    )
    events = [json.loads(line) for line in config.state.with_suffix(".jsonl").read_text().splitlines()]
    tries = [event for event in events if event["event"] == "aggregator_unreachable"]
    assert len(tries) >= 2
    assert tries[0]["gives_up_in_s"] == 2
    assert {event["address"] for event in tries} == {address}
    assert all(0 <= event["retry_in_s"] <= 5 for event in tries)


async def test_an_agent_that_started_before_its_aggregator_takes_part_when_that_comes(materials, store, tmp_path):
    address = f"127.0.0.1:{federation.free_port()}"
    early = asyncio.create_task(federation.finish(*federation.agents_of(materials, tmp_path, address, SITES)))
    await asyncio.sleep(1.0)
    assert not early.done()
    async with serve(store, listen=address):
        await early
    federation.assert_finished(store, rounds=1)


async def test_two_agents_with_one_site_s_certificate_are_told_apart(materials, store, tmp_path):
    tls = federation.make_certificates(tmp_path / "certs", SITES)
    async with serve(store, tls=tls["aggregator"]) as running:
        configs = [federation.site_config(materials, tmp_path, running.address, site, tls=tls[site]) for site in SITES]
        first = asyncio.create_task(federation.finish(Agent(configs[0], Silent())))
        await federation.arrived(store, 1, "siemens")
        second = tmp_path / "second"
        second.mkdir()
        (second / "agent.json").write_text(f'{{"agent_id": "{"a" * 32}", "made_at": 0.0}}')  # a new one would wait
        assert_refused(
            await run_agent(replace(configs[0], state=second)),
            EXIT_INPUT,
            "another agent uses the certificate of site 'siemens': agent ",
            "Stop one of the two",
        )
        await federation.finish(Agent(configs[1], Silent()))
        await first
    federation.assert_finished(store, rounds=1)


async def test_one_state_folder_is_for_one_agent(materials, store, tmp_path):
    held = State(tmp_path / "state-siemens")
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        with pytest.raises(InputError, match="another agent runs on state folder"):
            Agent(config, Silent())
        held.close()
        await assert_goes_on(materials, tmp_path, store, running.address)


async def test_an_agent_of_an_unknown_protocol_version_is_told_what_to_upgrade(materials, store, tmp_path):
    """The agent is this one in every other respect; only the version it states is from the future."""
    future = "import site_agent.client as c; c.VERSION = '9.4'; from site_agent.cli import main; main()"
    async with serve(store) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", future, *map(str, federation.agent_arguments(config))),
            stderr=asyncio.subprocess.PIPE,
            env=federation.PROCESS_ENVIRONMENT,
        )
        _, stderr = await process.communicate()
        assert process.returncode == EXIT_INPUT
        expected = f"error: the agent speaks protocol 9.4, the aggregator {protocol.VERSION}: upgrade the aggregator"
        assert stderr.decode().splitlines()[-1] == expected
        await assert_goes_on(materials, tmp_path, store, running.address)


# --- the update -----------------------------------------------------------------------------------------------------


def with_values(update: Update, layout: Layout, tensors: dict[str, np.ndarray]) -> Update:
    return Update(update.facts, layout, layout.join(tensors), derived_layout=False)


def truncated(update: Update) -> Update:
    return Update(update.facts, update.layout, update.payload[:-4])


def oversized(update: Update) -> Update:
    return Update(update.facts, update.layout, update.payload + bytes(4))


def not_finite(update: Update) -> Update:
    return Update(update.facts, update.layout, update.payload[:-4] + np.float32(np.nan).tobytes())


def renamed(update: Update) -> Update:
    tensors = dict(update.layout.split(update.payload))
    tensors["base_model.model.head.weight"] = tensors.pop("base_model.model.pred_head_dict.sax.weight")
    return with_values(update, Layout.of(tensors), tensors)


def of_another_rank(update: Update) -> Update:
    tensors = {
        name: value[:3] if name.endswith("lora_A.weight") else value
        for name, value in update.layout.split(update.payload).items()
    }
    return with_values(update, Layout.of(tensors), tensors)


class Spoiling(Agent):
    """An agent that spoils the update it trained before it is sent."""

    def __init__(self, config: SiteConfig, spoil: Callable[[Update], Update]) -> None:
        super().__init__(config, Silent())
        self._spoil = spoil

    async def _train(
        self, joined: Joined, trainer: SiteTrainer, task: Task, received: Adapter, local_before: dict[str, np.ndarray]
    ) -> bool:
        await super()._train(joined, trainer, task, received, local_before)
        finished = self._state.rounds.find(task.round)
        assert finished is not None
        await self._client.upload(self._spoil(finished.update))
        return True


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (truncated, InvalidUpdate, "an update of 3836 bytes was announced, round 1 takes 3840"),
        (oversized, UpdateTooLarge, "an update of 3844 bytes was announced, round 1 takes 3840"),
        (not_finite, InvalidUpdate, "tensor 'base_model.model.pred_head_dict.sax.weight' has 1 non-finite values"),
        (renamed, InvalidAdapter, "extra tensor 'base_model.model.head.weight'"),
        (of_another_rank, InvalidAdapter, "lora_A.weight F32[3, 16], expected base_model.model.encoder.blocks.1"),
    ],
)
async def test_a_spoiled_update_is_refused_and_the_honest_one_is_taken(
    materials, store, tmp_path, spoil, kind, message
):
    async with serve(store) as running:
        agent = Spoiling(federation.site_config(materials, tmp_path, running.address, "siemens"), spoil)
        with pytest.raises(kind, match=re.escape(message)):
            await agent.run(once=True)
        await assert_goes_on(materials, tmp_path, store, running.address)


# --- settings --------------------------------------------------------------------------------------------


def test_an_unknown_key_in_the_settings_is_named_with_those_there_are(tmp_path):
    (tmp_path / "site.toml").write_text('aggregator = "127.0.0.1:1"\ncohrot = "c"\n')
    finished = federation.run_program("site-agent", "--config", tmp_path / "site.toml")
    assert_refused(finished, EXIT_INPUT, "unknown key 'cohrot'", "cohort")

"""Differential privacy in real federations: paid for before it is trained, stopped before the budget is passed, killed and gone on
with, and no figure that leaves.
"""

import asyncio
import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from shared.errors import InputError
from site_agent import dry_run, ledger, permission
from site_agent import state as states
from site_agent.agent import Agent
from site_agent.cli import app
from site_agent.config import SiteConfig
from site_agent.consent import ConsentWithheld, Pins
from site_agent.egress import Update
from site_agent.ledger import LEDGER
from site_agent.privacy import accountant, debits
from site_agent.privacy.accountant import Release
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration

PRIVATE = {
    "mode": "non-interference",
    "class_balanced": "false",
    "dp_noise": "2",
    "dp_clip": "0.1",
    "dp_epsilon": "50",
}
LONG = {"local_epochs": "40", "batch_size": "4"}
SITE = "siemens"
ROUND = Release(q=8 / 21, sigma=2.0, steps=3)
"""A round of 21 training cases outside of fold 0 in batches of 8 on average."""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permission, "CONSENT_EVERY_S", 0.1)


def store(folder: Path, materials: Materials, *sites: str, rounds: int = 2, **parameters: str) -> str:
    of = {**PRIVATE, **parameters}
    return federation.create_store(folder, materials.adapter, sites or (SITE,), rounds=rounds, recipe="ffa-lora", **of)


def lines(state: Path) -> list[Mapping[str, Any]]:
    return [one.facts for one in debits.read(state, missing_ok=True).entries]


def said(state: Path) -> list[Mapping[str, Any]]:
    """Return what left a site, call by call."""
    return [one.facts for one in ledger.read(state / LEDGER).entries if one.event == "leaving"]


def spent(rounds: int) -> float:
    return accountant.epsilon([ROUND] * rounds, 1e-5).pld


# --- a whole federation -------------------------------------------------------------------------------------------------


async def test_a_private_federation_is_paid_for_round_by_round_and_tells_no_figure(
    materials: Materials, tmp_path: Path
) -> None:
    where = store(tmp_path, materials, *federation.SITES)
    with structlog.testing.capture_logs() as events:
        async with serve(where) as running:
            await federation.finish(*federation.agents_of(materials, tmp_path, running.address))
    federation.assert_finished(where)
    for site in federation.SITES:
        state = tmp_path / f"state-{site}"
        calls = said(state)
        assert {call["rpc"] for call in calls} <= {"Join", "BeginUpload", "UploadDelta"}
        assert all(call["says"].get("metrics", {}) == {} for call in calls)
        assert [line["round"] for line in lines(state)] == [1, 2]
        assert not (state / "privacy/key.json").exists()
        history = (state / "history.jsonl").read_text().splitlines()
        assert [json.loads(line)["version"] for line in history] == [1, 2]  # the site has its own figures
        assert json.loads((state / "report.json").read_bytes())["arms"]["dual"]["validation"]["n"]
    assert lines(tmp_path / "state-siemens")[1]["epsilon"] == pytest.approx(spent(2))
    told = [event for event in events if event["event"] in ("round_trained", "version_evaluated")]
    assert len(told) == 3 * 4
    assert not any(
        set(event) & {"train_loss", "auc", "specificity", "sensitivity", "cases", "duration_s"} for event in told
    )
    debited = [event for event in events if event["event"] == "privacy_debited" and event["round"] == 1]
    assert len(debited) == 3


async def test_a_client_that_joined_a_private_federation_reports_no_evaluation(
    materials: Materials, tmp_path: Path
) -> None:
    """Whatever its caller does: nothing of it reaches the network, nor the ledger."""
    where = store(tmp_path, materials, rounds=1)
    async with serve(where) as running:
        agent = Agent(federation.site_config(materials, tmp_path, running.address, SITE), Silent())
        await agent._join()
        before = len(said(tmp_path / "state-siemens"))
        for metrics in ({"auc": 0.9}, {}):
            with pytest.raises(InputError, match="may not be told under differential privacy"):
                await agent._client.report_evaluation(1, 1, 5, metrics)
        assert len(said(tmp_path / "state-siemens")) == before
        await agent._client.close()


async def test_the_key_is_destroyed_before_anything_made_with_it_leaves(materials: Materials, tmp_path: Path) -> None:
    where, seen = store(tmp_path, materials), list[tuple[bool, bool]]()

    class Watched(Agent):
        def _on_step(self, *_: Any) -> None:
            pytest.fail("heartbeats would say how far it is")

        async def _send(self, update: Update, fresh: bool = False) -> None:
            key, upload = self._state.folder / "privacy/key.json", self._client.upload
            before = key.exists()

            async def watched(update: Update, *, fresh: bool = False) -> None:
                seen.append((before, key.exists()))
                await upload(update, fresh=fresh)

            self._client.upload = watched  # type: ignore[method-assign]
            try:
                await super()._send(update, fresh)
            finally:
                self._client.upload = upload  # type: ignore[method-assign]

    async with serve(where) as running:
        await federation.finish(Watched(federation.site_config(materials, tmp_path, running.address, SITE), Silent()))
    assert seen == [(True, False)] * 2


# --- the budget -------------------------------------------------------------------------------------------------------


async def test_the_agent_stops_before_the_budget_is_passed_says_so_and_stays(
    materials: Materials, tmp_path: Path
) -> None:
    where = store(tmp_path, materials, rounds=4, dp_epsilon=f"{(spent(2) + spent(3)) / 2:.6f}")
    with structlog.testing.capture_logs() as events:
        async with serve(where) as running:
            config = federation.site_config(materials, tmp_path, running.address, SITE)
            agent = Agent(config, Silent())
            going = asyncio.create_task(agent.run(once=True))
            reasons: list[str] = []
            while len(reasons) < 2:
                await asyncio.sleep(0.05)
                assert not going.done()
                reasons = [event["reason"] for event in events if event["event"] == "consent_withheld"]
            assert federation.order_of_arrival(where, 2) == [SITE]
            assert federation.order_of_arrival(where, 3) == []
            agent.stop()
            with pytest.raises(asyncio.CancelledError):
                await going
    assert reasons[0].startswith("epsilon: the contract allows ")
    assert f"{spent(2):.4g} is spent" in reasons[0]
    assert f"with round 3 it would be {spent(3):.4g}" in reasons[0]
    assert [line["round"] for line in lines(config.state)] == [1, 2]
    assert {call["round"] for call in said(config.state) if call["rpc"] == "UploadDelta"} == {1, 2}
    assert not (config.state / "rounds/0003").exists()


async def test_what_was_spent_counts_under_the_next_contract(materials: Materials, tmp_path: Path) -> None:
    first = store(tmp_path / "a", materials, rounds=2)
    second = store(tmp_path / "b", materials, rounds=1, dp_epsilon=f"{spent(2) * 1.01:.6f}")
    config = federation.site_config(materials, tmp_path, f"127.0.0.1:{federation.free_port()}", SITE)
    async with serve(first, listen=config.aggregator):
        await federation.finish(Agent(config, Silent()))
    with structlog.testing.capture_logs() as events:
        async with serve(second, listen=config.aggregator):
            agent = Agent(config, Silent())
            going = asyncio.create_task(agent.run(once=True))
            await federation.until(lambda: (config.state / states.OFFERED).exists())
            await asyncio.to_thread(CliRunner().invoke, app, ["accept", "--state", str(config.state)])
            await federation.until(lambda: any("is spent" in str(event.get("reason")) for event in events))
            agent.stop()
            with pytest.raises(asyncio.CancelledError):
                await going
    assert federation.order_of_arrival(second, 1) == []
    assert len(lines(config.state)) == 2


async def test_what_left_without_noise_is_said_to_be_in_no_budget(materials: Materials, tmp_path: Path) -> None:
    first = federation.create_store(tmp_path / "a", materials.adapter, (SITE,), rounds=2)
    second = store(tmp_path / "b", materials, rounds=1)
    config = federation.site_config(materials, tmp_path, f"127.0.0.1:{federation.free_port()}", SITE)
    async with serve(first, listen=config.aggregator):
        await federation.finish(Agent(config, Silent()))
    with structlog.testing.capture_logs() as events:
        async with serve(second, listen=config.aggregator):
            going = asyncio.create_task(Agent(config, Silent()).run(once=True))
            await federation.until(lambda: (config.state / states.OFFERED).exists())
            await asyncio.to_thread(CliRunner().invoke, app, ["accept", "--state", str(config.state)])
            await asyncio.wait_for(going, federation.TIMEOUT_S)
    assert [event["count"] for event in events if event["event"] == "updates_left_without_noise"] == [2]
    shown = CliRunner().invoke(app, ["privacy", "show", "--state", str(config.state)])
    assert "2 update(s) left without noise under other contracts" in shown.output
    told = json.loads(CliRunner().invoke(app, ["privacy", "show", "--state", str(config.state), "--json"]).output)
    assert told["spent"]["updates_without_noise"] == 2


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("dp_delta", "0.05", "dp_delta: the contract says 0.05, which must be below 1 / 21"),
        ("dp_epsilon", "51", "epsilon: the contract allows 51, and a site agrees to 50 at most"),
    ],
)
async def test_privacy_in_name_alone_is_refused_at_join(
    materials: Materials, tmp_path: Path, name: str, value: str, reason: str
) -> None:
    where = store(tmp_path, materials, **{name: value})
    with structlog.testing.capture_logs() as events:
        async with serve(where) as running:
            config = federation.site_config(materials, tmp_path, running.address, SITE)
            agent = Agent(config, Silent())
            going = asyncio.create_task(agent.run(once=True))
            await federation.until(lambda: any(reason in str(event.get("reason")) for event in events))
            agent.stop()
            with pytest.raises(asyncio.CancelledError):
                await going
    assert not (config.state / "contract.json").exists()


async def test_a_site_that_pins_epsilon_takes_no_part_without_differential_privacy(
    materials: Materials, tmp_path: Path
) -> None:
    where = federation.create_store(tmp_path, materials.adapter, (SITE,), rounds=1)
    with structlog.testing.capture_logs() as events:
        async with serve(where) as running:
            pins = Pins(epsilon=8.0)
            config = federation.site_config(materials, tmp_path, running.address, SITE, agreed=pins)
            agent = Agent(config, Silent())
            going = asyncio.create_task(agent.run(once=True))
            await federation.until(lambda: any("no differential privacy" in str(one.get("reason")) for one in events))
            agent.stop()
            with pytest.raises(asyncio.CancelledError):
                await going
    assert {call["rpc"] for call in said(config.state)} == {"Join"}


# --- killed between debit and commit ------------------------------------------------------------------------------------


@asynccontextmanager
async def agent_process(config: SiteConfig) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `site-agent`, which leaves a checkpoint after every step; it is killed if it still runs at the end."""
    command = [federation.program("site-agent"), *federation.agent_arguments(config), "--checkpoint-s", "0"]
    log = ("--log", config.state.with_suffix(".jsonl"))
    process = await asyncio.create_subprocess_exec(*map(str, (*command, *log)), env=federation.PROCESS_ENVIRONMENT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def newest_checkpoint(state: Path) -> int:
    names = [path.name.rpartition("-")[2] for path in (state / "training").glob("checkpoint-*")]
    return max(map(int, names), default=0)


async def killed_in_training(config: SiteConfig) -> None:
    async with agent_process(config) as process:
        await federation.until(lambda: newest_checkpoint(config.state) >= 40)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert not (config.state / "rounds/0001").exists()
    assert [line["round"] for line in lines(config.state)] == [1]


async def to_the_end(where: str, config: SiteConfig) -> bytes:
    async with agent_process(config):
        await federation.arrived(where, 1, SITE)
    return (config.state / "rounds/0001/delta.bin").read_bytes()


def twin(materials: Materials, folder: Path, config: SiteConfig, address: str) -> SiteConfig:
    """Return the settings of an agent that was where another one is, without its checkpoints."""
    copied = federation.site_config(materials, folder, address, SITE)
    shutil.copytree(config.state, copied.state)
    shutil.rmtree(copied.state / "training")
    return copied


async def test_a_round_killed_after_its_debit_goes_on_with_the_same_bytes_and_is_debited_again_without_its_key_alone(
    materials: Materials, tmp_path: Path
) -> None:
    """From its checkpoint; in a copy of the state folder without one, from the beginning with the same key; and in a third whose
    key was lost."""
    stores = [store(tmp_path / name, materials, SITE, "ge", rounds=1, **LONG) for name in ("a", "b", "c")]
    async with serve(stores[0]) as first, serve(stores[1]) as second, serve(stores[2]) as third:
        config = federation.site_config(materials, tmp_path, first.address, SITE)
        await killed_in_training(config)
        again = twin(materials, tmp_path / "twin", config, second.address)
        lost = twin(materials, tmp_path / "lost", config, third.address)
        (lost.state / "privacy/key.json").unlink()
        sent = await to_the_end(stores[0], config)
        assert await to_the_end(stores[1], again) == sent
        assert await to_the_end(stores[2], lost) != sent
    for state in (config.state, again.state):
        assert [line["round"] for line in lines(state)] == [1]
        assert not (state / "privacy/key.json").exists()
    events = [json.loads(line)["event"] for line in config.state.with_suffix(".jsonl").read_text().splitlines()]
    assert events.count("privacy_debited") == events.count("privacy_already_paid") == 1
    assert "training_resumed" in events
    one, other = lines(lost.state)
    assert one["key"] != other["key"]
    both = accountant.epsilon([debits.release_of(one), debits.release_of(other)], 1e-5)
    assert other["epsilon"] == pytest.approx(both.pld)


async def test_an_agent_whose_journal_lost_a_debit_trains_nothing(materials: Materials, tmp_path: Path) -> None:
    where = store(tmp_path, materials, SITE, "ge", rounds=2)
    async with serve(where) as running:
        config, other = (federation.site_config(materials, tmp_path, running.address, name) for name in (SITE, "ge"))
        agent = Agent(config, Silent())
        going = asyncio.create_task(agent.run(once=True))
        await federation.arrived(where, 1, SITE)
        agent.stop()
        with pytest.raises(asyncio.CancelledError):
            await going
        (config.state / "privacy/debits.jsonl").unlink()
        beside = Agent(other, Silent())
        going = asyncio.create_task(beside.run(once=True))  # with it round 1 is closed, and round 2 begins
        with pytest.raises(InputError, match=r"1 debit\(s\) that the egress ledger knows of are missing"):
            await asyncio.wait_for(Agent(config, Silent()).run(once=True), federation.TIMEOUT_S)
        assert SITE not in federation.order_of_arrival(where, 2)
        beside.stop()
        with pytest.raises(asyncio.CancelledError):
            await going


# --- at the site --------------------------------------------------------------------------------------------------------


async def test_show_says_what_was_spent(materials: Materials, tmp_path: Path) -> None:
    where = store(tmp_path, materials)
    async with serve(where) as running:
        config = federation.site_config(materials, tmp_path, running.address, SITE)
        await federation.finish(Agent(config, Silent()))
    shown = CliRunner().invoke(app, ["privacy", "show", "--state", str(config.state)])
    assert shown.exit_code == 0
    assert f"spent: epsilon {spent(2):.4f} at delta 1e-05 (by RDP " in shown.output
    assert f"budget: epsilon 50 by the last contract; {50 - spent(2):.4f} is left" in shown.output
    told = json.loads(CliRunner().invoke(app, ["privacy", "show", "--state", str(config.state), "--json"]).output)
    assert told["spent"]["epsilon"] == pytest.approx(spent(2))
    assert [one["round"] for one in told["releases"]] == [1, 2]
    noted = CliRunner().invoke(app, ["privacy", "show", "--state", str(config.state), "--head", told["head"][:12]])
    assert noted.exit_code == 0
    foreign = CliRunner().invoke(app, ["privacy", "show", "--state", str(config.state), "--head", "0" * 12])
    assert "no line has digest 000000000000" in str(foreign.exception)
    nothing = CliRunner().invoke(app, ["privacy", "show", "--state", str(tmp_path)])
    assert "nothing was ever released with differential privacy" in str(nothing.exception)


async def test_a_dry_run_uses_a_key_of_its_own_debits_nothing_and_says_so(materials: Materials, tmp_path: Path) -> None:
    where = store(tmp_path, materials, rounds=1)
    async with serve(where) as running:
        config = federation.site_config(materials, tmp_path, running.address, SITE)
        await federation.finish(Agent(config, Silent()))
    sent, debited = (config.state / "rounds/0001/delta.bin").read_bytes(), lines(config.state)
    contract = states.read_contract(config.state)
    found = [await asyncio.to_thread(dry_run.run, config, contract, None) for _ in range(2)]
    assert len({sent, found[0].update.payload, found[1].update.payload}) == 3
    assert lines(config.state) == debited
    assert found[0].upload["metrics"] == {}
    assert "ReportEvaluation" not in found[0].fields
    words = found[0].fields["differential privacy"]
    assert words["debit"].startswith("none was written")
    assert words["release"] == "3 steps, every patient in each with probability 0.381, noise 2"
    assert words["a round"].startswith(f"epsilon {spent(1):.4g} at delta 1e-05 (by RDP ")
    assert words["budget"] == "epsilon 50 affords 1 of 1 rounds beside 1 debits of this state folder"


async def test_a_dry_run_refuses_what_the_agent_would(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = store(tmp_path, materials, rounds=1)
    async with serve(where) as running:
        config = federation.site_config(materials, tmp_path, running.address, SITE)
        agent = Agent(config, Silent())
        joined, _ = await agent._join()
        await agent._client.close()
    loose = replace(joined.contract, recipe=replace(joined.contract.recipe, dp_delta=0.05))
    with pytest.raises(ConsentWithheld, match=r"dp_delta: the contract says 0\.05"):
        dry_run.run(config, loose, None)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"pip install 'med-duallora\[dp\]'"):
        dry_run.run(config, joined.contract, None)

"""What leaves a site is in its ledger before; ledger, logs and the aggregator's records say the same; a person can hold it."""

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from safetensors.numpy import load_file
from typer.testing import CliRunner

from aggregator import audit
from aggregator.store import engine, federations
from shared.contract import Contract
from site_agent import agent as agents
from site_agent import dry_run, ledger, releases
from site_agent.agent import Agent
from site_agent.cli import app
from site_agent.config import SiteConfig
from site_agent.ledger import LEDGER, Sums
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration
SITES = ("siemens", "philips")
CALLS = {"Join", "BeginUpload", "UploadDelta", "ReportEvaluation"}


def store(folder: Path, materials: Materials, **parameters: Any) -> str:
    return federation.create_store(folder / "store", materials.adapter, SITES, **parameters)


def audited(where: str, event: str) -> list[dict[str, Any]]:
    opened = engine.open_store(where)
    try:
        return [dict(one.facts) for one in audit.check(opened, federation.NAME).entries if one.event == event]
    finally:
        opened.close()


def configs(materials: Materials, folder: Path, address: str, **changes: Any) -> dict[str, SiteConfig]:
    return {site: federation.site_config(materials, folder, address, site, **changes) for site in SITES}


async def test_ledger_logs_and_the_aggregators_records_say_the_same(materials: Materials, tmp_path: Path) -> None:
    where = store(tmp_path, materials)
    with structlog.testing.capture_logs() as events:
        async with serve(where) as running:
            made = configs(materials, tmp_path, running.address)
            await federation.finish(*(Agent(config, Silent()) for config in made.values()))
    accepted = audited(where, "update_accepted")
    for site, config in made.items():
        chain = ledger.read(config.state / LEDGER)
        totals = ledger.totals(chain)
        assert CALLS - {"BeginUpload"} <= totals.by_rpc.keys()  # a small update announces itself
        assert totals.unfinished == {}
        for side in ("site", "aggregator"):
            of_side: dict[str, Sums] = {}
            for one in events:
                if (
                    one["event"] == "rpc_finished"
                    and (one["side"], one["site"] or site) == (side, site)
                    and _is(one, site)
                ):
                    of_side.setdefault(one["rpc"], Sums()).add(1, one["bytes_up"], one["payload_bytes_up"])
            assert of_side == totals.by_rpc, side
        sent = {
            (one.facts["round"], one.facts["digest"], one.facts["payload_bytes"])
            for one in chain.entries
            if one.event == "leaving" and one.facts["rpc"] == "UploadDelta"
        }
        assert sent == {(one["round"], one["digest"], one["bytes"]) for one in accepted if one["site"] == site}


def _is(event: Any, site: str) -> bool:
    """Whether an event of the site's side is of this site; the call before the first answer does not know its name yet."""
    return event["site"] == site or event["rpc"] == "Join"


async def test_the_ledger_names_tensors_and_figures_of_every_update(materials: Materials, tmp_path: Path) -> None:
    where = store(tmp_path, materials, rounds=1)
    async with serve(where) as running:
        made = configs(materials, tmp_path, running.address)
        await federation.finish(*(Agent(config, Silent()) for config in made.values()))
    entries = ledger.read(made["siemens"].state / LEDGER).entries
    leaving = {one.facts["rpc"]: one.facts for one in entries if one.event == "leaving"}
    assert leaving["Join"]["says"]["training_patients"] > 0
    layout = Contract.from_bytes((made["siemens"].state / "contract.json").read_bytes()).manifest.layout
    assert leaving["UploadDelta"]["tensors"] == [spec.name for spec in layout.tensors]
    assert set(leaving["UploadDelta"]["says"]) == {"codec", "training_patients", "metrics"}
    assert set(leaving["ReportEvaluation"]["says"]["metrics"]) <= {
        "auc",
        "balanced_accuracy",
        "sensitivity",
        "specificity",
    }
    assert not any("lora_A.local" in name or name.startswith("local.") for name in leaving["UploadDelta"]["tensors"])


# held for a person


async def hold(materials: Materials, folder: Path, where: str, decide: Any, **changes: Any) -> dict[str, SiteConfig]:
    """Run a federation in which siemens holds its updates; `decide` is awaited beside it."""
    async with serve(where) as running:
        made = configs(materials, folder, running.address)
        made["siemens"] = replace(made["siemens"], egress="manual", **changes)
        agents = [Agent(config, Silent()) for config in made.values()]
        deciding = asyncio.create_task(decide(made["siemens"].state))
        try:
            await federation.finish(*agents)
            await asyncio.wait({deciding}, timeout=1.0)
        finally:
            deciding.cancel()
    if deciding.done() and not deciding.cancelled():
        deciding.result()
    return made


async def _release_all(state: Path) -> None:
    while True:
        for _, digest in releases.waiting(state):
            releases.decide(state, digest, leaves=True)
        await asyncio.sleep(0.1)


async def test_a_held_update_leaves_when_a_person_says_so(materials: Materials, tmp_path: Path) -> None:
    where = store(tmp_path, materials)
    made = await hold(materials, tmp_path, where, _release_all)
    federation.assert_finished(where)
    entries = ledger.read(made["siemens"].state / LEDGER).entries
    of_updates = [one for one in entries if one.event in ("held", "released", "leaving") and one.facts.get("digest")]
    assert [one.event for one in of_updates] == ["held", "released", "leaving"] * 2
    assert {one.facts["digest"] for one in of_updates} == {
        one["digest"] for one in audited(where, "update_accepted") if one["site"] == "siemens"
    }
    assert all(one.facts["by"] for one in of_updates if one.event == "released")


async def test_nothing_of_a_held_update_leaves_before_and_the_command_shows_it(
    materials: Materials, tmp_path: Path
) -> None:
    where, state, shown = store(tmp_path, materials, rounds=1), tmp_path / "state-siemens", []

    async def look_then_release(folder: Path) -> None:
        await federation.until(lambda: folder.exists() and bool(releases.waiting(folder)))
        await asyncio.sleep(2 * releases.POLL_S)
        assert federation.order_of_arrival(where, 1) in ([], ["philips"])
        assert not any(
            one.facts.get("digest") for one in ledger.read(folder / LEDGER).entries if one.event == "leaving"
        )
        for options in (["--show"], ["--digest", "0" * 12], ["--digest", "0"], []):
            if not options:
                options = re.findall(r"no other: site-agent release --state \S+ (--digest) (\S+)", shown[0].output)[0]
            shown.append(
                await asyncio.to_thread(CliRunner().invoke, app, ["release", "--state", str(folder), *options])
            )

    await hold(materials, tmp_path, where, look_then_release)
    look, other, short, released = shown
    assert re.fullmatch(r"no update with digest 0{12} waits .*; nothing was decided\..*", str(other.exception))
    assert "--digest is 12 to 64 hexadecimal digits, got '0'" in str(short.exception)
    shown = [look, released]
    assert [one.exit_code for one in shown] == [0, 0]
    for one in shown:
        assert "round 1: " in one.output
        assert "training patients" in one.output
        assert "attn.q.lora_A.weight F32[4, 16]" in one.output
    assert "released by" not in shown[0].output
    assert "released by" in shown[1].output
    assert releases.waiting(state) == []
    told = CliRunner().invoke(app, ["ledger", "show", "--state", str(state)]).output
    assert re.search(r"released: .*decided_at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d", told)


async def test_an_update_that_is_withheld_never_leaves_and_the_agent_stays_in_touch(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = store(tmp_path, materials, rounds=1)
    monkeypatch.setattr(agents, "MAX_WAIT_S", 0.2)

    async def withhold(folder: Path) -> None:
        await federation.until(lambda: folder.exists() and bool(releases.waiting(folder)))
        for _, digest in releases.waiting(folder):
            releases.decide(folder, digest, leaves=False)

    def count(name: str, **facts: Any) -> int:
        return sum(one["event"] == name and facts.items() <= one.items() for one in events)

    with structlog.testing.capture_logs() as events:
        async with serve(where) as running:
            held = replace(federation.site_config(materials, tmp_path, running.address, "siemens"), egress="manual")
            agent = Agent(held, Silent())
            task = asyncio.create_task(agent.run(once=True))
            await withhold(held.state)
            await federation.until(
                lambda: any(one.event == "withheld" for one in ledger.read(held.state / LEDGER).entries)
            )
            polls = count("rpc_finished", rpc="AwaitRound", side="site")
            await federation.until(lambda: count("rpc_finished", rpc="AwaitRound", side="site") >= polls + 4)
            assert (count("update_withheld"), count("round_asked_again")) == (1, 0)
            agent.stop()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert federation.order_of_arrival(where, 1) == []
    assert not any(
        one.facts.get("digest") for one in ledger.read(held.state / LEDGER).entries if one.event == "leaving"
    )


async def test_what_was_withheld_does_not_leave_when_egress_is_automatic_again(
    materials: Materials, tmp_path: Path
) -> None:
    where = store(tmp_path, materials, rounds=1)
    async with serve(where) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens")
        for egress in ("manual", "auto"):
            agent = Agent(replace(config, egress=egress), Silent())
            task = asyncio.create_task(agent.run(once=True))
            if egress == "manual":
                await federation.until(lambda: config.state.exists() and bool(releases.waiting(config.state)))
                ((_, digest),) = releases.waiting(config.state)
                releases.decide(config.state, digest, leaves=False)
            await asyncio.sleep(2.0)
            agent.stop()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert federation.order_of_arrival(where, 1) == []


# what would leave


async def test_a_dry_run_is_the_very_update_that_leaves_later(materials: Materials, tmp_path: Path) -> None:
    where = store(tmp_path, materials, rounds=1, codec="int8")
    opened = engine.open_store(where)
    contract = opened.read(federations.contract, federation.NAME)
    opened.close()
    config = federation.site_config(materials, tmp_path, "127.0.0.1:1", "siemens")
    found = await asyncio.to_thread(dry_run.run, config, contract, None)
    found.write(tmp_path / "dry")
    assert not config.state.exists()

    async with serve(where) as running:
        made = configs(materials, tmp_path, running.address)
        await federation.finish(*(Agent(one, Silent()) for one in made.values()))
    accepted = next(one for one in audited(where, "update_accepted") if one["site"] == "siemens")
    assert (found.update.digest, len(found.update.payload)) == (accepted["digest"], accepted["bytes"])
    fields = json.loads((tmp_path / "dry" / dry_run.WORDS).read_text())
    assert fields["BeginUpload, UploadDelta"]["training_patients"] == accepted["patients"]
    assert (tmp_path / "dry" / dry_run.PAYLOAD).read_bytes() == found.update.payload
    numbers = load_file(tmp_path / "dry" / dry_run.NUMBERS)
    assert set(numbers) == set(fields["BeginUpload, UploadDelta"]["tensors"])
    leaving = {
        one.facts["rpc"]: one.facts
        for one in ledger.read(made["siemens"].state / LEDGER).entries
        if one.event == "leaving"
    }
    assert leaving["Join"]["says"]["base_model_sha256"] == fields["Join"]["base_model_sha256"]
    assert all(name in fields["ReportEvaluation"]["metrics"] for name in leaving["ReportEvaluation"]["says"]["metrics"])


# the commands


async def test_the_commands_show_verify_and_compare_with_the_log(materials: Materials, tmp_path: Path) -> None:
    where = federation.create_store(tmp_path / "store", materials.adapter, ("siemens",), rounds=1)
    wrote = await federation.run_beside("aggregator", "contract", "--store", where, "--out", tmp_path / "contract.json")
    assert wrote.returncode == 0, wrote.stderr
    words = ["--cohort", materials.cohorts / "siemens", "--weights", materials.backbone, "--out", tmp_path / "dry"]
    dry = await federation.run_beside("site-agent", "dry-run", "--contract", tmp_path / "contract.json", *words)
    assert dry.returncode == 0, dry.stderr
    assert "training_patients" in dry.stdout
    assert "nothing was sent" in dry.stdout

    async with serve(where) as running:
        config = federation.site_config(materials, tmp_path, running.address, "siemens", log=tmp_path / "agent.jsonl")
        agent = await federation.run_beside("site-agent", *federation.agent_arguments(config))
        assert agent.returncode == 0, agent.stderr
    head = ledger.read(config.state / LEDGER).head.digest

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["ledger", *map(str, arguments), "--state", str(config.state)])

    for few in ("f", head[:11], "all of it"):
        assert "--head is a line's digest as it was noted: 12 to 64" in str(run("verify", "--head", few).exception)
    verified = run("verify", "--head", head[:12], "--log", config.log)
    assert verified.exit_code == 0, verified.output
    assert f"lines hold together; head {head}" in verified.output
    shown = run("show").output
    assert "says codec f32, metrics train_loss" in shown
    assert "line 1 ended: OK" in shown
    assert json.loads(run("show", "--json").output)[0]["rpc"] == "Join"

    log = config.log
    assert log is not None
    log.write_text("".join(line for line in log.open() if '"UploadDelta"' not in line))
    compared = run("verify", "--log", log)
    assert compared.exit_code == 1
    assert "DIFFERS: UploadDelta: the ledger has 1 calls" in compared.output
    changed = (config.state / LEDGER).read_bytes().replace(b'"training_patients":', b'"training_patientz":')
    (config.state / LEDGER).write_bytes(changed)
    assert run("verify").exit_code == 1

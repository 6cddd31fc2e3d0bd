"""An agent that does not consent says which field, stays up, and goes on when the aggregator is back in bounds."""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
import structlog
from med_duallora.v1 import federation_pb2 as pb
from med_duallora.v1 import federation_pb2_grpc
from typer.testing import CliRunner

from aggregator import wire
from aggregator.store import engine, federations, schema
from shared.contract import Contract
from site_agent import ledger, permission
from site_agent.agent import Agent
from site_agent.cli import app
from site_agent.config import SiteConfig
from site_agent.consent import Pins, Window
from site_agent.ledger import LEDGER
from site_agent.view import Silent
from tests.integration import federation
from tests.integration.federation import Materials
from tests.support.serving import serve

pytestmark = pytest.mark.integration
Events = list[Mapping[str, Any]]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permission, "CONSENT_EVERY_S", 0.1)
    monkeypatch.setattr(permission, "WINDOW_EVERY_S", 0.1)


def store(folder: Path, materials: Materials, **parameters: Any) -> str:
    return federation.create_store(folder, materials.adapter, ("siemens",), **parameters)


def site(materials: Materials, folder: Path, address: str, **changes: Any) -> SiteConfig:
    return federation.site_config(materials, folder, address, "siemens", **changes)


def reasons(events: Events) -> list[str]:
    return [one["reason"] for one in events if one["event"] == "consent_withheld"]


def set_policy(where: str, federation_name: str = federation.NAME, **values: Any) -> None:
    """Do to a store what an aggregator gone bad does: change the federation's row behind everybody's back."""
    opened = engine.open_store(where)
    table = schema.federations
    opened.write(
        lambda connection: connection.execute(table.update().where(table.c.name == federation_name).values(**values))
    )
    opened.close()


def row(where: str) -> Mapping[str, Any]:
    opened = engine.open_store(where)
    try:
        return dict(opened.read(lambda connection: connection.execute(sa.select(schema.federations)).mappings().one()))
    finally:
        opened.close()


async def test_what_site_toml_does_not_allow_is_named_and_the_agent_goes_on_when_it_is_allowed(
    materials: Materials, tmp_path: Path
) -> None:
    where = store(tmp_path / "store", materials, rounds=1, local_epochs="3")
    honest = row(where)["recipe_parameters"].replace('"local_epochs":3', '"local_epochs":1')
    port = federation.free_port()
    pins = Pins(federation=federation.NAME, recipe="med-duallora", at_most={"local_epochs": 2})
    with structlog.testing.capture_logs() as events:
        config = site(materials, tmp_path, f"127.0.0.1:{port}", agreed=pins)
        agent = Agent(config, Silent())
        going = asyncio.create_task(agent.run(once=True))
        async with serve(where, listen=config.aggregator):
            await federation.until(lambda: len(reasons(events)) >= 2)
            assert not going.done()
        said = reasons(events)[0]
        assert said == ("recipe parameter local_epochs: this site's site.toml says at most 2, the aggregator offers 3")
        assert not (config.state / "contract.json").exists()
        set_policy(where, recipe_parameters=honest)
        async with serve(where, listen=config.aggregator):
            await asyncio.wait_for(going, federation.TIMEOUT_S)
    federation.assert_finished(where, rounds=1)


async def test_a_changed_contract_waits_for_a_person_and_keeps_what_was_before(
    materials: Materials, tmp_path: Path
) -> None:
    first, second = (store(tmp_path / name, materials, rounds=rounds) for name, rounds in (("a", 1), ("b", 2)))
    port = federation.free_port()
    config = site(materials, tmp_path, f"127.0.0.1:{port}")
    async with serve(first, listen=config.aggregator):
        await federation.finish(Agent(config, Silent()))
    before = (config.state / "rounds" / "0001" / "local.safetensors").read_bytes()
    agreed = Contract.from_bytes((config.state / "contract.json").read_bytes())
    none = CliRunner().invoke(app, ["accept", "--state", str(config.state)])
    assert "no changed contract is offered" in str(none.exception)

    with structlog.testing.capture_logs() as events:
        async with serve(second, listen=config.aggregator):
            going = asyncio.create_task(Agent(config, Silent()).run(once=True))
            await federation.until(lambda: len(reasons(events)) >= 2)
            assert not going.done()
            assert reasons(events)[0].startswith(
                "the contract has changed. rounds: agreed 1, offered 2. If this hospital"
            )
            assert federation.order_of_arrival(second, 1) == []
            accepted = await asyncio.to_thread(CliRunner().invoke, app, ["accept", "--state", str(config.state)])
            assert accepted.exit_code == 0
            assert accepted.output.startswith("rounds: agreed 1, offered 2\naccepted;")
            await asyncio.wait_for(going, federation.TIMEOUT_S)
    federation.assert_finished(second, rounds=2)
    aside = config.state / f"contract-{agreed.sha256[:12]}"
    assert (aside / "rounds" / "0001" / "local.safetensors").read_bytes() == before
    assert Contract.from_bytes((aside / "contract.json").read_bytes()) == agreed
    assert not (config.state / "accepted.json").exists()


async def test_an_acceptance_is_of_one_contract_and_not_of_the_next(materials: Materials, tmp_path: Path) -> None:
    stores = [store(tmp_path / str(rounds), materials, rounds=rounds) for rounds in (1, 2, 3)]
    config = site(materials, tmp_path, f"127.0.0.1:{federation.free_port()}")
    async with serve(stores[0], listen=config.aggregator):
        await federation.finish(Agent(config, Silent()))
    with structlog.testing.capture_logs() as events:
        agent = Agent(config, Silent())
        going = asyncio.create_task(agent.run(once=True))
        async with serve(stores[1], listen=config.aggregator):
            await federation.until(lambda: bool(reasons(events)))
        await asyncio.to_thread(CliRunner().invoke, app, ["accept", "--state", str(config.state)])
        async with serve(stores[2], listen=config.aggregator):
            await federation.until(lambda: any("offered 3" in reason for reason in reasons(events)))
            await asyncio.sleep(0.5)
            assert federation.order_of_arrival(stores[2], 1) == []
        agent.stop()
        with pytest.raises(asyncio.CancelledError):
            await going


async def test_an_update_over_a_budget_stays_and_the_agent_with_it(materials: Materials, tmp_path: Path) -> None:
    where = store(tmp_path / "store", materials, rounds=2)
    with structlog.testing.capture_logs() as events:
        async with serve(where) as running:
            config = site(materials, tmp_path, running.address, agreed=Pins(bytes_in_all=5000))
            agent = Agent(config, Silent())
            going = asyncio.create_task(agent.run(once=True))
            await federation.until(lambda: len(reasons(events)) >= 2)
            assert federation.order_of_arrival(where, 1) == ["siemens"]
            assert federation.order_of_arrival(where, 2) == []
            agent.stop()
            with pytest.raises(asyncio.CancelledError):
                await going
    assert reasons(events)[0] == (
        "bytes_in_all: this site's site.toml says 5000, 3840 have left and 3840 more are asked for; they stay here"
    )
    assert ledger.totals(ledger.read(config.state / LEDGER)).by_rpc["UploadDelta"].payload_bytes == 3840


async def test_figures_that_are_not_agreed_to_do_not_leave(materials: Materials, tmp_path: Path) -> None:
    where = store(tmp_path / "store", materials, rounds=1)
    async with serve(where) as running:
        config = site(materials, tmp_path, running.address, agreed=Pins(metrics=("specificity",)))
        await federation.finish(Agent(config, Silent()))
    said = [one.facts["says"] for one in ledger.read(config.state / LEDGER).entries if one.event == "leaving"]
    assert {name for one in said for name in one.get("metrics", {})} == {"specificity"}


async def test_outside_its_hours_a_site_waits_and_trains_when_they_come(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = store(tmp_path / "store", materials, rounds=1)
    clock = {"hour": 12}
    real = time.localtime

    def localtime(*seconds: float) -> time.struct_time:
        now = list(real(*seconds))
        return time.struct_time([*now[:3], clock["hour"], *now[4:]])

    monkeypatch.setattr(time, "localtime", localtime)
    with structlog.testing.capture_logs() as events:
        async with serve(where) as running:
            config = site(materials, tmp_path, running.address, agreed=Pins(windows=(Window.parse("22:00-06:00"),)))
            going = asyncio.create_task(Agent(config, Silent()).run(once=True))
            await federation.until(lambda: any(one["event"] == "training_window_awaited" for one in events))
            await asyncio.sleep(0.5)
            assert not any(one["event"] == "round_trained" for one in events)
            clock["hour"] = 23
            await asyncio.wait_for(going, federation.TIMEOUT_S)
    federation.assert_finished(where, rounds=1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"recipe": "exfiltrate"}, "the aggregator's contract cannot be agreed to: .*exfiltrate"),
        ({"recipe_parameters": '{"local_epochs":1,"send_local":true}'}, "cannot be agreed to: .*send_local"),
        ({"manifest": b"{}"}, "cannot be agreed to"),
    ],
)
async def test_a_contract_that_is_none_is_refused_and_the_agent_stays(
    materials: Materials, tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    """The aggregator itself would not serve it: a servicer of the test's own answers Join."""
    where = store(tmp_path / "store", materials, rounds=1)
    opened = engine.open_store(where)
    honest = wire.join_response(opened.read(federations.contract, federation.NAME), "siemens", 10, 0)
    opened.close()
    changes = {"recipe": "recipe", "recipe_parameters": "recipe_parameters", "manifest": "adapter_manifest"}
    lying = pb.JoinResponse()
    lying.CopyFrom(honest)
    for name, value in values.items():
        setattr(lying, changes[name], value.encode() if name == "recipe_parameters" else value)

    class Lying(federation_pb2_grpc.FederationServiceServicer):
        async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinResponse:
            return lying

    server = grpc.aio.server()
    federation_pb2_grpc.add_FederationServiceServicer_to_server(Lying(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        with structlog.testing.capture_logs() as events:
            agent = Agent(replace(site(materials, tmp_path, f"127.0.0.1:{port}")), Silent())
            going = asyncio.create_task(agent.run(once=True))
            await federation.until(lambda: len(reasons(events)) >= 2)
            agent.stop()
            with pytest.raises(asyncio.CancelledError):
                await going
    finally:
        await server.stop(None)
    assert re.search(said, reasons(events)[0])

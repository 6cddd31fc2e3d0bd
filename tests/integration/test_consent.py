"""An agent that does not consent says which field, stays up, and goes on when the aggregator is back in bounds."""

import asyncio
import itertools
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

from aggregator import uploads, wire
from aggregator.facts import sites
from aggregator.store import engine, federations, schema
from shared.contract import Contract
from shared.errors import ContractMismatch
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


def standing(where: str, name: str) -> str:
    """Return where a site stands, as its coordinator is told."""
    opened = engine.open_store(where)
    try:
        state = opened.read(federations.state, federation.NAME)
        return sites.standing(state, state.sites[name], time.time())
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
            await federation.until(lambda: standing(where, "siemens") == "held up")
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
            assert accepted.output.startswith(
                "rounds: agreed 1, offered 2\naccepted: the contract that the aggregator offered"
            )
            assert "If the aggregator still offers it" in accepted.output
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


# --- a contract that changes under a running agent -------------------------------------------------------------------


def said_of_data(config: SiteConfig) -> list[tuple[str, int]]:
    """Return the calls but Join that said something of the site's data, with the bytes of tensors."""
    entries = ledger.read(config.state / LEDGER).entries
    facts = [one.facts for one in entries if one.event == "leaving"]
    return [(one["rpc"], one["payload_bytes"]) for one in facts if one["rpc"] != "Join"]


def count(events: Events, name: str) -> int:
    return sum(one["event"] == name for one in events)


class Two:
    """A running agent, siemens, whose round 1 is in and waits for philips at an aggregator that is stopped then."""

    def __init__(self, materials: Materials, folder: Path) -> None:
        self.materials, self.folder = materials, folder
        self.address = f"127.0.0.1:{federation.free_port()}"
        self.store = self.other("agreed")
        self.configs = {
            name: federation.site_config(materials, folder, self.address, name) for name in ("siemens", "philips")
        }
        self.agents: dict[str, Agent] = {}
        self.going: dict[str, asyncio.Task[None]] = {}

    def other(self, name: str, **parameters: Any) -> str:
        sites = ("siemens", "philips")
        return federation.create_store(self.folder / name, self.materials.adapter, sites, **parameters)

    def start(self, name: str) -> None:
        self.agents[name] = Agent(self.configs[name], Silent())
        self.going[name] = asyncio.create_task(self.agents[name].run(once=True))

    async def begin(self) -> None:
        async with serve(self.store, listen=self.address):
            self.start("siemens")
            await federation.arrived(self.store, 1, "siemens")

    async def end(self) -> None:
        """Let the agents finish what they agreed to."""
        async with serve(self.store, listen=self.address):
            self.start("philips")
            await asyncio.wait_for(asyncio.gather(*self.going.values()), federation.TIMEOUT_S)
        federation.assert_finished(self.store)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"local_epochs": "2"}, "recipe parameter local_epochs: agreed 1, offered 2"),
        ({"rounds": 5}, "rounds: agreed 2, offered 5"),
    ],
)
async def test_a_contract_that_changes_under_a_running_agent_is_named_and_waited_out(
    materials: Materials, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    two = Two(materials, tmp_path)
    with structlog.testing.capture_logs() as events:
        await two.begin()
        before, changed = said_of_data(two.configs["siemens"]), two.other("changed", **change)
        async with serve(changed, listen=two.address):
            await federation.until(lambda: len(reasons(events)) >= 3)
            assert not two.going["siemens"].done()
            assert federation.order_of_arrival(changed, 1) == []
        assert reasons(events)[0].startswith(
            f"the contract has changed. {named}. If this hospital agrees: site-agent accept"
        )
        assert said_of_data(two.configs["siemens"]) == before
        (again,) = [one for one in events if one["event"] == "joining_again"]
        assert again["reason"] == named
        await two.end()
    assert [one["round"] for one in events if one["event"] == "round_trained" and one["round"] == 1] == [1, 1]


async def test_a_changed_contract_that_a_person_accepts_is_taken_up_by_the_running_agent(
    materials: Materials, tmp_path: Path
) -> None:
    where, other = (store(tmp_path / name, materials, rounds=rounds) for name, rounds in (("a", 2), ("b", 1)))
    config = site(materials, tmp_path, f"127.0.0.1:{federation.free_port()}")
    with structlog.testing.capture_logs() as events:
        going = asyncio.create_task(Agent(config, Silent()).run(once=True))
        async with serve(where, listen=config.aggregator):
            await federation.arrived(where, 1, "siemens")
        async with serve(other, listen=config.aggregator):
            await federation.until(lambda: bool(reasons(events)))
            await asyncio.to_thread(CliRunner().invoke, app, ["accept", "--state", str(config.state)])
            await asyncio.wait_for(going, federation.TIMEOUT_S)
    federation.assert_finished(other, rounds=1)
    assert count(events, "contract_accepted") == 1
    assert len(list(config.state.glob("contract-*/rounds/0001"))) == 1


async def test_a_store_that_never_heard_of_the_agent_and_has_its_contract_is_joined_and_gone_on_with(
    materials: Materials, tmp_path: Path
) -> None:
    two = Two(materials, tmp_path)
    with structlog.testing.capture_logs() as events:
        await two.begin()
        two.store = two.other("restored")
        await two.end()
    assert reasons(events) == []
    trained = [(one["round"]) for one in events if one["event"] == "round_trained"]
    assert sorted(trained) == [1, 1, 2, 2]  # what siemens had finished is offered again, and not trained again


async def test_an_aggregator_of_another_federation_is_named_by_a_running_agent(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Two(materials, tmp_path)
    with structlog.testing.capture_logs() as events:
        await two.begin()
        with monkeypatch.context() as patched:
            patched.setattr(federation, "NAME", "lungs")
            changed = two.other("changed")
        async with serve(changed, listen=two.address):
            await federation.until(lambda: len(reasons(events)) >= 2)
        assert "federation: agreed 'hearts', offered 'lungs'" in reasons(events)[0]
        await two.end()


async def test_an_aggregator_that_says_join_first_over_and_over_is_not_flooded(
    materials: Materials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one connection, where nothing else tells that the aggregator is another: a proxy may stand in between."""
    where = store(tmp_path / "store", materials, rounds=1)
    real = uploads.Uploads._check_announcement
    refused: list[float] = []

    async def forgetful(self: uploads.Uploads, caller: Any, announcement: Any) -> None:
        if len(refused) < 4:
            refused.append(time.monotonic())
            raise ContractMismatch("site 'siemens' has not joined; Join first, which checks what both sides agreed to")
        await real(self, caller, announcement)

    monkeypatch.setattr(uploads.Uploads, "_check_announcement", forgetful)
    with structlog.testing.capture_logs() as events:
        async with serve(where) as running:
            await federation.finish(Agent(site(materials, tmp_path, running.address), Silent()))
    federation.assert_finished(where, rounds=1)
    again = [one for one in events if one["event"] == "joining_again"]
    assert [one["attempt"] for one in again] == [1, 2, 3, 4]
    assert all("has not joined; Join first" in one["reason"] for one in again)
    assert min(later - before for before, later in itertools.pairwise(refused)) >= 0.1
    assert count(events, "round_trained") == 1


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

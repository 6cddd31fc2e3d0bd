"""The audit journal tells what happened over the wire, in one chain, and shows what was changed in it or behind it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from aggregator import audit, cli, refusals, steering
from aggregator.server import RunningServer
from aggregator.store import engine, schema
from aggregator.store.engine import Store
from shared import journal
from shared.errors import InputError
from tests.support import adapters
from tests.support.raw_site import RawSite, digest
from tests.support.serving import make_store, serve

pytestmark = pytest.mark.integration


@pytest.fixture
def where(tmp_path: Path) -> str:
    return make_store(tmp_path, sites=("ge", "philips", "siemens"), quorum=2, rounds=1)


@pytest.fixture
async def running(where: str) -> AsyncIterator[RunningServer]:
    async with serve(where) as server:
        yield server


def read(where: str, noted: str = "") -> journal.Chain:
    store = engine.open_store(where)
    try:
        return audit.check(store, "demo", noted)
    finally:
        store.close()


def told(where: str, event: str) -> list[dict[str, Any]]:
    return [dict(one.facts) for one in read(where).entries if one.event == event]


async def whole_federation(where: str) -> None:
    """Three sites join; one sends wrong bytes first, one is evicted, two updates close the only round."""
    async with (
        serve(where) as server,
        RawSite(server.address, "ge") as ge,
        RawSite(server.address, "siemens") as siemens,
    ):
        async with RawSite(server.address, "philips") as philips:
            for site in (ge, siemens, philips):
                await site.join()
            await steering.evict(server.federation, "anna", "philips", "left the study", allow_quorum=2)
            with pytest.raises(grpc.aio.AioRpcError):
                await philips.upload(adapters.delta(philips.layout, 1))
        with pytest.raises(grpc.aio.AioRpcError):
            await ge.upload(b"\xff" * ge.layout.size)
        for k, site in enumerate((ge, siemens)):
            await site.upload(adapters.delta(site.layout, k))
        await ge.wait("WAIT", 1, wait_s=10)
        await siemens.stub.ReportEvaluation(_evaluation(siemens.agent_id), metadata=siemens.metadata, timeout=10)


def _evaluation(agent_id: str) -> Any:
    from med_duallora.v1 import federation_pb2 as pb

    return pb.ReportEvaluationRequest(agent_id=agent_id, round=1, version=1, cases=8, metrics={"auc": 0.75})


async def test_everything_that_matters_has_its_line(where: str) -> None:
    await whole_federation(where)
    events = [one.event for one in read(where).entries]
    assert events[0] == "federation_made"
    assert sorted(set(events)) == [
        "call_refused", "evaluation_reported", "federation_made", "round_closed", "site_evicted", "site_joined",
        "update_accepted",
    ]  # fmt: skip
    assert told(where, "federation_made")[0]["sites"] == {"ge": None, "philips": None, "siemens": None}
    assert [one["site"] for one in told(where, "site_joined")] == ["ge", "siemens", "philips"]
    assert told(where, "site_evicted") == [{"site": "philips", "by": "anna", "reason": "left the study"}]
    layout = adapters.adapter().manifest.layout
    assert {(one["site"], one["digest"], one["bytes"]) for one in told(where, "update_accepted")} == {
        (site, digest(adapters.delta(layout, k)), layout.size) for k, site in enumerate(("ge", "siemens"))
    }
    closed = told(where, "round_closed")[0]
    assert (closed["round"], closed["version"], closed["sites"]) == (1, 1, ["ge", "siemens"])
    assert "left the study" in json.dumps(closed["left_out"])
    refused = {(one["caller"], one["rpc"], one["error"]) for one in told(where, "call_refused")}
    assert refused == {("philips", "BeginUpload", "NotEnrolled"), ("ge", "UploadDelta", "InvalidUpdate")}
    assert "evicted" in next(one["why"] for one in told(where, "call_refused") if one["caller"] == "philips")
    assert told(where, "evaluation_reported") == [{"site": "siemens", "round": 1, "version": 1, "metrics": ["auc"]}]


async def test_an_update_sent_again_is_told_once(running: RunningServer, where: str) -> None:
    async with RawSite(running.address, "ge") as site:
        await site.join()
        payload = adapters.delta(site.layout, 1)
        await site.upload(payload)
        await site.upload(payload)
    assert len(told(where, "update_accepted")) == 1


async def test_a_flood_of_refused_calls_is_a_line_a_minute(
    running: RunningServer, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with RawSite(running.address, "nobody") as stranger:
        for _ in range(50):
            with pytest.raises(grpc.aio.AioRpcError):
                await stranger.wait()
    await running.refusals.close()
    lines = told(where, "call_refused")
    assert [(one["caller"], one["rpc"], one["error"]) for one in lines] == [("nobody", "AwaitRound", "NotEnrolled")] * 2
    assert [one["count"] for one in lines] == [1, 49]

    monkeypatch.setattr(refusals, "MOST_KINDS", 3)
    for k in range(20):
        async with RawSite(running.address, f"made-up-{k}") as stranger:
            with pytest.raises(grpc.aio.AioRpcError):
                await stranger.wait()
    await running.refusals.close()
    assert len(running.refusals._told) <= 4
    assert sum(one["count"] for one in told(where, "call_refused")) == 70


async def test_two_replicas_would_write_one_chain(where: str) -> None:
    """The chain goes on from the store, not from a process: what two servers wrote one after the other holds together."""
    for name in ("ge", "siemens"):
        async with serve(where) as server, RawSite(server.address, name) as site:
            await site.join()
    assert [one["site"] for one in told(where, "site_joined")] == ["ge", "siemens"]


# what was changed is seen


def change(where: str, statement: Any) -> None:
    store = engine.open_store(where)
    store.write(lambda connection: connection.execute(statement))
    store.close()


AUDIT, UPDATES = schema.audit, schema.updates


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        (AUDIT.delete().where(AUDIT.c.number == 2), "line 2 has number 3"),
        (
            AUDIT.update().where(AUDIT.c.number == 2).values(line=sa.func.replace(AUDIT.c.line, "ge", "GE")),
            "line 3 follows a line",
        ),
        (
            UPDATES.delete().where(UPDATES.c.site == "ge"),
            "tells of round 1's update .* of site 'ge', and the store has none",
        ),
        (
            UPDATES.update().where(UPDATES.c.site == "ge").values(digest="0" * 64),
            "round 1's update 000000000000 of site 'ge' counts and has no line",
        ),
    ],
)
async def test_what_was_changed_in_the_store_is_named(where: str, statement: Any, finding: str) -> None:
    await whole_federation(where)
    change(where, statement)
    with pytest.raises(InputError, match=finding):
        read(where)


async def test_lines_that_are_cut_off_are_seen_by_who_noted_the_head(where: str) -> None:
    await whole_federation(where)
    head = read(where).head.digest
    change(where, AUDIT.delete().where(AUDIT.c.number == len(read(where).entries)))
    read(where)
    with pytest.raises(InputError, match=f"no line has digest {head[:12]}"):
        read(where, head[:12])


# the command


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.build(), ["audit", *map(str, arguments)])


async def test_the_command_shows_checks_and_writes_the_journal(where: str, tmp_path: Path) -> None:
    await whole_federation(where)
    chain = await asyncio.to_thread(read, where)
    found = run("--store", where, "--out", tmp_path / "audit.jsonl", "--head", chain.head.digest[:12])
    assert found.exit_code == 0, found.output
    assert f"{len(chain.entries)} lines hold together; head {chain.head.digest}" in found.output
    few = run("--store", where, "--head", chain.head.digest[:1])
    assert few.exit_code == 1
    assert isinstance(few.exception, InputError)
    assert "by anna, reason left the study, site philips" in found.output
    lines = (tmp_path / "audit.jsonl").read_bytes().splitlines()
    assert journal.verify(lines) == chain
    as_json = json.loads(run("--store", where, "--json").output)
    assert (as_json["lines"], as_json["head"]) == (len(lines), chain.head.digest)

    change(where, AUDIT.delete().where(AUDIT.c.number == 1))
    found = run("--store", where)
    assert found.exit_code == 1
    assert found.output.startswith("DIFFERS: line 1 has number 2")


def test_a_store_of_an_older_release_has_a_past_without_lines(where: str) -> None:
    store: Store = engine.open_store(where)
    store.write(lambda connection: connection.execute(AUDIT.delete()))
    assert audit.check(store, "demo").head.count == 0
    store.close()

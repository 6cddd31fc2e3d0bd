"""Two aggregators on one PostgreSQL: whichever a site talks to, it is the same federation."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from med_duallora.v1 import federation_pb2 as pb

from aggregator import steering, verify
from aggregator.server import RunningServer
from aggregator.store import engine
from shared import chunks
from shared.tls import TlsFiles
from site_agent.agent import Agent
from site_agent.view import Silent
from tests.integration import federation
from tests.support import adapters, haproxy
from tests.support.postgres import PostgresServer
from tests.support.raw_site import RawSite, digest, refusal
from tests.support.serving import SITES, make_store, serve

pytestmark = pytest.mark.integration

Pair = tuple[RunningServer, RunningServer]
HEARD_S = 2.0
"""How soon a change at one replica must have reached a site that waits at the other; a poll would take 30 s."""


@pytest.fixture
async def replicas(tmp_path: Path, postgres: PostgresServer) -> AsyncIterator[Pair]:
    store = make_store(tmp_path, url=postgres.fresh_database())
    async with serve(store) as first, serve(store) as second:
        yield first, second


def name_of(answer: pb.AwaitRoundResponse) -> str:
    return pb.Instruction.Name(answer.instruction).removeprefix("INSTRUCTION_")


async def test_a_join_at_one_replica_is_known_at_the_other(replicas: Pair) -> None:
    first, second = replicas
    async with RawSite(first.address, "ge") as here, RawSite(second.address, "ge") as there:
        await here.join()
        begun = await there.begin(adapters.delta(here.layout, seed=1))
        assert begun.committed == 0


async def test_characters_no_database_takes_are_refused_or_left_out(replicas: Pair) -> None:
    first, _ = replicas
    async with RawSite(first.address, "ge", agent_id="ge\0") as hostile, RawSite(first.address, "ge") as site:
        assert (await refusal(hostile.join()))[:2] == ("INVALID_ARGUMENT", "InputError")
        await site.join(software_version="1\0.0")
        await steering.pause(first.federation, "anna", "")
        assert (await site.wait()).reason == "paused by the coordinator"


async def test_an_upload_goes_on_at_the_other_replica_and_the_receipt_is_the_same_everywhere(replicas: Pair) -> None:
    first, second = replicas
    async with RawSite(first.address, "ge") as here, RawSite(second.address, "ge") as there:
        await here.join()
        payload = adapters.delta(here.layout, seed=1)
        half = len(payload) // 2
        await here.begin(payload)
        pieces = list(chunks.split(payload, chunk_bytes=half))
        code, _, _ = await refusal(here.stream(pieces[:1], digest(payload)))  # ends after the first half
        assert code == "ABORTED"
        assert (await there.begin(payload)).committed == half
        receipt = await there.upload(payload)
        assert (await here.begin(payload)).receipt == receipt
        assert (await here.stream(pieces, digest(payload))).receipt == receipt
        code, kind, _ = await refusal(here.begin(adapters.delta(here.layout, seed=2)))
        assert (code, kind) == ("ALREADY_EXISTS", "ConflictingUpdate")


async def durable(site: RawSite, payload: bytes, count: int) -> None:
    """Return when so many bytes of an announced update are durable."""
    for _ in range(500):
        if (await site.begin(payload)).committed == count:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("the bytes did not arrive")


async def test_a_stream_ends_with_the_announcement_it_began_with(replicas: Pair) -> None:
    """Whoever drops an upload and announces it again could stage other bytes just after the first ones were checked."""
    first, second = replicas
    async with RawSite(first.address, "ge") as here, RawSite(second.address, "ge") as there:
        await here.join()
        payload = adapters.delta(here.layout, seed=1)
        half = len(payload) // 2
        pieces = list(chunks.split(payload, chunk_bytes=half))
        await here.begin(payload)

        async def announced_again_before_the_last() -> AsyncIterator[pb.UploadDeltaRequest]:
            start = pb.UploadStart(agent_id=here.agent_id, round=1, digest=digest(payload))
            yield pb.UploadDeltaRequest(start=start)
            yield pb.UploadDeltaRequest(chunk=pieces[0])
            await durable(there, payload, half)
            await there.begin(adapters.delta(here.layout, seed=2))
            assert (await there.begin(payload)).committed == 0
            staging = asyncio.create_task(there.stream(pieces[:1], digest(payload), then=asyncio.sleep(15)))
            await durable(there, payload, half)
            staging.cancel()
            yield pb.UploadDeltaRequest(chunk=pieces[1])

        call = here.stub.UploadDelta(announced_again_before_the_last(), metadata=here.metadata, timeout=20)
        code, kind, text = await refusal(call)
        assert (code, kind) == ("ABORTED", "BadOffset")
        assert "was announced anew; begin again" in text
        assert (await there.begin(payload)).committed == half
        assert (await here.stream(pieces[1:], digest(payload))).receipt.digest == digest(payload)


async def test_a_round_closed_over_both_wakes_a_site_that_waits_at_either(replicas: Pair) -> None:
    first, second = replicas
    addresses = dict(zip(SITES, (first.address, second.address, second.address), strict=True))
    async with contextlib.AsyncExitStack() as stack:
        sites = {n: await stack.enter_async_context(RawSite(a, n)) for n, a in addresses.items()}
        for site in sites.values():
            await site.join()
        for k, name in enumerate(SITES[:2]):
            await sites[name].upload(adapters.delta(sites[name].layout, k))
        waiting = [asyncio.create_task(sites[n].wait("WAIT", 1, wait_s=30.0)) for n in SITES[:2]]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting)
        began = time.monotonic()
        await sites[SITES[2]].upload(adapters.delta(sites[SITES[2]].layout, 2))
        answers = await asyncio.gather(*waiting)
        assert time.monotonic() - began < HEARD_S
        assert {(name_of(a), a.round, a.version) for a in answers} == {("TRAIN", 2, 1)}


async def test_what_a_coordinator_does_at_one_replica_is_heard_at_the_other(replicas: Pair) -> None:
    first, second = replicas
    async with RawSite(second.address, "ge") as site:
        await site.join()
        waiting = asyncio.create_task(site.wait("TRAIN", 1, wait_s=30.0))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await steering.pause(first.federation, "anna", "a scanner is being moved")
        answer = await waiting
        assert (name_of(answer), answer.reason) == ("PAUSED", "a scanner is being moved")
        assert time.monotonic() - began < HEARD_S


async def test_a_database_that_restarts_costs_a_retry_and_nothing_else(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    store = make_store(tmp_path, url=postgres.fresh_database(), rounds=1)
    async with serve(store) as running, RawSite(running.address, "ge") as site:
        await site.join()
        payload = adapters.delta(site.layout, seed=1)
        await site.begin(payload)
        postgres.restart()  # in this thread: the server ends with the thread that started it
        for _ in range(20):
            try:
                receipt = await site.upload(payload)
                break
            except Exception as error:
                code, kind, _ = await refusal(_raised(error))
                assert (code, kind) == ("UNAVAILABLE", "StoreUnavailable")
                await asyncio.sleep(0.2)
        others = [RawSite(running.address, name) for name in SITES if name != "ge"]
        for other in others:
            await other.join()
            await other.upload(adapters.delta(other.layout, seed=3))
        assert name_of(await site.wait("WAIT", 1, wait_s=10.0)) == "FINISHED"
        assert (await site.begin(payload)).receipt == receipt
        for other in others:
            await other.channel.close()


async def _raised(error: Exception) -> None:
    raise error


# --- processes behind HAProxy ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def replica(store: str, port: int, certs: dict[str, Any], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `aggregator serve` on a port; killed when the block ends, if it still runs."""
    tls = certs["aggregator"]
    command = [
        federation.program("aggregator"),
        "serve",
        *("--store", store, "--listen", f"127.0.0.1:{port}", "--log", log),
        *("--tls-ca", tls.ca, "--tls-cert", tls.certificate, "--tls-key", tls.key),
    ]
    with subprocess.Popen(
        [str(part) for part in command], env=federation.PROCESS_ENVIRONMENT, stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def listening(port: int) -> None:
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"nobody listens on port {port}")


def calls_served(log: Path) -> set[str]:
    """Return the sites whose uploads this replica answered."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return {e["site"] for e in events if e["event"] == "rpc_finished" and e["rpc"] == "UploadDelta"}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_behind_haproxy_with_mtls_a_replica_dies_and_no_site_notices(materials, tmp_path, postgres, how):
    undisturbed = federation.create_store(tmp_path / "undisturbed", materials.adapter, rounds=3)
    async with serve(undisturbed) as running:
        await federation.finish(*federation.agents_of(materials, tmp_path / "undisturbed", running.address))
    store = federation.create_store(tmp_path / "pair", materials.adapter, rounds=3, url=postgres.fresh_database())
    certs = federation.make_certificates(tmp_path / "certs")
    ports = [federation.free_port() for _ in range(3)]
    logs = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(replica(store, ports[0], certs, logs[0]))
        stack.enter_context(replica(store, ports[1], certs, logs[1]))
        await asyncio.gather(listening(ports[0]), listening(ports[1]))
        address = stack.enter_context(
            haproxy.balancing(ports[2], *(f"127.0.0.1:{p}" for p in ports[:2]), tmp_path / "haproxy.log")
        )
        agents = [
            Agent(federation.site_config(materials, tmp_path / "pair", address, site, tls=certs[site]), Silent())
            for site in federation.SITES
        ]
        finished = asyncio.create_task(federation.finish(*agents))
        await federation.until(lambda: federation.outcome(store)[1] >= 1)
        first.send_signal(how)
        await finished
        if how == signal.SIGTERM:
            assert await asyncio.to_thread(first.wait, 20) == 0
    federation.assert_finished(store, rounds=3)
    assert federation.outcome(store)[2].digest == federation.outcome(undisturbed)[2].digest
    assert federation.manifests(store, 3) == federation.manifests(undisturbed, 3)
    served = [calls_served(log) for log in logs]
    assert all(served), f"one replica did all the work: {served}"
    opened = engine.open_store(store)
    assert [check.difference for check in verify.verify(opened, federation.NAME)] == ["", "", ""]
    opened.close()


async def test_behind_haproxy_a_replica_that_hangs_is_left_for_the_other_one(tmp_path, postgres):
    store = make_store(tmp_path, url=postgres.fresh_database())
    certs = federation.make_certificates(tmp_path / "certs", SITES)
    ports = [federation.free_port() for _ in range(3)]
    with contextlib.ExitStack() as stack:
        first, _ = (stack.enter_context(replica(store, port, certs, tmp_path / f"{port}.jsonl")) for port in ports[:2])
        await asyncio.gather(listening(ports[0]), listening(ports[1]))
        address = stack.enter_context(
            haproxy.balancing(ports[2], *(f"127.0.0.1:{p}" for p in ports[:2]), tmp_path / "haproxy.log")
        )
        before = [await joined(address, name, certs[name]) for name in SITES[:2]]  # one at each, by `leastconn`
        first.send_signal(signal.SIGSTOP)
        try:
            await asyncio.gather(*(answered(site) for site in before))
            for name in SITES * 2:  # and none of those that dial now meets the one that hangs
                await (await joined(address, name, certs[name])).channel.close()
        finally:
            first.send_signal(signal.SIGCONT)
            for site in before:
                await site.channel.close()


async def joined(address: str, name: str, tls: TlsFiles) -> RawSite:
    """Return a site that joined over a connection of its own."""
    site = RawSite(address, name, tls)
    await asyncio.wait_for(site.join(), 10.0)
    return site


async def answered(site: RawSite) -> None:
    """Call as an agent does, again and again, until the call is answered; an agent would give up after days."""
    async with asyncio.timeout(60.0):
        while True:
            try:
                await asyncio.wait_for(site.wait(), 2.0)
            except (TimeoutError, grpc.aio.AioRpcError):
                await asyncio.sleep(0.2)
            else:
                return

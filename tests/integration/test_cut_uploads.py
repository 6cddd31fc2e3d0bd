"""Connections that are cut, stall, lie or die after the receipt: updates arrive once and byte for byte, at a bounded price.

`python -m tests.chaos cuts` does the first of these with as many seeds as one likes, and prints what the cuts cost.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from aggregator.store import engine, updates
from aggregator.store.updates import UpdateKey
from experiments.relay import Fault, FaultPlan, Relay
from shared import forms
from shared.contract import Contract, RoundPolicy
from shared.errors import AggregatorUnreachable, ConflictingUpdate
from shared.protocol import CHUNK_BYTES
from shared.recipe import Recipe
from site_agent.client import FederationClient, Task
from site_agent.egress import Update, UpdateFacts
from tests.chaos import cut_uploads
from tests.support import adapters
from tests.support.raw_site import RawSite
from tests.support.serving import make_store, serve

pytestmark = pytest.mark.integration

SITES = ("ge", "philips")
BIG = adapters.adapter(**cut_uploads.SHAPE)
CONTRACT = Contract(
    federation="hearts", adapter_digest=BIG.digest, manifest=BIG.manifest, recipe=Recipe(), policy=RoundPolicy()
)
SMALL = adapters.adapter()
WAITS = {"round_number": 1, "following": "TRAIN", "version": 0}


def big_store(folder: Path) -> str:
    return make_store(folder, sites=SITES, adapter=BIG, quorum=2)


def small_store(folder: Path) -> str:
    return make_store(folder, sites=SITES, quorum=2)


def small_update(seed: int = 0) -> Update:
    facts = UpdateFacts(round=1, base_version=0, training_patients=10, metrics={})
    return Update(facts, SMALL.manifest.layout, adapters.delta(SMALL.manifest.layout, seed))


@asynccontextmanager
async def joined(address: str, site: str = "ge", call_timeout_s: float = 30.0) -> AsyncIterator[FederationClient]:
    client = await cut_uploads.joined(address, site, call_timeout_s=call_timeout_s)
    try:
        yield client
    finally:
        await client.close()


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("what the test waits for did not come")


# --- cut at random points -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "mTLS"])
async def test_a_cut_costs_at_most_two_chunks_and_the_update_arrives_whole_and_once(
    tmp_path: Path, secure: bool
) -> None:
    found = await cut_uploads.batch(tmp_path, range(6), secure=secure)
    assert len(found) == 6
    assert all(upload.kept_its_promise for upload in found), found
    assert sum(upload.cuts for upload in found) >= 6


async def test_an_upload_goes_on_at_another_server_of_the_same_store(tmp_path: Path) -> None:
    store, update = big_store(tmp_path), cut_uploads.make_update(1)
    size = len(update.payload)
    async with Relay([], FaultPlan(script=(Fault("reset", size // 2),))) as relay:
        async with serve(store) as first:
            relay.targets = [first.address]
            client = await cut_uploads.joined(relay.address, "ge")
            sending = asyncio.create_task(client.upload(update))
            await until(lambda: relay.links[0].fault_came)
            relay.refuse(2.0)  # the site cannot get back before the other server is there
        async with serve(store) as second:
            relay.targets = [second.address]
            await sending
        await client.close()
    assert relay.refused
    assert relay.bytes_up <= size + 2 * CHUNK_BYTES
    assert relay.links[-1].up.received < size - CHUNK_BYTES  # what the first one had was not sent again
    assert cut_uploads.stored(store, "ge", update.digest) == update.payload


# --- connections that fall silent, end early or repeat themselves ------------------------------------------------------


@pytest.mark.parametrize("after", [500_000, 4_000_000])
async def test_an_upload_that_does_not_move_begins_again_within_the_calls_time(tmp_path: Path, after: int) -> None:
    store, update = big_store(tmp_path), cut_uploads.make_update(2)
    plan = FaultPlan(script=(Fault("half_open", after),))
    async with (
        serve(store) as running,
        Relay([running.address], plan) as relay,
        joined(relay.address, call_timeout_s=1.5) as client,
    ):
        began = time.monotonic()
        await client.upload(update)
        assert time.monotonic() - began < 6.0
    assert len(relay.links) == 2
    assert relay.bytes_up <= len(update.payload) + 2 * CHUNK_BYTES
    assert cut_uploads.stored(store, "ge", update.digest) == update.payload


async def test_a_call_on_a_dead_connection_is_made_again_on_a_new_one(tmp_path: Path) -> None:
    async with (
        serve(small_store(tmp_path)) as running,
        Relay([running.address]) as relay,
        joined(relay.address, call_timeout_s=1.0) as client,
    ):
        relay.freeze()
        began = time.monotonic()
        task = await client.await_round(**WAITS, wait_s=0.0)
        assert time.monotonic() - began < 3.0
    assert task.instruction == "TRAIN"
    assert [link.fault for link in relay.links] == [None, None]
    assert relay.links[0].ended == "half_open"


async def test_a_long_poll_on_a_dead_connection_is_noticed_long_before_its_end(tmp_path: Path) -> None:
    async with (
        serve(small_store(tmp_path)) as running,
        Relay([running.address]) as relay,
        joined(relay.address, call_timeout_s=4.0) as client,
    ):
        waiting = asyncio.create_task(client.await_round(**WAITS, wait_s=30.0))
        await asyncio.sleep(0.5)
        relay.freeze()
        began = time.monotonic()
        await until(lambda: len(relay.links) == 2)
        assert time.monotonic() - began < 6.0
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_live_long_poll_is_left_alone_by_frequent_probing(tmp_path: Path) -> None:
    async with (
        serve(small_store(tmp_path)) as running,
        Relay([running.address]) as relay,
        joined(relay.address, call_timeout_s=1.0) as client,
    ):
        task = await client.await_round(**WAITS, wait_s=12.0)
    assert task.instruction == "TRAIN"
    assert len(relay.links) == 1


async def test_a_download_that_falls_silent_goes_on_where_it_stopped(tmp_path: Path) -> None:
    plan = FaultPlan(script=(Fault("half_open", 1_500_000, "down"),))
    async with (
        serve(big_store(tmp_path)) as running,
        Relay([running.address], plan) as relay,
        joined(relay.address, call_timeout_s=4.0) as client,
    ):
        began = time.monotonic()
        fetched = await client.fetch(CONTRACT, Task("TRAIN", 1, 0, BIG.digest, 60.0, ""), None)
        assert time.monotonic() - began < 8.0
    assert fetched.digest == BIG.digest
    assert len(relay.links) == 2
    assert relay.bytes_down < len(forms.pack(BIG.payload, None)) + 2 * CHUNK_BYTES


async def test_a_call_that_fails_does_not_end_another_one_under_way(tmp_path: Path) -> None:
    """A heartbeat that comes too late gives the connection up; the upload beside it keeps it until its own end."""
    store, update = big_store(tmp_path), cut_uploads.make_update(3)
    async with (
        serve(store) as running,
        Relay([running.address], FaultPlan(bytes_per_s=2_500_000)) as relay,
        joined(relay.address) as client,
    ):
        with capture_logs() as events:
            sending = asyncio.create_task(client.upload(update))
            await asyncio.sleep(0.5)
            client._calls.call_timeout_s = 0.05  # less than what waits in the line before it
            with pytest.raises(AggregatorUnreachable):
                await client.await_round(**WAITS, wait_s=0.0, give_up_after_s=0.0)
            client._calls.call_timeout_s = 30.0
            task = await client.await_round(**WAITS, wait_s=0.0)
            assert not sending.done()
            await sending
    assert task.instruction == "TRAIN"
    assert len(relay.links) > 1
    calls = [event for event in events if event["event"] == "rpc_finished" and event["side"] == "site"]
    assert [call["code"] for call in calls if call["rpc"] == "UploadDelta"] == ["OK"]
    assert "DEADLINE_EXCEEDED" in {call["code"] for call in calls if call["rpc"] == "AwaitRound"}
    assert cut_uploads.stored(store, "ge", update.digest) == update.payload


@pytest.mark.parametrize("kind", ["truncate", "duplicate"])
@pytest.mark.parametrize("after", [20_000, 1_500_000, 6_000_000])
async def test_a_stream_that_ends_early_or_repeats_itself_is_sent_again(tmp_path: Path, kind: str, after: int) -> None:
    store, update = big_store(tmp_path), cut_uploads.make_update(4)
    plan = FaultPlan(script=(Fault(kind, after),))  # type: ignore[arg-type]
    async with (
        serve(store) as running,
        Relay([running.address], plan) as relay,
        joined(relay.address, call_timeout_s=2.0) as client,
    ):
        await client.upload(update)
    assert relay.links[0].fault_came
    assert cut_uploads.stored(store, "ge", update.digest) == update.payload


# --- receipts that do not arrive, duplicates, conflicts ------------------------------------------------------------


def accepted_at(store: str, update: Update) -> float | None:
    opened = engine.open_store(store)
    try:
        found = opened.read(updates.find, UpdateKey("demo", 1, "ge", update.digest))
        return found[1] if found else None
    finally:
        opened.close()


async def test_a_receipt_lost_on_its_way_is_asked_for_and_nothing_is_sent_again(tmp_path: Path) -> None:
    store, update = small_store(tmp_path), small_update()
    async with (
        serve(store) as running,
        Relay([running.address], FaultPlan(latency_s=0.2)) as relay,
        joined(relay.address) as client,
    ):
        with capture_logs() as events:
            sending = asyncio.create_task(client.upload(update))
            await until(lambda: accepted_at(store, update) is not None)
            relay.reset()  # the receipt is still 0.2 s away
            at = accepted_at(store, update)
            await sending
        async with RawSite(running.address, "ge", agent_id="agent-of-ge") as site:
            assert (await site.begin(update.payload)).receipt.accepted_at == at
    calls = [(e["rpc"], e["code"]) for e in events if e["event"] == "rpc_finished" and e["side"] == "site"]
    assert [rpc for rpc, code in calls if code == "OK"] == [
        "BeginUpload",
        "Join",
        "BeginUpload",
    ]  # on another connection
    assert [rpc for rpc, code in calls if code != "OK"][:1] == ["UploadDelta"]


async def test_two_streams_of_one_upload_at_once_end_with_one_accepted_update(tmp_path: Path) -> None:
    """As after a half-open connection: the old stream still comes in while the site sends a new one."""
    store, update = big_store(tmp_path), cut_uploads.make_update(5)
    plan = FaultPlan(latency_s=0.01)
    async with (
        serve(store) as running,
        Relay([running.address], plan) as relay,
        joined(relay.address) as one,
        joined(relay.address) as other,
    ):
        await asyncio.gather(one.upload(update), other.upload(update))
    assert cut_uploads.stored(store, "ge", update.digest) == update.payload


async def test_another_update_in_the_place_of_an_accepted_one_is_refused_and_not_sent(tmp_path: Path) -> None:
    store, update = small_store(tmp_path), small_update()
    async with serve(store) as running, joined(running.address) as client:
        await client.upload(update)
        at = accepted_at(store, update)
        with pytest.raises(ConflictingUpdate, match="updates are never replaced"):
            await client.upload(small_update(seed=9))
        await client.upload(update)
        assert accepted_at(store, update) == at

"""Taking updates that are announced in the call that brings them, and hearing of agents: on a real store, without a server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from med_duallora.v1 import federation_pb2 as pb

from aggregator import rounds, uploads
from aggregator.federation import Federation
from aggregator.identity import Caller
from aggregator.joining import JoinClaim
from aggregator.store import engine, federations, updates
from aggregator.store.engine import Store
from aggregator.uploads import Announcement, Receipt, Uploads
from shared.canonical import sha256_hex
from shared.errors import (
    BadOffset,
    ConflictingUpdate,
    ContractMismatch,
    IdentityInUse,
    InvalidUpdate,
    NotFound,
    StaleRound,
    UpdateTooLarge,
)
from shared.protocol import CHUNK_BYTES, VERSION
from shared.recipe import CODECS, INSTALLED
from tests.support import adapters
from tests.support.serving import make_store

SITES = ("ge", "philips", "siemens")
LAYOUT = adapters.adapter().manifest.layout
DATA = adapters.delta(LAYOUT, 1)
GE = Caller("ge", True)


class Counting(Store):
    """Counts transactions that write, and those that read."""

    writes = reads = 0

    def read(self, *args: Any, **kwargs: Any) -> Any:
        self.reads += 1
        return super().read(*args, **kwargs)

    def write(self, *args: Any, **kwargs: Any) -> Any:
        self.writes += 1
        return super().write(*args, **kwargs)

    def change(self, *args: Any, **kwargs: Any) -> Any:
        self.writes += 1
        return super().change(*args, **kwargs)


class Clock:
    """Says what it was told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Counting]:
    opened = Counting(engine.open_store(make_store(tmp_path, sites=SITES, deadline_s=100.0))._database)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def served(store: Counting, clock: Clock) -> Federation:
    made = Federation(store, "demo", clock=clock)
    for site in SITES:
        await made.join(Caller(site, True), claim(site))
    return made


def claim(site: str) -> JoinClaim:
    return JoinClaim(
        federation="demo",
        protocol_version=VERSION,
        agent_id=f"agent-of-{site}",
        software_version="",
        base_model_sha256=adapters.BASE_MODEL,
        training_patients=10,
        codecs=CODECS,
        recipes=INSTALLED,
    )


def announcement(data: bytes = DATA, site: str = "ge", **changes: Any) -> Announcement:
    header = rounds.UpdateHeader(
        site=site,
        agent_id=f"agent-of-{site}",
        round=1,
        digest=sha256_hex(data),
        size=len(data),
        codec="f32",
        base_version=0,
        training_patients=10,
    )
    return Announcement(federation="demo", header=replace(header, **changes), layout_digest=LAYOUT.digest)


async def chunks(*pieces: bytes, after: asyncio.Event | None = None) -> AsyncIterator[pb.Chunk]:
    if after is not None:
        await after.wait()
    offset = 0
    for piece in pieces:
        yield pb.Chunk(offset=offset, data=piece)
        offset += len(piece)


def take(served: Federation, data: bytes = DATA, site: str = "ge", **changes: Any) -> Any:
    return Uploads(served).take(Caller(site, True), announcement(data, site, **changes), chunks(data))


async def test_an_update_of_one_chunk_counts_after_one_commit(served: Federation, store: Counting) -> None:
    await served.state()
    store.writes = store.reads = 0
    assert await take(served) == Receipt(1, sha256_hex(DATA), 1000.0)
    assert (store.writes, store.reads) == (1, 0)
    key = updates.UpdateKey("demo", 1, "ge", sha256_hex(DATA))
    assert b"".join(updates.checked_pieces(store, key)) == DATA


async def test_the_copy_of_the_state_is_what_a_commit_left_in_the_store(served: Federation, store: Counting) -> None:
    for site in SITES[:2]:
        served.clock.now += 1.0  # type: ignore[attr-defined]
        await take(served, adapters.delta(LAYOUT, len(site)), site)
        store.reads = 0
        copy = await served.state()
        assert store.reads == 0
        assert copy == store.read(federations.state, "demo")
    assert set(copy.round.accepted) == set(SITES[:2])


async def test_a_change_that_somebody_else_made_is_seen_all_the_same(served: Federation, store: Counting) -> None:
    other = engine.open_store(store.place)
    other.change("demo", True, federations.evict, "demo", "siemens", "left")
    await take(served)
    assert await served.state() == store.read(federations.state, "demo")
    assert (await served.state()).sites["siemens"].phase == "evicted"
    other.close()


async def test_repeating_it_gives_the_same_receipt_and_another_update_is_refused(
    served: Federation, store: Counting, clock: Clock
) -> None:
    first = await take(served)
    clock.now = 2000.0
    assert await take(served) == first
    with pytest.raises(ConflictingUpdate, match="updates are never replaced"):
        await take(served, adapters.delta(LAYOUT, 2))


async def test_what_cannot_count_is_refused_before_a_byte_is_taken(served: Federation) -> None:
    async def never() -> AsyncIterator[pb.Chunk]:
        raise AssertionError("a byte was asked for")
        yield

    for changes, error in (
        ({"round": 2}, NotFound),
        ({"base_version": 3}, StaleRound),
        ({"training_patients": 11}, ContractMismatch),
        ({"codec": "bf16"}, ContractMismatch),
        ({"size": 2 * len(DATA)}, UpdateTooLarge),
    ):
        with pytest.raises(error):
            await Uploads(served).take(GE, announcement(**changes), never())


async def test_bytes_that_are_not_those_announced_are_refused_and_leave_no_trace(
    served: Federation, store: Counting
) -> None:
    other = adapters.delta(LAYOUT, 2)
    for pieces, error, message in (
        ((other,), InvalidUpdate, "announced was"),
        ((DATA[:100], DATA[100:]), InvalidUpdate, "100 bytes of .* came in one chunk"),
        ((), BadOffset, "ended at byte 0"),
        ((DATA + b"x",), UpdateTooLarge, "announced were"),
    ):
        with pytest.raises(error, match=message):
            await Uploads(served).take(GE, announcement(), chunks(*pieces))
        assert store.read(updates.find, updates.UpdateKey("demo", 1, "ge", sha256_hex(DATA))) is None
    assert await take(served)


async def test_more_than_a_chunk_is_to_be_announced_first(tmp_path: Path) -> None:
    big = adapters.adapter(rank=32, width=1200, blocks=4)
    opened = engine.open_store(make_store(tmp_path, sites=SITES, adapter=big))
    served = Federation(opened, "demo")
    await served.join(GE, claim("ge"))
    size = big.manifest.layout.size
    assert size > CHUNK_BYTES
    announced = replace(announcement(size=size), layout_digest=big.manifest.layout.digest)
    with pytest.raises(InvalidUpdate, match="announce it with BeginUpload"):
        await Uploads(served).take(GE, announced, chunks(b""))
    opened.close()


async def test_an_update_that_is_slow_to_come_is_known_to_have_begun(
    served: Federation, store: Counting, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a round would not wait for it over its deadline, as it does for one that was announced in a call of its own."""
    monkeypatch.setattr(uploads, "AT_ONCE_S", 0.05)
    go = asyncio.Event()
    taking = asyncio.create_task(Uploads(served).take(GE, announcement(), chunks(DATA, after=go)))
    await asyncio.sleep(0.3)
    assert (await served.state()).round.announced == {"ge": 1000.0}
    clock.now = 1007.0
    go.set()
    assert (await taking).accepted_at == 1007.0
    state = await served.state()
    assert (state.round.announced, set(state.round.accepted)) == ({}, {"ge"})
    assert state == store.read(federations.state, "demo")


async def test_an_update_that_comes_just_before_the_deadline_is_announced_before_it_passes(
    served: Federation, clock: Clock
) -> None:
    deadline_at = (await served.state()).round.deadline_at
    assert deadline_at is not None
    clock.now = deadline_at - 0.02
    go = asyncio.Event()
    taking = asyncio.create_task(Uploads(served).take(GE, announcement(), chunks(DATA, after=go)))
    await asyncio.sleep(uploads.AT_ONCE_S / 2)
    assert (await served.state()).round.announced == {"ge": clock.now}
    go.set()
    await taking


async def test_the_last_chunk_is_written_and_makes_the_update_count_in_one_commit(
    served: Federation, store: Counting, clock: Clock
) -> None:
    uploading, digest = Uploads(served), sha256_hex(DATA)
    await uploading.begin(GE, announcement())
    store.writes = 0
    clock.now += 1.0
    pieces = chunks(DATA[:100], DATA[100:200], DATA[200:])
    assert await uploading.receive(GE, "demo", "agent-of-ge", 1, digest, pieces) == Receipt(1, digest, 1001.0)
    assert store.writes == 3
    assert b"".join(updates.checked_pieces(store, updates.UpdateKey("demo", 1, "ge", digest))) == DATA
    store.reads = 0
    copy = await served.state()
    assert store.reads == 0
    assert copy == store.read(federations.state, "demo")


async def test_an_update_that_was_durable_already_needs_no_chunk_to_count(
    served: Federation, store: Counting, clock: Clock
) -> None:
    """As older releases left one behind that were killed between its last chunk and the commit that made it count."""
    uploading, digest = Uploads(served), sha256_hex(DATA)
    await uploading.begin(GE, announcement())
    store.write(updates.stage, updates.UpdateKey("demo", 1, "ge", digest), 0, DATA)
    receipt = await uploading.receive(GE, "demo", "agent-of-ge", 1, digest, chunks())
    assert receipt == Receipt(1, digest, 1000.0)
    assert await uploading.receive(GE, "demo", "agent-of-ge", 1, digest, chunks()) == receipt


async def test_a_second_agent_cannot_send_in_the_firsts_place(served: Federation) -> None:
    with pytest.raises(IdentityInUse):
        await take(served, agent_id="another")

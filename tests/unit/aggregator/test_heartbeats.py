"""Hearing of agents: on a real store, without a server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from med_duallora.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from aggregator import heartbeats, wire
from aggregator.facts.sites import HOLDS
from aggregator.heartbeats import Heartbeats
from aggregator.identity import Caller
from aggregator.instructions import SiteReport
from aggregator.rounds import SiteState
from aggregator.store import agents, engine, federations
from aggregator.store.engine import Store
from shared.errors import IdentityInUse
from tests.support.serving import make_store

GE = Caller("ge", True)
IDENTITY_S = 60.0


class Counting(Store):
    """Counts transactions that write."""

    writes = 0

    def write(self, *args: Any, **kwargs: Any) -> Any:
        self.writes += 1
        return super().write(*args, **kwargs)


class Clock:
    """Says what it was told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Counting]:
    opened = Counting(engine.open_store(make_store(tmp_path))._database)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def beats(store: Counting, clock: Clock) -> Heartbeats:
    return Heartbeats(store, "demo", IDENTITY_S, clock)


async def note(beats: Heartbeats, progress: float, version: int = 0, agent_id: str = "first") -> None:
    await beats.note(GE, agent_id, SiteReport(round=1, following="TRAIN", version=version, progress=progress))


def site(store: Store) -> SiteState:
    return store.read(federations.state, "demo").sites["ge"]


async def test_what_is_new_in_quick_succession_is_written_together_and_soon(
    beats: Heartbeats, store: Counting, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "NEWS_S", 0.05)
    await note(beats, 0.1)
    store.writes = 0
    for step in range(2, 10):
        clock.now += 0.1
        await note(beats, step / 10, version=3)
    assert store.writes == 0
    await asyncio.sleep(0.3)
    assert store.writes == 1
    found = site(store)
    assert (found.progress, found.version, found.last_seen) == (0.9, 3, pytest.approx(1000.8))


async def test_after_a_while_it_is_written_before_it_is_answered(
    beats: Heartbeats, store: Counting, clock: Clock
) -> None:
    await note(beats, 0.1)
    clock.now += heartbeats.WRITE_S
    await note(beats, 0.1)
    assert site(store).last_seen == clock.now


async def test_what_holds_a_site_up_stands_until_it_says_that_it_does_not(
    beats: Heartbeats, store: Counting, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "NEWS_S", 0.01)
    for request, hold in ((pb.AwaitRoundRequest(hold=pb.HOLD_DISK), "DISK"), (pb.AwaitRoundRequest(), "")):
        clock.now += heartbeats.WRITE_S
        await beats.note(GE, "first", wire.site_report(request))
        assert site(store).hold == hold


def test_every_hold_of_the_protocol_is_told_in_words_and_one_of_a_later_release_is_none() -> None:
    told = {wire.site_report(pb.AwaitRoundRequest(hold=number)).hold for number in pb.Hold.values()}  # type: ignore[arg-type]
    assert told == {"", *HOLDS} == {"", *(name.removeprefix("HOLD_") for name in pb.Hold.keys()[1:])}
    later = pb.AwaitRoundRequest.FromString(bytes([8 << 3, 99]))
    assert wire.site_report(later).hold == ""


async def test_another_agent_is_refused_however_recent_the_first_ones_heartbeat_is(
    beats: Heartbeats, clock: Clock
) -> None:
    await note(beats, 0.1)
    clock.now += 1.0
    with pytest.raises(IdentityInUse):
        await note(beats, 0.1, agent_id="another")
    clock.now += IDENTITY_S
    await note(beats, 0.1, agent_id="another")
    with pytest.raises(IdentityInUse):
        await note(beats, 0.1)


async def test_news_of_an_agent_that_another_one_has_replaced_elsewhere_is_dropped(
    beats: Heartbeats, store: Counting, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "NEWS_S", 0.01)
    await note(beats, 0.1)
    store.write(agents.heard, "demo", "ge", "another", clock.now + IDENTITY_S, IDENTITY_S)
    with capture_logs() as events:
        await note(beats, 0.5)
        await asyncio.sleep(0.1)
    assert [event["event"] for event in events] == ["heartbeat_too_late"]
    assert site(store).progress == 0.0


async def test_a_server_on_its_way_out_writes_nothing_more_by_itself(
    beats: Heartbeats, store: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "NEWS_S", 0.01)
    await note(beats, 0.1)
    store.writes = 0
    await note(beats, 0.5)
    beats.drain()
    await asyncio.sleep(0.1)
    assert store.writes == 0

"""The relay does what its plan says, and the same again from the same seed."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from experiments.relay import KINDS, PIECE_BYTES, Fault, FaultPlan, Link, Relay

DATA = random.Random(0).randbytes(1 << 18)


class Far:
    """A target that keeps what it was sent, and answers a connection's end with `reply`."""

    def __init__(self, reply: bytes = b"") -> None:
        self.received: list[bytes] = []
        self.ends: list[str] = []
        self.address = ""
        self._reply = reply

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Far"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = bytearray()
        try:
            while data := await reader.read(1 << 16):
                received += data
            self.ends.append("fin")
        except ConnectionResetError:
            self.ends.append("rst")
        self.received.append(bytes(received))
        writer.write(self._reply)
        writer.close()


async def send(relay: Relay, data: bytes = DATA) -> bytes:
    """Send everything and the end; return what came back."""
    host, port = relay.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        await writer.drain()
        writer.write_eof()
        return await reader.read(-1)
    finally:
        writer.close()


async def settled(far: Far, count: int = 1) -> None:
    for _ in range(1000):
        if len(far.ends) >= count:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("the target did not hear of an end")


async def test_without_a_plan_everything_passes_in_both_directions_and_is_counted():
    async with Far(b"thanks").running() as far, Relay([far.address], keep=True) as relay:
        assert await send(relay) == b"thanks"
    assert far.received == [DATA]
    assert (relay.bytes_up, relay.bytes_down) == (len(DATA), len(b"thanks"))
    assert relay.captures == [DATA, b"thanks"]
    assert [link.ended for link in relay.links] == ["close"]


async def test_payload_is_kept_only_when_asked_for():
    async with Far().running() as far, Relay([far.address]) as relay:
        await send(relay)
    assert relay.bytes_up == len(DATA)
    assert relay.captures == [b"", b""]


async def test_a_reset_comes_after_so_many_bytes_and_reaches_both_sides():
    async with Far().running() as far, Relay([far.address], FaultPlan(script=(Fault("reset", 100_000),))) as relay:
        with pytest.raises(ConnectionResetError):
            await send(relay)
        await settled(far)
    (link,) = relay.links
    assert link.ended == "reset"
    assert link.up.forwarded == 100_000 <= link.up.received
    assert far.ends == ["rst"]


async def test_what_a_sender_got_rid_of_before_a_reset_is_counted_though_it_went_nowhere():
    ends = (near, sender), (far, receiver) = socket.socketpair(), socket.socketpair()
    for one in (end for pair in ends for end in pair):
        one.setblocking(False)
    sent = sender.send(DATA[:100_000])
    assert sent > PIECE_BYTES  # more than is read at once, so some of it still lies in the kernel when the fault comes
    link = Link(FaultPlan(script=(Fault("reset", 1000),)), 0, near, far, keep=True)
    await link.run()
    sender.close()
    receiver.close()
    assert (link.up.received, link.up.forwarded) == (sent, 1000)
    assert link.up.kept == DATA[:sent]


async def test_a_truncated_stream_ends_as_if_it_were_whole():
    plan = FaultPlan(script=(Fault("truncate", 100_000),))
    async with Far(b"thanks").running() as far, Relay([far.address], plan) as relay:
        assert await send(relay) == b"thanks"
    assert far.received == [DATA[:100_000]]
    assert far.ends == ["fin"]
    assert relay.bytes_up == len(DATA)


async def test_a_truncated_answer_leaves_the_way_up_alone():
    plan = FaultPlan(script=(Fault("truncate", 3, "down"),))
    async with Far(b"thanks").running() as far, Relay([far.address], plan) as relay:
        assert await send(relay) == b"tha"
    assert far.received == [DATA]


async def test_a_half_open_connection_is_silent_and_ends_with_the_relay():
    plan = FaultPlan(script=(Fault("half_open", 1000),))
    async with Far(b"thanks").running() as far:
        async with Relay([far.address], plan) as relay:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await send(relay)
            assert far.ends == []
            assert relay.links[0].ended == "half_open"
        await settled(far)
    assert len(far.received[0]) == 1000


async def test_a_duplicated_segment_arrives_twice_in_place():
    plan = FaultPlan(script=(Fault("duplicate", 1000),))
    async with Far().running() as far, Relay([far.address], plan) as relay:
        await send(relay)
    (received,) = far.received
    more = len(received) - len(DATA)
    assert 0 < more <= PIECE_BYTES
    assert received == DATA[: 1000 + more] + DATA[1000:]


async def test_new_connections_are_refused_for_a_while_and_open_ones_are_not_touched():
    async with Far(b"thanks").running() as far, Relay([far.address]) as relay:
        host, port = relay.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"before")
        await asyncio.sleep(0.05)
        relay.refuse(0.3)
        with pytest.raises(ConnectionResetError):
            await send(relay)
        writer.write_eof()
        assert await reader.read(-1) == b"thanks"
        writer.close()
        await asyncio.sleep(0.3)
        assert await send(relay) == b"thanks"
    assert relay.refused == 1


async def test_connections_are_dealt_out_to_targets_and_a_dead_target_is_passed_over():
    async with Far(b"one").running() as one, Far(b"two").running() as two:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            dead = f"127.0.0.1:{taken.getsockname()[1]}"
        async with Relay([one.address, dead, two.address]) as relay:
            assert [await send(relay) for _ in range(6)] == [b"one", b"two", b"two", b"one", b"two", b"two"]


async def test_with_every_target_dead_a_connection_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
    async with Relay([dead]) as relay:
        with pytest.raises(ConnectionResetError):
            await send(relay)
    assert relay.refused == 1


async def test_latency_holds_back_and_jitter_never_reorders():
    plan = FaultPlan(latency_s=0.1, jitter_s=0.05)
    async with Far(b"thanks").running() as far, Relay([far.address], plan) as relay:
        began = time.monotonic()
        assert await send(relay) == b"thanks"
        assert 0.2 <= time.monotonic() - began < 2.0
    assert far.received == [DATA]


async def test_a_rate_bounds_what_passes_in_a_second():
    plan = FaultPlan(bytes_per_s=500_000)
    async with Far(b"thanks").running() as far, Relay([far.address], plan) as relay:
        began = time.monotonic()
        assert await send(relay) == b"thanks"
        assert time.monotonic() - began >= len(DATA) / 500_000
    assert far.received == [DATA]


async def test_open_connections_can_be_cut_and_frozen_by_hand():
    async with Far().running() as far, Relay([far.address]) as relay:
        host, port = relay.address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"before")
        await asyncio.sleep(0.05)
        relay.freeze()
        writer.write(b"after")
        await asyncio.sleep(0.05)
        _, other = await asyncio.open_connection(host, int(port))
        other.write(b"before")
        await asyncio.sleep(0.05)
        relay.reset()
        await settled(far)
        writer.close()
        other.close()
    assert [link.ended for link in relay.links] == ["half_open", "reset"]
    assert [link.up.forwarded for link in relay.links] == [6, 6]


def test_what_is_drawn_depends_on_seed_and_number_alone():
    plan = FaultPlan(seed=7, share=0.5, within=10_000, refuse_s=2.0)
    fates = [plan.fault(number) for number in range(400)]
    assert fates == [FaultPlan(seed=7, share=0.5, within=10_000).fault(number) for number in range(400)]
    drawn = [fate for fate in fates if fate is not None]
    assert 150 < len(drawn) < 250
    assert {fate.kind for fate in drawn} == set(KINDS)
    assert {fate.direction for fate in drawn} == {"up", "down"}
    assert all(0 <= fate.after < 10_000 for fate in drawn)
    assert fates != [FaultPlan(seed=8, share=0.5, within=10_000).fault(number) for number in range(400)]
    assert all(0.0 <= plan.refusal_s(number) <= 2.0 for number in range(400))


def test_a_script_comes_first():
    plan = FaultPlan(seed=7, script=(None, Fault("reset", 5)), share=1.0, kinds=("half_open",))
    assert [plan.fault(0), plan.fault(1)] == [None, Fault("reset", 5)]
    fault = plan.fault(2)
    assert fault is not None
    assert fault.kind == "half_open"

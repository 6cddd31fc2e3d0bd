"""What the aggregator answers to a Probe: that it knows this site, its clock, its protocol. Nothing is registered by that."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from med_duallora.v1 import federation_pb2 as pb

from shared import protocol, status
from shared.errors import IncompatibleProtocol, InputError, NotEnrolled
from shared.names import plain
from shared.protocol import ATTEMPT_KEY, CALL_ID_KEY, SITE_KEY
from shared.rpc import new_id
from site_agent.connection import Connection
from site_agent.doctor.certificates import asking
from site_agent.doctor.finding import Examined, Finding, Told, failed, passed, warned

T = TypeVar("T")
SKEW_WARN_S, SKEW_FAIL_S = 30.0, 600.0
"""A certificate made just now is valid from an hour before (aggregator/certificates.py): from there on they begin to fail. Far
below, logs and training windows are off."""
MOST_TEXT = 200

Probe = Callable[[pb.ProbeRequest], Awaitable[pb.ProbeResponse]]


def probing(examined: Examined, work: Callable[[Probe], Awaitable[T]]) -> T:
    """Run `work`, which makes Probe calls one after the other on one connection, made as the agent makes its own.

    Raises grpc.aio.AioRpcError, InputError for TLS files that cannot be read.
    """
    config, call_s = examined.config, 2 * examined.patience_s

    async def run() -> T:
        connection = Connection(config.aggregator, config.tls, call_s)
        identity = ((SITE_KEY, config.plain_site),) if config.tls is None else ()

        async def probe(request: pb.ProbeRequest) -> pb.ProbeResponse:
            metadata = (*identity, (CALL_ID_KEY, new_id()), (ATTEMPT_KEY, "0"))
            async with connection.use() as dialled:
                answer: pb.ProbeResponse = await dialled.stub.Probe(request, timeout=call_s, metadata=metadata)
                return answer

        try:
            return await work(probe)
        finally:
            await connection.close()

    return asyncio.run(run())


def knows_us(examined: Examined) -> Finding:
    """Ask once, with gRPC itself: what comes here has passed every layer that the agent's calls pass."""

    async def ask(probe: Probe) -> Told:
        await probe(pb.ProbeRequest())  # makes the connection, so that the second call times nothing but itself
        sent, began = examined.clock(), time.monotonic()
        reply = await probe(pb.ProbeRequest(describe=True))
        took = time.monotonic() - began
        return Told(reply.server_time, sent, sent + took, reply.joined if reply.HasField("joined") else None)

    try:
        examined.told = told = probing(examined, ask)
    except grpc.aio.AioRpcError as error:
        return _refused(examined, error)
    except InputError as error:
        return failed(str(error), "correct [tls] in site.toml")
    took = told.received_at - told.sent_at
    who = (
        f"takes us for site {plain(told.joined.site, 64)} of federation {plain(told.joined.federation, 64)}"
        if told.joined
        else ""
    )
    return passed(f"it {who or 'answers'}, in {1000 * took:.0f} ms", round_trip_s=round(took, 6))


def clock(examined: Examined) -> Finding:
    """Compare the two clocks: the aggregator read its own between the sending and the answer."""
    assert examined.told is not None
    told = examined.told
    skew = (told.sent_at + told.received_at) / 2 - told.server_time
    within = (told.received_at - told.sent_at) / 2
    facts = {"skew_s": round(skew, 3), "within_s": round(within, 3)}
    words = f"this machine's clock is {abs(skew):,.1f} s {'ahead of' if skew > 0 else 'behind'} the aggregator's"
    remedy = "have the clock kept by NTP (timedatectl set-ntp true); if it is right, tell the coordinator"
    if abs(skew) - within > SKEW_FAIL_S:
        return failed(words, remedy, **facts)
    if abs(skew) - within > SKEW_WARN_S:
        return warned(words, remedy, **facts)
    return passed(f"{words} (to {within:.1g} s)", **facts)


def version(examined: Examined) -> Finding:
    """Look whether the aggregator would take this agent's protocol version."""
    assert examined.told is not None
    joined = examined.told.joined
    if joined is None:
        return failed(
            f"the aggregator's protocol is older than 1.3, this agent's is {protocol.VERSION}: it will refuse us",
            "ask the coordinator to upgrade the aggregator; it is upgraded before the agents",
            ours=protocol.VERSION,
        )
    facts = {"ours": protocol.VERSION, "theirs": plain(joined.protocol_version, 20)}
    try:
        protocol.check(protocol.VERSION, joined.protocol_version)
    except IncompatibleProtocol as error:
        return failed(
            str(error), "upgrade the side named, the aggregator first: pip install --upgrade 'med-duallora'", **facts
        )
    return passed(f"ours {protocol.VERSION}, the aggregator's {facts['theirs']}", **facts)


def _refused(examined: Examined, error: grpc.aio.AioRpcError) -> Finding:
    raised, said = status.error_of(error), plain(error.details() or "", MOST_TEXT)
    facts: dict[str, Any] = {"code": error.code().name}
    if isinstance(raised, NotEnrolled):
        return failed(
            said,
            "only the coordinator can enrol this site or approve another certificate"
            + (f"; if this one is revoked: {asking(examined.config.tls)}" if examined.config.tls else ""),
            **facts,
        )
    if raised is not None:
        return failed(said, "ask the coordinator, naming this message", **facts)
    if error.code() == grpc.StatusCode.UNIMPLEMENTED:
        return failed(
            "another gRPC service answers, not an aggregator's",
            f"compare {examined.config.aggregator} with what the coordinator gave you",
            **facts,
        )
    return failed(
        f"no answer by gRPC ({error.code().name}: {said})",
        "if all above passes, something on the way speaks TLS and no gRPC (HTTP/2 with trailers): have "
        f"{examined.config.aggregator} passed through as TCP; else ask the coordinator whether the aggregator runs",
        **facts,
    )

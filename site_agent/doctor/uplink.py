"""How fast this site's line is, and what that makes of a round: Probe calls with random bytes, as large as they may be."""

import os
import time
from dataclasses import dataclass

import grpc
from med_duallora.v1 import federation_pb2 as pb

from shared.contract import Contract
from shared.protocol import MAX_PROBE_BYTES
from site_agent.calls import MIN_RATE_BYTES_PER_S
from site_agent.doctor.answer import Probe, probing
from site_agent.doctor.finding import Examined, Finding, failed, passed, warned

SIZES = (16 << 10, 64 << 10, MAX_PROBE_BYTES)
ENOUGH_S = 0.5
"""A payload that takes this long tells the rate well; larger ones are not sent then."""
LONG_SHARE = 0.1
"""Of a round's deadline: more than this for the two transfers leaves too little to train in."""
FASTEST = 125e6
"""A gigabit a second: above that a quarter of a megabyte says nothing."""


@dataclass(frozen=True, slots=True)
class Line:
    """Bytes a second, each way, and the time of an empty call."""

    up: float
    down: float
    round_trip_s: float
    largest: int


def speed(examined: Examined) -> Finding:
    """Measure the line, and work out what a round's update and version take on it."""
    try:
        line = probing(examined, _measure)
    except grpc.aio.AioRpcError as error:
        return failed(
            f"a payload did not get through ({error.code().name})",
            "small calls pass and larger ones do not: look at the path's MTU, and at what inspects the traffic",
            code=error.code().name,
        )
    facts: dict[str, object] = {
        "up_bytes_per_s": round(line.up),
        "down_bytes_per_s": round(line.down),
        "round_trip_s": round(line.round_trip_s, 6),
        "probe_bytes": line.largest,
    }
    words = f"{_rate(line.up)} up, {_rate(line.down)} down, {1000 * line.round_trip_s:.0f} ms there and back"
    contract = examined.contract
    up_bytes, down_bytes = bytes_a_round(contract) if contract else (0, 0)
    transfer_s = up_bytes / line.up + down_bytes / line.down + 6 * line.round_trip_s
    if contract:
        facts |= {"round_up_bytes": up_bytes, "round_down_bytes": down_bytes, "round_transfer_s": round(transfer_s, 3)}
        sizes = f"{up_bytes / 1000:,.1f} kB up and at most {down_bytes / 1000:,.1f} kB down"
        words += f"; a round's {sizes} take {_seconds(transfer_s)}"
    if line.up < MIN_RATE_BYTES_PER_S:
        return failed(
            f"{words}; the agent's transfers reckon with {MIN_RATE_BYTES_PER_S / 1000:g} kB/s at least",
            "find out what slows the line down (a shaped proxy, a full uplink); the coordinator can choose a smaller codec",
            **facts,
        )
    if contract and transfer_s > LONG_SHARE * contract.policy.deadline_s:
        return warned(
            f"{words}, of {contract.policy.deadline_s:,.0f} s that it has",
            "ask the coordinator for a smaller codec (--set codec=int4+zstd) or a longer deadline; or have the line made faster",
            **facts,
        )
    return passed(words, **facts)


def bytes_a_round(contract: Contract) -> tuple[int, int]:
    """Return the most bytes of tensors that a round takes up, and that a round's version takes down."""
    recipe, manifest = contract.recipe, contract.manifest
    rounds = (1, 2)  # where factors take turns, they take two
    up = max(recipe.upload_layout(manifest, number, contract.policy.invited).size for number in rounds)
    change = max(recipe.change_layout(manifest, number).size for number in rounds)
    return up, min(change, manifest.layout.size)


async def _measure(probe: Probe) -> Line:
    async def took(size: int, *, echo: bool = False) -> float:
        payload = os.urandom(size)
        began = time.monotonic()
        await probe(pb.ProbeRequest(payload=payload, echo=echo))
        return time.monotonic() - began

    empty = min([await took(0) for _ in range(3)])
    size, up_s = 0, 0.0
    for size in SIZES:
        up_s = await took(size)
        if up_s > ENOUGH_S:
            break
        up_s = min(up_s, await took(size))
    both_s = await took(size, echo=True)
    return Line(
        up=size / max(up_s - empty, size / FASTEST),
        down=size / max(both_s - up_s, size / FASTEST),
        round_trip_s=empty,
        largest=size,
    )


def _rate(bytes_per_s: float) -> str:
    if bytes_per_s >= 0.999 * FASTEST:
        return "1 Gbit/s or more"
    bits = 8 * bytes_per_s
    return f"{bits / 1e6:,.1f} Mbit/s" if bits >= 1e6 else f"{bits / 1e3:,.0f} kbit/s"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 0.1 else "under 0.1 s"

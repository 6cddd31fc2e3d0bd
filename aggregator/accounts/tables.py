"""Rows of counts: calls, messages, bytes and tensor bytes, and how the bytes divide into goodput and repetition."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from aggregator.accounts.goodput import PROBE, Account

CELL = ("site", "round", "direction", "purpose")
DIRECTIONS = ("up", "down")


def table(accounts: Sequence[Account], by: str | None = None) -> list[dict[str, Any]]:
    """Return one row per site, round, direction and purpose, or per value of `by` with both directions."""
    groups: dict[Any, list[Account]] = defaultdict(list)
    if by is not None:
        for one in accounts:
            groups[getattr(one.call, by)].append(one)
        return [{by: value, **totals(group)} for value, group in sorted(groups.items())]
    for one in accounts:
        for direction in DIRECTIONS:
            groups[one.call.site, one.call.round, direction, one.call.purpose].append(one)
    return [
        {**dict(zip(CELL, cell, strict=True)), "calls": len(group), **_sums(group, cell[2])}
        for cell, group in sorted(groups.items())
    ]


def totals(accounts: Sequence[Account]) -> dict[str, int]:
    """Return the sums of some calls, each name with its direction."""
    result = {"calls": len(accounts)}
    for direction in DIRECTIONS:
        result |= {f"{name}_{direction}": value for name, value in _sums(accounts, direction).items()}
    return result


def a_round(accounts: Sequence[Account]) -> dict[str, int] | None:
    """Return the medians, over every site's rounds, of the bytes each way, and of how many they are; None if no call is of a round.

    What comes before the first round, joining, is in none.
    """
    cells: dict[tuple[str, int], list[Account]] = defaultdict(list)
    for one in accounts:
        if one.call.round:
            cells[one.call.site, one.call.round].append(one)
    if not cells:
        return None
    sums = {way: [_sums(cell, way)["bytes"] for cell in cells.values()] for way in DIRECTIONS}
    return {"rounds": len(cells), **{f"bytes_{way}": round(statistics.median(sums[way])) for way in DIRECTIONS}}


def _sums(accounts: Sequence[Account], direction: str) -> dict[str, int]:
    """`bytes` is all that was sent; goodput and repeated bytes add up to it. A probe is neither: random bytes that nobody needs."""
    traffic = [getattr(one.call, direction) for one in accounts]
    sent = sum(part.bytes for part in traffic)
    useful = sum(getattr(one, direction).bytes for one in accounts)
    probed = sum(getattr(one.call, direction).bytes for one in accounts if one.call.purpose == PROBE)
    return {
        "messages": sum(part.messages for part in traffic),
        "bytes": sent,
        "payload_bytes": sum(part.payload_bytes for part in traffic),
        "goodput_bytes": useful,
        "repeated_bytes": sent - useful - probed,
    }


def probed(probes: Mapping[str, int]) -> str:
    """Return in words what the doctor's probes took."""
    return (
        f"Beside these, in no other figure: {probes['calls']:,} probes of site-agent doctor, random bytes to measure the line, "
        f"{probes['bytes_up']:,} bytes up, {probes['bytes_down']:,} down."
    )


def size(count: int) -> str:
    """Return a size a person can hold on to; the tables have the bytes."""
    for unit, name in ((1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} B"

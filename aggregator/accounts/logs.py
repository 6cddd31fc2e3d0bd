"""Calls read from either side's log. Bytes are sizes of serialised messages; `payload` is what of them are tensors."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shared.rpc import PURPOSES

AGGREGATOR, AGENT = "aggregator", "site-agent"
COUNTED = ("messages", "bytes", "payload_bytes")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Messages, bytes and tensor bytes in one direction."""

    messages: int = 0
    bytes: int = 0
    payload_bytes: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            self.messages + other.messages, self.bytes + other.bytes, self.payload_bytes + other.payload_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call as one side saw it. `up` is towards the aggregator."""

    side: str
    method: str
    purpose: str
    call_id: str
    attempt: int
    site: str
    round: int
    code: str
    up: Traffic
    down: Traffic
    connection: str = ""
    """Its connection's name on this side; empty in logs of releases before 1.2."""
    offset: int = 0
    """First payload byte of a transfer; 0 in logs of releases before 1.2."""
    held_s: float = 0.0
    error: str = ""
    at: str = ""
    """When it ended, ISO 8601, by this side's clock."""


@dataclass(slots=True)
class Log:
    """Calls read from log files, and the lines that could not be read (named, not fatal)."""

    calls: list[Call] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    tls: bool | None = None
    """What the aggregator's `serving` event says; None if no log has one."""


def read(log: Log, lines: Iterable[str], source: str) -> None:
    """Add the calls of one log file; other events are passed over.

    An agent under TLS learns its name when it has joined: what it said before is put down to the one site its file names.
    """
    found: list[Call] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            if event["event"] == "rpc_finished":
                found.append(_call(event))
            elif event["event"] == "serving":
                log.tls = bool(event["tls"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            log.malformed.append(f"{source}:{number}: {type(error).__name__}: {str(error)[:80]}")
    named = {call.site for call in found if call.side == AGENT and call.site}
    own = named.pop() if len(named) == 1 else ""
    log.calls += [replace(call, site=own) if call.side == AGENT and not call.site else call for call in found]


def _call(event: dict[str, Any]) -> Call:
    held_s = event.get("duration_s", 0.0)
    if not isinstance(held_s, int | float) or not 0 <= held_s < math.inf:
        raise ValueError(f"expected a duration, got {held_s!r}")
    return Call(
        side=AGGREGATOR if event["side"] == AGGREGATOR else AGENT,
        method=str(event["rpc"]),
        purpose=PURPOSES.get(str(event["rpc"]), str(event["purpose"])),  # probes were called control once
        call_id=str(event["call_id"]),
        attempt=_count(event["attempt"]),
        site=str(event["site"]),
        round=_count(event["round"]),
        code=str(event["code"]),
        up=Traffic(*(_count(event[f"{what}_up"]) for what in COUNTED)),
        down=Traffic(*(_count(event[f"{what}_down"]) for what in COUNTED)),
        connection=str(event.get("connection", "")),
        offset=_count(event.get("offset", 0)),
        held_s=float(held_s),
        error=str(event.get("error", "")),
        at=str(event.get("timestamp", "")).removesuffix("Z"),
    )


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a count, got {value!r}")
    return value


def distinct(calls: Sequence[Call]) -> list[Call]:
    """Return every call once, a site's in the order in which they ended.

    Where both sides logged a call it is as the aggregator saw it; if it failed, each direction as its sender did, who alone knows
    what was lost on the way. Calls of several replicas are ordered by the aggregators' clocks,
    those of a site by its file; a site's clock is never compared with another. Calls without an id stand alone.
    """
    theirs = {call.call_id or f"line {index}": call for index, call in enumerate(calls) if call.side == AGENT}
    ours = {call.call_id or f"line {index}": call for index, call in enumerate(calls) if call.side == AGGREGATOR}
    chosen = theirs | ours | {key: _both(theirs[key], ours[key]) for key in theirs.keys() & ours.keys()}
    served: dict[str, list[str]] = defaultdict(list)
    made: dict[str, list[str]] = defaultdict(list)
    for key in sorted(ours, key=lambda key: ours[key].at):
        served[chosen[key].site].append(key)
    for key in theirs:
        made[chosen[key].site].append(key)
    sites = dict.fromkeys(call.site for call in chosen.values())
    return [chosen[key] for site in sites for key in _merged(served[site], made[site])]


def _both(agent: Call, aggregator: Call) -> Call:
    if agent.code == aggregator.code == "OK":
        return aggregator
    offset = agent.offset if agent.up.payload_bytes else aggregator.offset
    return replace(aggregator, up=agent.up, offset=offset)


def _merged(served: Sequence[str], made: Sequence[str]) -> list[str]:
    """Return the ids of both sequences once; those of one sequence only stand behind what comes before them there."""
    both, own = set(served) & set(made), iter(made)
    placed: dict[str, None] = {}
    for key in served:
        if key in both and key not in placed:
            for earlier in own:
                placed[earlier] = None
                if earlier == key:
                    break
        placed[key] = None
    placed.update(dict.fromkeys(own))
    return list(placed)

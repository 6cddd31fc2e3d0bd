"""What a run cost in bytes, from the `rpc_finished` events of either side's log. Pure functions over log records.

Bytes are sizes of serialised messages; `payload` is what of them are tensors. Calls are joined by their id, so that both
sides' accounts can be held against each other call by call.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SIDES = ("aggregator", "site-agent")
CELL = ("site", "round", "direction", "purpose")


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


@dataclass(slots=True)
class Log:
    """Calls read from log files, and the lines that could not be read (named, not fatal)."""

    calls: list[Call] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    tls: bool | None = None
    """What the aggregator's `serving` event says; None if no log has one."""


def read(log: Log, lines: Iterable[str], source: str) -> None:
    """Add the calls of one log file; other events are passed over."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            if event["event"] == "rpc_finished":
                log.calls.append(_call(event))
            elif event["event"] == "serving":
                log.tls = bool(event["tls"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            log.malformed.append(f"{source}:{number}: {type(error).__name__}: {str(error)[:80]}")


def _call(event: dict[str, Any]) -> Call:
    return Call(
        side="aggregator" if event["side"] == "aggregator" else "site-agent",
        method=str(event["rpc"]),
        purpose=str(event["purpose"]),
        call_id=str(event["call_id"]),
        attempt=_count(event["attempt"]),
        site=str(event["site"]),
        round=_count(event["round"]),
        code=str(event["code"]),
        up=Traffic(*(_count(event[f"{what}_up"]) for what in ("messages", "bytes", "payload_bytes"))),
        down=Traffic(*(_count(event[f"{what}_down"]) for what in ("messages", "bytes", "payload_bytes"))),
    )


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"expected a count, got {value!r}")
    return value


def distinct(calls: Sequence[Call]) -> list[Call]:
    """Return every call once: where both sides logged it, as the aggregator saw it. Calls without an id stand alone."""
    chosen: dict[tuple[str, ...], Call] = {}
    for index, call in enumerate(calls):
        key = ("id", call.call_id) if call.call_id else ("line", str(index))
        if key not in chosen or call.side == "aggregator":
            chosen[key] = call
    return list(chosen.values())


def table(calls: Sequence[Call], by: str | None = None) -> list[dict[str, Any]]:
    """Return rows of counts, one per site, round, direction and purpose, or per value of `by` with both directions.

    `failed_bytes` are those of calls that did not end OK; they are counted in `bytes` too.
    """
    if by is not None:
        key: Callable[[Call], Any] = lambda call: getattr(call, by)  # noqa: E731
        groups: dict[Any, list[Call]] = defaultdict(list)
        for call in calls:
            groups[key(call)].append(call)
        return [{by: value, **_totals(group)} for value, group in sorted(groups.items())]
    cells: dict[tuple[str, int, str, str], list[tuple[Call, Traffic]]] = defaultdict(list)
    for call in calls:
        cells[(call.site, call.round, "up", call.purpose)].append((call, call.up))
        cells[(call.site, call.round, "down", call.purpose)].append((call, call.down))
    return [
        dict(zip(CELL, cell, strict=True))
        | {"calls": len(found)}
        | asdict(sum((traffic for _, traffic in found), Traffic()))
        | {"failed_bytes": sum(traffic.bytes for call, traffic in found if call.code != "OK")}
        for cell, found in sorted(cells.items())
    ]


def _totals(calls: Sequence[Call]) -> dict[str, int]:
    result = {"calls": len(calls)}
    for direction in ("up", "down"):
        whole = sum((getattr(call, direction) for call in calls), Traffic())
        result |= {f"{name}_{direction}": value for name, value in asdict(whole).items()}
        result[f"failed_bytes_{direction}"] = sum(getattr(c, direction).bytes for c in calls if c.code != "OK")
    return result


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """Both sides' accounts held against each other. Lists hold one line of text per call."""

    compared: int
    agreed: int
    differing: list[str]
    ended_badly: list[str]
    one_sided: list[str]
    sites_without_agent_log: list[str]


def reconcile(calls: Sequence[Call]) -> Reconciliation | None:
    """Compare call by call: bytes of calls that ended OK on both sides must agree exactly. None if one side is missing.

    Calls of sites whose agent's log was not given cannot be compared; the sites are named.
    """
    sides: dict[str, dict[str, Call]] = {side: {} for side in SIDES}
    for call in calls:
        if call.call_id:
            sides[call.side][call.call_id] = call
    if not all(sides.values()):
        return None
    theirs, ours = sides["site-agent"], sides["aggregator"]
    agent_sites = {call.site for call in theirs.values()}
    differing, ended_badly, one_sided = [], [], []
    compared = 0
    for call_id in sorted(theirs.keys() | ours.keys()):
        agent, aggregator = theirs.get(call_id), ours.get(call_id)
        if agent is None or aggregator is None:
            call = agent or ours[call_id]
            if call.site in agent_sites:
                one_sided.append(f"{_name(call)}: in the {call.side}'s log only, {call.code}")
        elif (agent.code, aggregator.code) != ("OK", "OK"):
            ended_badly.append(f"{_name(agent)}: {agent.code} at the site, {aggregator.code} at the aggregator")
        else:
            compared += 1
            if (agent.up, agent.down) != (aggregator.up, aggregator.down):
                differing.append(
                    f"{_name(agent)}: up {agent.up.bytes} and {aggregator.up.bytes}, "
                    f"down {agent.down.bytes} and {aggregator.down.bytes} bytes at site and aggregator"
                )
    absent = sorted({c.site for c in ours.values()} - agent_sites - {""})
    return Reconciliation(compared, compared - len(differing), differing, ended_badly, one_sided, absent)


def _name(call: Call) -> str:
    return f"{call.call_id[:8]} {call.method} {call.site} round {call.round}"


@dataclass(frozen=True, slots=True)
class OverheadModel:
    """What the wire adds to messages, as measured with 1 MiB chunks (bytes; TCP/IP headers are not in it)."""

    share: float
    call_up: int
    call_down: int
    connection_up: int
    connection_down: int


PLAIN = OverheadModel(0.00005, 61, 68, 396, 244)
TLS = OverheadModel(0.00145, 83, 90, 2500, 3200)
"""TLS adds 22 bytes a record of at most 16 KiB (RFC 8446, section 5.2) and two certificate chains a connection."""


def overhead(calls: Sequence[Call], tls: bool) -> dict[str, Any]:
    """Return the modelled bytes on the wire, with one connection per site: reconnects are not in these logs."""
    model = TLS if tls else PLAIN
    connections = len({call.site for call in calls})
    result: dict[str, Any] = {"tls": tls, "connections_at_least": connections}
    for direction, per_call, per_connection in (
        ("up", model.call_up, model.connection_up),
        ("down", model.call_down, model.connection_down),
    ):
        messages = sum((getattr(call, direction) for call in calls), Traffic()).bytes
        added = round(messages * model.share) + per_call * len(calls) + per_connection * connections
        result |= {f"messages_{direction}": messages, f"overhead_{direction}": added}
        result[f"wire_{direction}"] = messages + added
    result["unaccounted"] = (
        "further connections and handshakes, HTTP/2 pings and window updates, bytes of calls cut before a side logged them, "
        "TCP/IP headers and retransmissions"
    )
    return result


def against_full_model(calls: Sequence[Call], full_model_bytes: int) -> dict[str, Any]:
    """Compare with sending the full model once each way per update, which is what full fine-tuning does."""
    updates = {(c.site, c.round) for c in calls if c.method == "UploadDelta" and c.code == "OK"}
    up = sum(c.up.bytes for c in calls if c.purpose == "delta_up")
    down = sum(c.down.bytes for c in calls if c.purpose == "adapter_down")
    full = full_model_bytes * len(updates)
    return {
        "full_model_bytes": full_model_bytes,
        "updates": len(updates),
        "full_model_bytes_each_way": full,
        "delta_bytes_up": up,
        "adapter_bytes_down": down,
        "reduction_up": full / up if up else None,
        "reduction_down": full / down if down else None,
    }


def report(log: Log, by: str | None = None, full_model_bytes: int | None = None) -> dict[str, Any]:
    """Return everything as JSON values."""
    calls = distinct(log.calls)
    reconciliation = reconcile(log.calls)
    tls = log.tls if log.tls is not None else True
    return {
        "rows": table(calls, by),
        "total": _totals(calls),
        "retried_calls": sum(call.attempt > 0 for call in calls),
        "reconciliation": asdict(reconciliation) if reconciliation else None,
        "wire_model": overhead(calls, tls),
        "full_model": against_full_model(calls, full_model_bytes) if full_model_bytes else None,
        "malformed_lines": log.malformed,
    }

"""Bytes on the wire, modelled from calls: their messages and what gRPC, HTTP/2 and TLS add (`framing`)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from aggregator.accounts import framing
from aggregator.accounts.framing import Wire
from aggregator.accounts.logs import AGENT, AGGREGATOR, Call

BOUND = (
    "within 0.5 % + 8 KB a connection of what a relay counted, each way, with and without TLS, from either side's logs "
    "(tests/integration/test_comm_cost_relay.py)"
)
NOT_IN_IT = (
    "TCP/IP headers and retransmitted segments; connects that failed; bytes of a message that was cut on the way; "
    "longer certificate chains than `aggregator certificates` makes; pings at another call_timeout_s than 30 s; "
    "in agents' logs alone, idle connections that broke and that gRPC mended on its own"
)
UNNAMED = "unnamed"


def model(logged: Sequence[Call], calls: Sequence[Call], tls: bool) -> dict[str, Any]:
    """Return messages, overhead and their sum each way. `logged`: as both sides logged them; `calls`: each once, in order.

    Connections are counted by the names the aggregator gave them. An agent names those it dialled: gRPC may have mended one on
    its own. A site whose log names none has at least one.
    """
    connections = _connections(logged, calls)
    added = Wire()
    for group in connections.values():
        added += framing.CONNECTION + (framing.TLS_CONNECTION if tls else Wire())
        taken, methods = 0, set[str]()
        for one in group:
            taken += framing.data_bytes(one.up)
            added += framing.call(one, first=one.method not in methods, windows=taken > framing.QUIET_UP, tls=tls)
            methods.add(one.method)
    carried = [one for group in connections.values() for one in group]
    messages = Wire(sum(one.up.bytes for one in carried), sum(one.down.bytes for one in carried))
    return {
        "tls": tls,
        "connections": len(connections),
        "connections_counted": connections.keys() <= {("", one.connection) for one in logged if one.side == AGGREGATOR},
        "calls_never_connected": len(calls) - len(carried),
        "messages_up": messages.up,
        "overhead_up": added.up,
        "wire_up": messages.up + added.up,
        "messages_down": messages.down,
        "overhead_down": added.down,
        "wire_down": messages.down + added.down,
        "bound": BOUND,
        "unaccounted": NOT_IN_IT,
    }


def _connections(logged: Sequence[Call], calls: Sequence[Call]) -> Mapping[tuple[str, str], list[Call]]:
    """Return the calls of every connection on which anything passed.

    Each side has a name of its own for a connection; calls that both logged say which belong together.
    """
    served = {one.call_id: one.connection for one in logged if one.side == AGGREGATOR and one.call_id}
    known = {one.connection: served[one.call_id] for one in logged if one.side == AGENT and one.call_id in served}
    found: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for one in calls:
        name = known.get(one.connection, one.connection) if one.side == AGENT else one.connection
        found[("", name) if name else (one.site, UNNAMED)].append(one)
    return {key: group for key, group in found.items() if any(map(_passed, group))}


def _passed(one: Call) -> bool:
    """Whether a call shows that its connection stood.

    An agent's call that ended without an answer does not, unless gRPC took more than the first message of it.
    """
    answered = one.code not in framing.UNANSWERED or one.down.messages > 0
    return one.side == AGGREGATOR or answered or one.up.messages > 1

"""Protocol versions, and which of them understand each other."""

from shared.errors import IncompatibleProtocol

VERSION = "1.5"
SUPPORTED_MINORS = 2
"""Agents this many minors behind the aggregator keep working."""

CHUNK_BYTES = 1 << 20
"""Payload bytes per message: least CPU and latency of the sizes measured, and well under gRPC's 4 MiB message limit."""

MAX_WAIT_S = 30.0
"""Longest time AwaitRound holds a call: balancers cut idle streams."""

MESSAGE_BYTES = 64 << 10
"""Most bytes of a message that brings neither tensors nor a layout."""

MAX_PROBE_BYTES = 256 << 10

CALL_ID_KEY = "med-call-id"
"""Metadata key of one call's random id, logged on both sides: what `aggregator comm-cost` joins them by."""

ATTEMPT_KEY = "med-attempt"
SITE_KEY = "med-site"
"""Metadata key that names the site in plain mode (loopback only); ignored wherever there is a certificate."""

ERROR_KEY = "med-error"


def check(agent: str, aggregator: str = VERSION) -> None:
    """Raise IncompatibleProtocol, naming both versions and what to upgrade, unless the two understand each other."""
    try:
        (a_major, a_minor), (b_major, b_minor) = (tuple(map(int, v.split("."))) for v in (agent, aggregator))
    except ValueError:
        raise IncompatibleProtocol(
            f"the agent speaks protocol '{agent[:20]}', the aggregator {aggregator}: expected 'major.minor'; upgrade the agent"
        ) from None
    if (a_major, a_minor) > (b_major, b_minor):
        raise IncompatibleProtocol(
            f"the agent speaks protocol {agent}, the aggregator {aggregator}: upgrade the aggregator"
        )
    if a_major < b_major or a_minor < b_minor - SUPPORTED_MINORS:
        raise IncompatibleProtocol(f"the agent speaks protocol {agent}, the aggregator {aggregator}: upgrade the agent")

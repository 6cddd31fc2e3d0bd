"""What gRPC, HTTP/2 and TLS add to one call's messages and to one connection, in bytes each way.

Sizes with an RFC follow from it. Those marked "measured" are habits of the pinned gRPC release, which
tests/integration/test_comm_cost_frames.py reads off the wire frame by frame.
"""

import math
from dataclasses import dataclass

from aggregator.accounts.goodput import DOWNLOAD, UPLOAD
from aggregator.accounts.logs import AGGREGATOR, Call, Traffic
from shared.protocol import ATTEMPT_KEY, CALL_ID_KEY, CHUNK_BYTES, SITE_KEY

MESSAGE_PREFIX = 5
"""gRPC over HTTP/2, "Length-Prefixed-Message": a flag and a length before each message."""
FRAME_HEADER, MAX_FRAME = 9, 16_384
"""RFC 9113, sections 4.1 and 6.5.2: no side asks for larger frames."""
WINDOW_UPDATE, PING, RST_STREAM = FRAME_HEADER + 4, FRAME_HEADER + 8, FRAME_HEADER + 4
"""RFC 9113, sections 6.9, 6.7 and 6.4."""
LITERAL = 3
"""RFC 7541, section 6.2.2: what a header field that is not indexed has beside its name and value, if both are short."""
INDEXED_REQUEST = 9
"""Measured: fields of a request that take one byte each from a connection's second call of a method on."""
FIRST_OF_METHOD = (
    len(":path/med_duallora.v1.FederationService/") + LITERAL - 1 + len("grpc-timeout30100m") + LITERAL - 1
)
"""RFC 7541, section 6.2.1: path and time limit are spelled out once; the method's name comes on top."""
ANSWER_HEADERS = 2 * FRAME_HEADER + 3 + 16
"""Measured: headers before the first message, trailers behind the last one."""
ERROR_HEADERS = FRAME_HEADER + 3 + LITERAL + len("grpc-message") + LITERAL + len("med-error")
"""Measured: the one frame that refuses a call, without the error's name and text."""
QUIET_UP = 65_535 - 4_096
"""Bytes of messages and prefixes that the aggregator takes before it renews the connection's window with every call: the
window a connection begins with (RFC 9113, section 6.9.2) less what the aggregator keeps open (aggregator/server.py)."""
WINDOWS_PER_CHUNK = 2
"""Measured: window updates an agent sends for each chunk it takes."""
WINDOWS_PER_MEGABYTE = 7
"""Measured: window updates the aggregator sends for each megabyte it takes, besides one for each chunk."""
KEEPALIVE_S = 15.0
"""An agent pings after so long without an answer: half of the default `call_timeout_s` (site_agent/connection.py)."""

RECORD, MAX_RECORD = 22, 16_384 - 100
"""RFC 8446, section 5.2: header, content type and tag of a record. Measured: gRPC fills it up to 100 bytes below the limit."""

UNANSWERED = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
"""Codes that also calls end with which the other side never saw or never answered."""


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes each way."""

    up: int = 0
    down: int = 0

    def __add__(self, other: "Wire") -> "Wire":
        return Wire(self.up + other.up, self.down + other.down)


CONNECTION = Wire(24 + 39 + WINDOW_UPDATE + FRAME_HEADER + 199, 33 + FRAME_HEADER + 89)
"""RFC 9113, section 3.4: the preface and both sides' settings with their acknowledgement; measured: header fields that are
spelled out once (user agent, authority, encodings)."""
TLS_CONNECTION = Wire(2_048, 3_099)
"""Measured: the TLS 1.3 handshake with certificates on both sides as `aggregator certificates` makes them (one elliptic key
each), two session tickets, and the records of settings."""


def call(one: Call, *, first: bool, windows: bool, tls: bool) -> Wire:
    """Return what the wire adds to a call's messages.

    `first`: it is its connection's first call of this method. `windows`: the connection has taken more than QUIET_UP.
    """
    answered = one.code not in UNANSWERED or (one.side == AGGREGATOR and one.error != "")
    chunks_up, chunks_down = (math.ceil(way.payload_bytes / CHUNK_BYTES) for way in (one.up, one.down))
    pinged = pings(one.held_s) if one.method not in (UPLOAD, DOWNLOAD) else 0

    up = _request_headers(one, first, tls) + _data(one.up) + pinged * PING
    down = _data(one.down) + pinged * PING + (WINDOW_UPDATE if windows else 0)
    records_up, records_down = 1 + pinged, int(answered) + pinged
    if one.method == UPLOAD:  # a stream ends with an empty frame; the aggregator opens its window chunk by chunk
        up += WINDOW_UPDATE + FRAME_HEADER
        opened = chunks_up + WINDOWS_PER_MEGABYTE * one.up.payload_bytes // CHUNK_BYTES
        down += opened * WINDOW_UPDATE
        records_up += one.up.messages + 2
        records_down += (opened + 1) // 2
    elif one.method == DOWNLOAD:
        up += (1 + WINDOWS_PER_CHUNK * chunks_down) * WINDOW_UPDATE
        records_up += chunks_down
        records_down += one.down.messages
    else:
        up += 2 * WINDOW_UPDATE
    if one.code == "OK":
        down += ANSWER_HEADERS
    elif answered:
        down += ERROR_HEADERS + len(one.error)
    else:
        up += RST_STREAM
        records_up += 1
    if tls:
        up += RECORD * (records_up + one.up.bytes // MAX_RECORD)
        down += RECORD * (records_down + one.down.bytes // MAX_RECORD)
    return Wire(up, down)


def pings(held_s: float, every_s: float = KEEPALIVE_S) -> int:
    """Return how often an agent pings while a call is held without an answer; each ping is answered by one of the same size."""
    return int(held_s / every_s)


def data_bytes(traffic: Traffic) -> int:
    """Return what messages take of a connection's window: prefixes, but no frame headers (RFC 9113, section 5.2.1)."""
    return traffic.bytes + MESSAGE_PREFIX * traffic.messages


def _data(traffic: Traffic) -> int:
    """Return what message prefixes and the headers of DATA frames add."""
    return traffic.messages * (MESSAGE_PREFIX + FRAME_HEADER) + data_bytes(traffic) // MAX_FRAME * FRAME_HEADER


def _request_headers(one: Call, first: bool, tls: bool) -> int:
    own = ((CALL_ID_KEY, one.call_id), (ATTEMPT_KEY, str(one.attempt)), *(() if tls else ((SITE_KEY, one.site),)))
    fields = sum(LITERAL + len(name) + len(value) for name, value in own)
    return FRAME_HEADER + INDEXED_REQUEST + fields + (FIRST_OF_METHOD + len(one.method) if first else 0)

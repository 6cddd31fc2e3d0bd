"""Traces: a span for each call that is over, sent to a collector by OTLP over gRPC. Nothing of what calls carry is in them.

The names of attributes are those of https://opentelemetry.io/docs/specs/semconv/rpc/grpc/, and `med_duallora.…` for what is ours.
"""

import logging
import time
from typing import Any
from urllib.parse import urlsplit

import grpc
import structlog

from shared.errors import InputError
from shared.rpc import CallRecord
from shared.tls import check_plain

log = structlog.get_logger()
SEND_S, FLUSH_MS = 3, 2_000
MOST_TEXT = 300


def check(url: str) -> None:
    """Raise InputError unless spans can be sent there: https, or http on a loopback address."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port or parts.path.strip("/"):
        raise InputError(
            f"traces go to an OTLP collector's gRPC address, for example http://127.0.0.1:4317, got '{url}'"
        )
    if parts.scheme == "http":
        check_plain(f"{parts.hostname}:{port}")


class Traces:
    """Makes spans of calls and sends them from a thread of its own. Raises InputError if the extra is not installed."""

    def __init__(self, url: str, federation: str) -> None:
        check(url)
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InputError(
                f"--traces needs OpenTelemetry ({error}); install it: pip install 'med-duallora[traces]'"
            ) from error
        resource = Resource.create({"service.name": "med-duallora-aggregator", "med_duallora.federation": federation})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(url, insecure=url.startswith("http://"), timeout=SEND_S))
        )
        self._tracer = self._provider.get_tracer("med_duallora")
        library = logging.getLogger("opentelemetry")
        library.handlers, library.propagate = [_Said()], False

    def note(self, record: CallRecord, code: str, error: str, duration_s: float) -> None:
        """Make the span of a call that is over: a `shared.rpc.Finished`."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        ended = time.time_ns()
        (_, bytes_up, payload_up), (_, bytes_down, payload_down) = record.up, record.down
        attributes: dict[str, str | int] = {
            "rpc.system": "grpc",
            "rpc.method": record.method,
            "rpc.grpc.status_code": grpc.StatusCode[code].value[0],
            "med_duallora.site": record.site,
            "med_duallora.round": record.round,
            "med_duallora.attempt": record.attempt,
            "med_duallora.call_id": record.call_id,
            "med_duallora.bytes_up": bytes_up,
            "med_duallora.bytes_down": bytes_down,
            "med_duallora.payload_bytes_up": payload_up,
            "med_duallora.payload_bytes_down": payload_down,
        }
        if error:
            attributes["error.type"] = error.partition(":")[0]
        span = self._tracer.start_span(
            record.method, kind=SpanKind.SERVER, start_time=ended - int(duration_s * 1e9), attributes=attributes
        )
        if code != "OK":
            span.set_status(Status(StatusCode.ERROR, code))
        span.end(end_time=ended)

    def close(self) -> None:
        """Send what is left, for a few seconds at most. Not on the event loop."""
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()


class _Said(logging.Handler):
    """Has the library's troubles in our own log: a collector that is away is no trouble of the federation's."""

    def emit(self, record: Any) -> None:
        log.warning("traces_not_sent", reason=record.getMessage()[:MOST_TEXT])

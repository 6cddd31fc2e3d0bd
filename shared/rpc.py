"""One `rpc_finished` event per call and side: the measurement that `aggregator comm-cost` reads.

Bytes are exact sizes of the serialised protobuf messages, without gRPC's 5-byte prefix, HTTP/2 and TLS. `payload` is what of
it are tensor bytes, `offset` where in the tensors' payload a transfer began: what two attempts sent twice follows from it.
`connection` tells connections apart, on either side by a name of its own. Both sides log the call's id, so that their accounts
can be joined call by call.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message

from shared import status
from shared.errors import InputError, MedDualLoRAError, UpdateTooLarge
from shared.protocol import ATTEMPT_KEY, CALL_ID_KEY, ERROR_KEY, MESSAGE_BYTES

log = structlog.get_logger()

PURPOSES = {
    "FetchAdapter": "adapter_down",
    "BeginUpload": "delta_up",
    "UploadDelta": "delta_up",
    "ReportEvaluation": "evaluation",
    "AwaitRound": "heartbeat",
    "Probe": "probe",
}
"""What a call is for, by method; everything else is control. Probes measure the line (`site-agent doctor`): they are no part of a
federation's communication, and no account of it counts them."""


MAX_NAME = 64
"""Characters of a federation's name, as a caller gives it, that are logged."""
MAX_DETAILS = 2000
"""Characters of an error's text that travel: headers above 8 KiB are refused by gRPC, and the error would be lost."""


def new_id() -> str:
    """Return a random id for one call attempt or one connection: 64 bits are enough to tell a run's apart, and travel often."""
    return secrets.token_hex(8)


Finished = Callable[["CallRecord", str, str, float], None]
"""Hears of a call that is over: its record, the status's name, the error or nothing, seconds. Returns at once."""


@dataclass
class CallRecord:
    """Counts one call; `finish` writes the event. `up` is towards the aggregator, on both sides."""

    side: str
    method: str
    call_id: str
    attempt: int
    site: str = ""
    federation: str = ""
    connection: str = ""
    round: int = 0
    offset: int | None = None
    finished: Finished = lambda record, code, error, duration_s: None
    started: float = field(default_factory=time.monotonic)
    up: list[int] = field(default_factory=lambda: [0, 0, 0])
    down: list[int] = field(default_factory=lambda: [0, 0, 0])

    def count_up(self, message: Message) -> None:
        """Count a request message and note the federation and round it names."""
        _count(self.up, message)
        self._note_offset(message)
        named: Any = getattr(message, "start", message)
        if getattr(named, "announcement", None) is not None and named.HasField("announcement"):
            named = named.announcement
        self.federation = getattr(named, "federation", "")[:MAX_NAME] or self.federation
        self.round = getattr(named, "round", 0) or self.round

    def count_down(self, message: Message) -> None:
        """Count a response message."""
        _count(self.down, message)
        self._note_offset(message)
        if self.method in ("Join", "AwaitRound"):
            self.federation = getattr(message, "federation", "") or self.federation

    def _note_offset(self, message: Message) -> None:
        chunk = getattr(message, "chunk", None)
        if self.offset is None and chunk is not None and chunk.data:
            self.offset = chunk.offset

    def finish(self, code: str, error: str = "") -> None:
        """Write the event, and tell whoever listens."""
        duration_s = round(time.monotonic() - self.started, 6)
        fields = {
            "side": self.side,
            "rpc": self.method,
            "purpose": PURPOSES.get(self.method, "control"),
            "call_id": self.call_id,
            "attempt": self.attempt,
            "site": self.site,
            "federation": self.federation,
            "connection": self.connection,
            "round": self.round,
            "offset": self.offset or 0,
            "code": code,
            "duration_s": duration_s,
        }
        for name, counts in (("up", self.up), ("down", self.down)):
            fields |= dict(zip((f"messages_{name}", f"bytes_{name}", f"payload_bytes_{name}"), counts, strict=True))
        if error:
            fields["error"] = error
        log.info("rpc_finished", **fields)
        self.finished(self, code, error, duration_s)


def _count(counts: list[int], message: Message) -> None:
    counts[0] += 1
    counts[1] += message.ByteSize()
    chunk = getattr(message, "chunk", None)
    counts[2] += len(chunk.data) if chunk is not None else 0


Handler = Any
"""grpc.RpcMethodHandler, whose type parameters say nothing here."""

Whoami = Callable[[Any], str]
"""Returns the caller's site name from a servicer context; empty if it has none."""
Refused = Callable[[CallRecord, MedDualLoRAError], None]
"""Hears of a call that is answered with one of our errors; returns at once."""


class ServerCalls(grpc.aio.ServerInterceptor):
    """Logs every call and turns errors into statuses. Nothing else calls `context.abort`.

    `most_bytes`: how large a message may be, by method; one of another method, MESSAGE_BYTES. A larger one is not parsed.
    """

    def __init__(
        self,
        whoami: Whoami,
        refused: Refused = lambda record, error: None,
        most_bytes: Mapping[str, int] = MappingProxyType({}),
        finished: Finished = lambda record, code, error, duration_s: None,
    ) -> None:
        self._whoami, self._refused, self._most_bytes, self._finished = whoami, refused, most_bytes, finished
        self._salt = secrets.token_bytes(16)

    def _connection(self, context: Any) -> str:
        """Return a name for the caller's connection that says nothing of its address."""
        return hashlib.blake2s(str(context.peer()).encode(), key=self._salt, digest_size=8).hexdigest()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the handler wrapped in a record."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        service, _, method = handler_call_details.method.rpartition("/")
        if not service.startswith("/med_duallora."):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())

        def begin(context: Any) -> CallRecord:
            attempt = str(metadata.get(ATTEMPT_KEY, "0"))
            return CallRecord(
                side="aggregator",
                method=method,
                call_id=str(metadata.get(CALL_ID_KEY, ""))[:64],
                attempt=int(attempt) if attempt.isdecimal() and len(attempt) < 9 else 0,
                site=self._whoami(context),
                connection=self._connection(context),
                finished=self._finished,
            )

        return _wrap(handler, begin, self._refused, self._most_bytes.get(method, MESSAGE_BYTES))


def _wrap(handler: Any, begin: Callable[[Any], CallRecord], refused: Refused, most_bytes: int) -> Any:
    """Return the handler with a record of each call. It is given bytes, and parses them itself: gRPC would answer UNKNOWN to
    those that are no message, or INTERNAL, and tell nobody of it."""
    parsed = _parser(handler, most_bytes)
    if handler.request_streaming:

        async def stream_unary(requests: AsyncIterator[bytes], context: Any) -> Message:
            record = begin(context)
            # gRPC's reader of a stream and its generator refer to each other, and the generator still holds the last message:
            # closing it frees a megabyte a call that would otherwise wait for the garbage collector.
            source: Any = aiter(requests)

            async def counted() -> AsyncIterator[Message]:
                async for data in source:
                    request = parsed(data)
                    record.count_up(request)
                    yield request

            async with _Outcome(record, context, refused), aclosing(source):
                response: Message = await handler.stream_unary(counted(), context)
                record.count_down(response)
                return response
            raise AssertionError("unreachable: an outcome never swallows an error")

        return grpc.stream_unary_rpc_method_handler(stream_unary, None, handler.response_serializer)
    if handler.response_streaming:

        async def unary_stream(data: bytes, context: Any) -> AsyncIterator[Message]:
            record = begin(context)
            async with _Outcome(record, context, refused):
                request = parsed(data)
                record.count_up(request)
                async for response in handler.unary_stream(request, context):
                    record.count_down(response)
                    yield response

        return grpc.unary_stream_rpc_method_handler(unary_stream, None, handler.response_serializer)

    async def unary_unary(data: bytes, context: Any) -> Message:
        record = begin(context)
        async with _Outcome(record, context, refused):
            request = parsed(data)
            record.count_up(request)
            response: Message = await handler.unary_unary(request, context)
            record.count_down(response)
            return response
        raise AssertionError("unreachable: an outcome never swallows an error")

    return grpc.unary_unary_rpc_method_handler(unary_unary, None, handler.response_serializer)


def _parser(handler: Any, most_bytes: int) -> Callable[[bytes], Message]:
    def parsed(data: bytes) -> Message:
        if len(data) > most_bytes:
            raise UpdateTooLarge(f"a message of {len(data)} bytes, this call takes {most_bytes}")
        try:
            message: Message = handler.request_deserializer(data)
        except DecodeError as error:
            raise InputError(f"the {len(data)} bytes received are no message of this call") from error
        return message

    return parsed


class _Outcome:
    """Finishes the record with the call's status, and gives the caller an error's status and text."""

    def __init__(self, record: CallRecord, context: Any, refused: Refused) -> None:
        self._record, self._context, self._refused = record, context, refused

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._record.finish("OK")
        elif isinstance(error, MedDualLoRAError) and type(error) in status.TABLE:
            code = status.code_of(error)
            self._record.finish(code.name, f"{type(error).__name__}: {error}")
            self._refused(self._record, error)
            self._context.set_trailing_metadata(((ERROR_KEY, type(error).__name__),))
            # Text that is no Unicode would break the reply itself, and the caller would wait until its deadline.
            details = str(error)[:MAX_DETAILS].encode("utf-8", "backslashreplace").decode()
            await self._context.abort(code, details)
        elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self._record.finish("CANCELLED")
        else:
            log.exception("rpc_failed", rpc=self._record.method, call_id=self._record.call_id, exc_info=error)
            self._record.finish("INTERNAL", type(error).__name__)
            await self._context.abort(grpc.StatusCode.INTERNAL, status.INTERNAL_TEXT)

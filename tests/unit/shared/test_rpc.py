"""Every call leaves one event with exact byte counts, and every error arrives as the class that was raised: over real gRPC."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.message import Message
from med_duallora.v1 import federation_pb2 as pb
from med_duallora.v1.federation_pb2_grpc import (
    FederationServiceServicer,
    FederationServiceStub,
    add_FederationServiceServicer_to_server,
)
from structlog.testing import capture_logs

from shared import chunks, errors, rpc, status
from shared.errors import MedDualLoRAError
from shared.protocol import ATTEMPT_KEY, CALL_ID_KEY, ERROR_KEY, SITE_KEY

PAYLOAD = bytes(range(256)) * 10_000  # 2.56 MB: three chunks
SECRET = "no such file: /data/scans/Doe_Jane_1955.nii.gz"


@dataclass
class Servicer(FederationServiceServicer):
    """Answers as a test tells it to."""

    error: Exception | None = None
    first_answer_only: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def _answer(self, message: Any) -> Any:
        if self.error is not None:
            raise self.error
        return message

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> Any:
        return await self._answer(pb.ProbeResponse(payload=request.payload, server_time=1.5))

    async def Join(self, request: pb.JoinRequest, context: Any) -> Any:
        return await self._answer(pb.JoinResponse(federation="hearts", version=3))

    async def FetchAdapter(self, request: pb.FetchAdapterRequest, context: Any) -> AsyncIterator[Any]:
        yield await self._answer(pb.FetchAdapterResponse(info=pb.AdapterInfo(version=request.version)))
        if self.first_answer_only:
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()
        for chunk in chunks.split(PAYLOAD, request.offset):
            yield await self._answer(pb.FetchAdapterResponse(chunk=chunk))

    async def UploadDelta(self, requests: AsyncIterator[pb.UploadDeltaRequest], context: Any) -> Any:
        async for request in requests:
            if self.error is not None and request.WhichOneof("part") == "chunk":
                raise self.error
        return await self._answer(pb.UploadDeltaResponse(receipt=pb.Receipt(round=7, digest="ab")))


def site_of(context: Any) -> str:
    return str(dict(context.invocation_metadata()).get(SITE_KEY, ""))


@asynccontextmanager
async def connected(servicer: Servicer) -> AsyncIterator[FederationServiceStub]:
    server = grpc.aio.server(interceptors=[rpc.ServerCalls(site_of, most_bytes={"UploadDelta": 2 << 20})])
    add_FederationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield FederationServiceStub(channel)
    finally:
        await server.stop(grace=1)


METADATA = ((SITE_KEY, "ge"), (CALL_ID_KEY, "f00d"), (ATTEMPT_KEY, "2"))


def the_event(logs: list[Any]) -> dict[str, Any]:
    (event,) = [e for e in logs if e["event"] == "rpc_finished"]
    assert event.pop("duration_s") >= 0
    return dict(event)


def size(*messages: Message) -> int:
    return sum(len(m.SerializeToString()) for m in messages)


async def test_a_unary_call_is_counted_to_the_byte() -> None:
    request = pb.ProbeRequest(payload=b"x" * 1000, echo=True)
    with structlog.testing.capture_logs() as logs:
        async with connected(Servicer()) as stub:
            response = await stub.Probe(request, metadata=METADATA)
    event = the_event(logs)
    assert re.fullmatch("[0-9a-f]{16}", event.pop("connection"))
    assert event == {
        "event": "rpc_finished",
        "log_level": "info",
        "side": "aggregator",
        "rpc": "Probe",
        "purpose": "probe",
        "call_id": "f00d",
        "attempt": 2,
        "site": "ge",
        "federation": "",
        "round": 0,
        "offset": 0,
        "code": "OK",
        "messages_up": 1,
        "bytes_up": size(request),
        "payload_bytes_up": 0,
        "messages_down": 1,
        "bytes_down": size(response),
        "payload_bytes_down": 0,
    }


async def test_a_download_is_counted_message_by_message() -> None:
    request = pb.FetchAdapterRequest(federation="hearts", version=3, offset=1000, round=4)
    with structlog.testing.capture_logs() as logs:
        async with connected(Servicer()) as stub:
            received = [part async for part in stub.FetchAdapter(request, metadata=METADATA)]
    assert b"".join(part.chunk.data for part in received) == PAYLOAD[1000:]
    event = the_event(logs)
    assert (event["purpose"], event["federation"], event["round"], event["code"]) == ("adapter_down", "hearts", 4, "OK")
    assert (event["messages_up"], event["bytes_up"], event["payload_bytes_up"]) == (1, size(request), 0)
    assert (event["messages_down"], event["bytes_down"]) == (4, size(*received))
    assert (event["payload_bytes_down"], event["offset"]) == (len(PAYLOAD) - 1000, 1000)


async def test_an_upload_that_announces_itself_names_its_federation_round_and_first_byte() -> None:
    announced = pb.BeginUploadRequest(federation="hearts", round=7, digest="ab")
    messages = [
        pb.UploadDeltaRequest(start=pb.UploadStart(announcement=announced)),
        *(pb.UploadDeltaRequest(chunk=chunk) for chunk in chunks.split(PAYLOAD, 5)),
    ]
    with structlog.testing.capture_logs() as logs:
        async with connected(Servicer()) as stub:
            await stub.UploadDelta(iter(messages), metadata=METADATA)
    event = the_event(logs)
    assert (event["federation"], event["round"], event["offset"]) == ("hearts", 7, 5)
    assert event["bytes_up"] == size(*messages)


async def test_calls_of_one_connection_carry_its_name_and_another_connection_has_another_name() -> None:
    names = []
    for _ in range(2):
        with structlog.testing.capture_logs() as logs:
            async with connected(Servicer()) as stub:
                for _ in range(2):
                    await stub.Probe(pb.ProbeRequest(), metadata=METADATA)
        names.append({event["connection"] for event in logs if event["event"] == "rpc_finished"})
    assert [len(name) for name in names] == [1, 1]
    assert names[0] != names[1]


async def test_an_upload_is_counted_message_by_message() -> None:
    messages = [
        pb.UploadDeltaRequest(start=pb.UploadStart(federation="hearts", round=7, digest="ab")),
        *(pb.UploadDeltaRequest(chunk=chunk) for chunk in chunks.split(PAYLOAD)),
    ]
    with structlog.testing.capture_logs() as logs:
        async with connected(Servicer()) as stub:
            response = await stub.UploadDelta(iter(messages), metadata=METADATA)
    event = the_event(logs)
    assert (event["purpose"], event["federation"], event["round"], event["code"]) == ("delta_up", "hearts", 7, "OK")
    assert (event["messages_up"], event["bytes_up"]) == (4, size(*messages))
    assert event["payload_bytes_up"] == len(PAYLOAD)
    assert (event["messages_down"], event["bytes_down"], event["payload_bytes_down"]) == (1, size(response), 0)


async def test_the_federation_of_a_join_is_the_one_that_was_joined() -> None:
    with structlog.testing.capture_logs() as logs:
        async with connected(Servicer()) as stub:
            await stub.Join(pb.JoinRequest())
    assert the_event(logs)["federation"] == "hearts"


async def test_metadata_of_a_stranger_does_no_harm() -> None:
    with structlog.testing.capture_logs() as logs:
        async with connected(Servicer()) as stub:
            await stub.Probe(pb.ProbeRequest(), metadata=((CALL_ID_KEY, "x" * 500), (ATTEMPT_KEY, "9" * 500)))
    event = the_event(logs)
    assert (event["call_id"], event["attempt"], event["site"]) == ("x" * 64, 0, "")


@pytest.mark.parametrize("kind", sorted(status.TABLE, key=lambda kind: kind.__name__))
async def test_an_error_arrives_as_the_class_that_was_raised(kind: type[MedDualLoRAError]) -> None:
    servicer = Servicer(error=kind("what was wrong: 3 ≠ 4; do this"))
    with structlog.testing.capture_logs() as logs:
        async with connected(servicer) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Probe(pb.ProbeRequest())
    raised = status.error_of(caught.value)
    assert type(raised) is kind
    assert str(raised) == "what was wrong: 3 ≠ 4; do this"
    assert caught.value.code() is status.TABLE[kind]
    assert status.is_retryable(caught.value) is kind.retryable
    event = the_event(logs)
    assert event["code"] == status.TABLE[kind].name
    assert event["error"] == f"{kind.__name__}: what was wrong: 3 ≠ 4; do this"


async def call_probe(stub: FederationServiceStub) -> None:
    await stub.Probe(pb.ProbeRequest())


async def call_fetch(stub: FederationServiceStub) -> None:
    async for _ in stub.FetchAdapter(pb.FetchAdapterRequest()):
        pass


async def call_upload(stub: FederationServiceStub) -> None:
    await stub.UploadDelta(
        iter([pb.UploadDeltaRequest(start=pb.UploadStart()), pb.UploadDeltaRequest(chunk=pb.Chunk())])
    )


CALLS = {"Probe": call_probe, "FetchAdapter": call_fetch, "UploadDelta": call_upload}


@pytest.mark.parametrize("method", CALLS)
async def test_a_stream_too_ends_with_the_error_that_was_raised(method: str) -> None:
    with structlog.testing.capture_logs() as logs:
        async with connected(Servicer(error=errors.StaleRound("round 3 is over; ask again"))) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await CALLS[method](stub)
    assert type(status.error_of(caught.value)) is errors.StaleRound
    event = the_event(logs)
    assert (event["rpc"], event["code"]) == (method, "FAILED_PRECONDITION")


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize(
    "error", [FileNotFoundError(SECRET), errors.NewerStore(SECRET)], ids=["unexpected", "local only"]
)
async def test_an_unexpected_error_says_nothing_to_the_caller_and_everything_to_the_log(
    method: str, error: Exception
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with connected(Servicer(error=error)) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await CALLS[method](stub)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "internal error; the aggregator's log has the details under this call's id"
    assert "Doe" not in repr(caught.value)
    assert "Doe" not in str(caught.value.trailing_metadata())
    assert status.error_of(caught.value) is None
    assert not status.is_retryable(caught.value)
    event = the_event(logs)
    assert (event["code"], event["error"]) == ("INTERNAL", type(error).__name__)
    assert "Doe" not in str(event)
    (failure,) = [e for e in logs if e["event"] == "rpc_failed"]
    assert failure["exc_info"] is error


async def test_a_long_error_arrives_shortened_and_is_not_lost() -> None:
    async with connected(Servicer(error=errors.InvalidAdapter("x" * 100_000))) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Probe(pb.ProbeRequest())
    assert type(status.error_of(caught.value)) is errors.InvalidAdapter
    assert caught.value.details() == "x" * 2000


async def test_an_error_with_text_that_is_no_unicode_is_not_lost() -> None:
    async with connected(Servicer(error=errors.InvalidAdapter("name \ud800"))) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Probe(pb.ProbeRequest())
    assert type(status.error_of(caught.value)) is errors.InvalidAdapter
    assert caught.value.details() == r"name \ud800"


async def test_a_call_that_its_caller_gives_up_is_logged_as_cancelled() -> None:
    servicer = Servicer(first_answer_only=True)
    with structlog.testing.capture_logs() as logs:
        async with connected(servicer) as stub:
            call = stub.FetchAdapter(pb.FetchAdapterRequest())
            await call.read()
            call.cancel()
            await asyncio.wait_for(servicer.ended.wait(), timeout=10)
    event = the_event(logs)
    assert (event["code"], event["messages_down"]) == ("CANCELLED", 1)


def test_ids_of_calls_do_not_repeat() -> None:
    assert len({rpc.new_id() for _ in range(1000)}) == 1000


async def made(channel: grpc.aio.Channel, method: str, data: bytes) -> None:
    """Make a call whose only message is these bytes."""
    path = f"/med_duallora.v1.FederationService/{method}"
    if method == "FetchAdapter":
        await channel.unary_stream(path)(data).read()
    elif method == "UploadDelta":
        await channel.stream_unary(path)(iter([data]))
    else:
        await channel.unary_unary(path)(data)


@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("Probe", b"\xff\xff\xff"),
        ("FetchAdapter", b"\xff\xff\xff"),
        ("FetchAdapter", b"\x0a\x02\xff\xfe"),  # a text that is no UTF-8
        ("UploadDelta", b"\xff\xff\xff"),
    ],
)
async def test_bytes_that_are_no_message_of_the_call_are_refused_and_logged(method: str, data: bytes) -> None:
    """gRPC itself would answer UNKNOWN or INTERNAL, and nobody would hear of it."""
    server = grpc.aio.server(interceptors=[rpc.ServerCalls(site_of)])
    add_FederationServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with capture_logs() as events:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await made(channel, method, data)
    await server.stop(None)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(refused.value.trailing_metadata() or ())[ERROR_KEY] == "InputError"
    assert [event["code"] for event in events if event["event"] == "rpc_finished"] == ["INVALID_ARGUMENT"]


async def test_a_message_larger_than_its_call_takes_is_not_parsed() -> None:
    async with connected(Servicer()) as stub:
        with pytest.raises(
            grpc.aio.AioRpcError, match=r"a message of 70[0-9]{3} bytes, this call takes 65536"
        ) as refused:
            await stub.Probe(pb.ProbeRequest(payload=bytes(70_000)))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_federation_named_at_length_is_logged_in_short() -> None:
    with capture_logs() as events:
        async with connected(Servicer()) as stub:
            with suppress(grpc.aio.AioRpcError):
                await stub.FetchAdapter(pb.FetchAdapterRequest(federation="x" * 50_000)).read()
    assert [event["federation"] for event in events if event["event"] == "rpc_finished"] == ["x" * 64]

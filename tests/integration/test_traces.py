"""Traces of a real server at a real OTLP receiver: who called what, how long it took, how it ended. Nothing of what calls carry."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from aggregator.traces import Traces
from shared.errors import InputError
from tests.support import adapters
from tests.support.raw_site import RawSite, refusal
from tests.support.serving import SITES, make_store, serve

pytestmark = pytest.mark.integration


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        for request in self.requests:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    yield from ((span, values(span.attributes)) for span in scope.spans)


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receiver, str]]:
    receiver, collector = Receiver(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, collector)
    port = collector.add_insecure_port("127.0.0.1:0")
    await collector.start()
    try:
        yield receiver, f"http://127.0.0.1:{port}"
    finally:
        await collector.stop(0)


async def test_every_call_is_a_span_with_who_what_and_how_much(tmp_path: Path) -> None:
    async with receiving() as (receiver, url):
        async with serve(make_store(tmp_path), traces=url) as running:
            began = time.time_ns()
            sites = [RawSite(running.address, name) for name in SITES]
            await asyncio.gather(*(site.take_part(seed=k) for k, site in enumerate(sites)))
            assert (await refusal(sites[0].begin(b"x" * 50, 99)))[1] == "InvalidUpdate"
            for site in sites:
                await site.channel.close()
        spans = list(receiver.spans())
        told = values(receiver.requests[0].resource_spans[0].resource.attributes)
        sent = b"".join(request.SerializeToString() for request in receiver.requests)
    assert (told["service.name"], told["med_duallora.federation"]) == ("med-duallora-aggregator", "demo")
    layout = sites[0].layout
    uploads = [(span, facts) for span, facts in spans if span.name == "UploadDelta"]
    assert sorted((facts["med_duallora.site"], facts["med_duallora.round"]) for _, facts in uploads) == [
        (site, number) for site in sorted(SITES) for number in (1, 2)
    ]
    for span, facts in uploads:
        assert facts["med_duallora.payload_bytes_up"] == layout.size
        assert (facts["rpc.system"], facts["rpc.method"], facts["rpc.grpc.status_code"]) == ("grpc", "UploadDelta", 0)
        assert began - 1_000_000 <= span.start_time_unix_nano < span.end_time_unix_nano <= time.time_ns()
    (refused,) = [(span, facts) for span, facts in spans if span.name == "BeginUpload" and "error.type" in facts]
    assert refused[1]["error.type"] == "InvalidUpdate"
    assert refused[1]["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert refused[0].status.code == 2, "an error"
    payload = adapters.delta(layout, 1000)
    assert not any(payload[k : k + 16] in sent for k in range(0, len(payload) - 16, 16)), "no numbers of an update"


async def test_a_collector_that_is_away_is_no_trouble_of_the_federations(tmp_path: Path) -> None:
    async with receiving() as (_, url):
        pass
    async with serve(make_store(tmp_path), traces=url) as running:
        async with RawSite(running.address, "ge") as site:
            assert (await site.join()).site == "ge"
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 15.0, "it is not waited for"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:4317", "http://127.0.0.1", "ftp://127.0.0.1:1", "http://127.0.0.1:x", "http://[::1"]
)
def test_addresses_that_are_none_are_refused_with_an_example(url: str) -> None:
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:4317"):
        Traces(url, "demo")


def test_site_names_do_not_travel_in_plain_text() -> None:
    with pytest.raises(InputError, match="plain text is allowed on loopback only"):
        Traces("http://collector.example.org:4317", "demo")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(InputError, match=r"pip install 'med-duallora\[traces\]'"):
        Traces("http://127.0.0.1:4317", "demo")

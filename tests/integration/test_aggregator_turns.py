"""What one site does not read or go on with keeps no other site waiting."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from med_duallora.v1 import federation_pb2 as pb

from tests.support import adapters
from tests.support.raw_site import RawSite, digest
from tests.support.serving import make_store, serve

pytestmark = pytest.mark.integration

LARGE = 300_000
"""Width of an adapter of several messages: more than the windows of a connection that nobody reads take."""


async def unread_downloads(site: RawSite, count: int) -> list[Any]:
    """Ask for version 0 so many times; return the calls once one of them has begun, of which only the first message is read."""
    calls = [site.stub.FetchAdapter(pb.FetchAdapterRequest(), metadata=site.metadata) for _ in range(count)]
    reads = [asyncio.create_task(call.read()) for call in calls]
    await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED)
    return calls


async def test_downloads_that_one_site_does_not_read_keep_no_other_site_waiting(tmp_path: Path) -> None:
    store = make_store(tmp_path, adapter=adapters.adapter(width=LARGE))
    async with (
        serve(store, concurrent_uploads=2) as running,
        RawSite(running.address, "ge") as greedy,
        RawSite(running.address, "siemens") as other,
    ):
        held = await unread_downloads(greedy, 5)
        info, payload = await asyncio.wait_for(other.fetch(0), 10)
        assert info is not None
        assert len(payload) == info.size
        for call in held:
            call.cancel()
        assert (await asyncio.wait_for(greedy.fetch(0), 10))[1] == payload


async def test_a_download_that_nobody_reads_gives_way_and_goes_on_when_it_is_read(tmp_path: Path) -> None:
    version = adapters.adapter(width=LARGE)
    async with (
        serve(make_store(tmp_path, adapter=version), concurrent_uploads=1, chunk_wait_s=0.5) as running,
        RawSite(running.address, "ge") as silent,
        RawSite(running.address, "siemens") as other,
    ):
        held = silent.stub.FetchAdapter(pb.FetchAdapterRequest(), metadata=silent.metadata)
        assert (await held.read()).info.size == len(version.payload)
        for _ in range(2):
            assert (await asyncio.wait_for(other.fetch(0), 10))[1] == version.payload
        received = b""
        while (part := await asyncio.wait_for(held.read(), 10)) is not grpc.aio.EOF:
            received += part.chunk.data
        assert received == version.payload


async def test_uploads_that_one_site_does_not_go_on_with_keep_no_other_site_waiting(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    async with (
        serve(store, concurrent_uploads=2) as running,
        RawSite(running.address, "ge") as greedy,
        RawSite(running.address, "siemens") as other,
    ):
        await greedy.join()
        await other.join()
        payload = adapters.delta(greedy.layout, 1)
        await greedy.begin(payload)
        held = [asyncio.create_task(greedy.stream([], digest(payload), then=asyncio.sleep(15))) for _ in range(5)]
        await asyncio.sleep(0.5)  # by now they have been heard
        assert await asyncio.wait_for(other.upload(adapters.delta(other.layout, 2)), 10)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)

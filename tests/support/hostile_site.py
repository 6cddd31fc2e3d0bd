"""A site that sends what it must not, and the round that closes regardless."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from med_duallora.v1 import federation_pb2 as pb

from aggregator.server import RunningServer
from tests.support import adapters
from tests.support.raw_site import RawSite
from tests.support.serving import make_store, serve


@asynccontextmanager
async def one_round(folder: Path) -> AsyncIterator[RunningServer]:
    """Serve a federation of `ge` and `siemens` with a single round, in which nobody may be silent for long."""
    store = make_store(folder, sites={"ge": None, "siemens": 218}, quorum=2, rounds=1)
    async with serve(store, chunk_wait_s=1.0) as server:
        yield server


@asynccontextmanager
async def trying(running: RunningServer) -> AsyncIterator[RawSite]:
    """Yield `ge`, which has joined. Whatever it tried, afterwards both sites deliver and the only round closes."""
    async with RawSite(running.address, "ge") as made:
        await made.join()
        yield made
        await _finish(running, made)


async def _finish(running: RunningServer, site: RawSite) -> None:
    async with RawSite(running.address, "siemens", patients=218) as other:
        await other.join()
        for k, one in enumerate((site, other)):
            answer = await one.wait()
            if answer.instruction == pb.INSTRUCTION_TRAIN:
                await one.upload(adapters.delta(one.layout, 50 + k))
        last = await other.wait("WAIT", 1, wait_s=10)
        assert last.instruction == pb.INSTRUCTION_FINISHED

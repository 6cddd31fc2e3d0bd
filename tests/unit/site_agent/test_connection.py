"""When the agent dials anew. What it does on real connections is tests/integration/test_cut_uploads.py."""

import asyncio
import contextlib
import time
from collections.abc import Callable

import grpc
import pytest
from med_duallora.v1 import federation_pb2 as pb

from shared.errors import Draining, StaleRound, StoreUnavailable
from shared.protocol import ERROR_KEY
from shared.status import INTERNAL_TEXT
from site_agent.connection import Connection, Moves, is_transient
from tests.support.serving import make_store, serve

Code = grpc.StatusCode


def failure(code: grpc.StatusCode, text: str = "", name: str = "") -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata((ERROR_KEY, name)) if name else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, text)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("what the test waits for did not come")


async def stub_after(connection: Connection, error: grpc.aio.AioRpcError | None) -> object:
    """Make a call that ends like this; return the stub the next one gets."""
    try:
        async with connection.use():
            if error is not None:
                raise error
    except grpc.aio.AioRpcError:
        pass
    async with connection.use() as dialled:
        return dialled.stub


@pytest.mark.parametrize(
    ("error", "dials_anew"),
    [
        (None, False),
        (failure(Code.UNAVAILABLE, "connection refused"), True),
        (failure(Code.DEADLINE_EXCEEDED, "Deadline Exceeded"), True),
        (failure(Code.INTERNAL, "Internal error from Core"), True),
        (failure(Code.UNAVAILABLE, "this replica is leaving", Draining.__name__), True),
        (failure(Code.UNAVAILABLE, "the store is away", StoreUnavailable.__name__), False),
        (failure(Code.FAILED_PRECONDITION, "round 1 is closed", StaleRound.__name__), False),
        (failure(Code.INTERNAL, INTERNAL_TEXT), False),
    ],
    ids=[
        "success",
        "nobody there",
        "no answer",
        "broken message",
        "draining",
        "store away",
        "refused",
        "its own error",
    ],
)
async def test_a_connection_in_doubt_is_left_and_one_that_answered_is_kept(error, dials_anew):
    connection = Connection("127.0.0.1:1", None, 30.0)
    before = await stub_after(connection, None)
    assert (await stub_after(connection, error) is not before) == dials_anew
    await connection.close()


async def test_a_connection_that_went_while_nobody_called_is_not_made_again_on_the_same_channel(tmp_path):
    """Whoever answers next may be another aggregator."""
    store = make_store(tmp_path)
    async with serve(store) as running:
        address = running.address
        connection = Connection(address, None, 30.0)
        async with connection.use() as dialled:
            before = dialled.name
            with contextlib.suppress(grpc.aio.AioRpcError):
                await dialled.stub.Probe(pb.ProbeRequest(), timeout=10.0)
        assert connection.name == before
    async with serve(store, listen=address):
        await until(lambda: connection.name != before)
    await connection.close()


async def test_a_failure_on_the_old_connection_leaves_the_new_one_alone():
    connection = Connection("127.0.0.1:1", None, 30.0)
    lost = failure(Code.UNAVAILABLE)
    new: list[object] = []

    async def slow_to_notice() -> None:
        async with connection.use():
            new.append(await stub_after(connection, lost))  # a call beside it was quicker
            raise lost

    with pytest.raises(grpc.aio.AioRpcError):
        await slow_to_notice()
    async with connection.use() as dialled:
        assert [dialled.stub] == new
    await connection.close()


@pytest.mark.parametrize(("text", "again"), [("Internal error from Core", True), (INTERNAL_TEXT, False)])
def test_gRPCs_own_internal_error_is_not_the_aggregators(text, again):
    assert is_transient(failure(Code.INTERNAL, text)) == again


async def test_a_stream_has_its_patience_again_with_every_move():
    moves = Moves(0.3)

    async def reply() -> str:
        for _ in range(4):
            await asyncio.sleep(0.15)
            moves.on()
        return "receipt"

    assert await moves.reply(reply()) == "receipt"


async def test_a_stream_that_stands_still_is_ended_in_its_patience():
    cancelled = asyncio.Event()

    async def reply() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError, match=r"did not move for 0\.1 s"):
        await Moves(0.1).reply(reply())
    assert time.monotonic() - began < 1.0
    async with asyncio.timeout(1.0):
        await cancelled.wait()

"""The aggregator's services over a real channel on 127.0.0.1: what gRPC itself makes of the same calls."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import grpc

from aggregator import server
from aggregator.server import RunningServer, ServerConfig
from shared.protocol import ERROR_KEY, SITE_KEY
from tests.fuzz import calls
from tests.fuzz.calls import Call, Case
from tests.fuzz.serving import HELD_S, KINDS, LIMITS, Worlds, drawn, label, path_of
from tests.fuzz.target import ACCEPTED, HELD, NOTHING, Ready

TIMEOUT_S = 20.0
BY_GRPC = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED})
"""What gRPC answers by itself, without a class of error: to a message over the limit of the channel."""
LOST_STATUS = "Internal error from Core"
"""What gRPC's client puts over the status it received when a stream is refused while it writes (grpc/grpc#36066); no server sends
it. An agent then asks with `BeginUpload`, which is no stream."""


class Loopback:
    """The services behind a socket. The caller is in the same process, and what it takes in memory counts too."""

    def __init__(self) -> None:
        self._worlds = Worlds()
        self._loop = self._worlds.loop
        self._cases = self._worlds.cases
        self._servers: list[RunningServer] = []
        self._channels: list[grpc.aio.Channel] = []
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        for served in self._worlds.served:
            config = ServerConfig(listen="127.0.0.1:0", tls=None, limits=LIMITS)
            running = await server.start(served.world.store, config)
            self._servers.append(running)
            self._channels.append(grpc.aio.insecure_channel(running.address))

    def seeds(self) -> list[bytes]:
        """Return the calls of a well-behaved site."""
        return [calls.packed(case) for case in self._cases]

    def mutated(self, data: bytes, rng: Random) -> bytes:
        """Return another case."""
        return drawn(data, self._cases, rng)

    def ready(self, data: bytes) -> Ready:
        """Choose the world."""
        case = calls.unpacked(data) or self._cases[0]
        number = case.world % len(self._channels)
        world = self._worlds.served[number].world
        return Ready(world.layout.size, lambda: self._loop.run_until_complete(self._calls(number, case)))

    async def _calls(self, number: int, case: Case) -> str:
        """Make a case's calls one after the other; what the last one came to is the label."""
        last, world = NOTHING, self._worlds.served[number].world
        try:
            for call in case.calls:
                if call.method in KINDS:
                    last = await answer(self._channels[number], call)
        finally:
            if world.is_changed():
                world.renew()
        return last

    def close(self) -> None:
        """Stop the servers."""
        self._loop.run_until_complete(self._stop())
        self._worlds.close()

    async def _stop(self) -> None:
        for channel in self._channels:
            await channel.close()
        for running in self._servers:
            await running.stop(1.0)


async def answer(channel: grpc.aio.Channel, call: Call) -> str:
    """Return what a call came to. Raises what `label` does."""
    site = call.note if call.note.isprintable() else "stranger"
    options: dict[str, Any] = {
        "metadata": ((SITE_KEY, site),) if site else (),
        "timeout": HELD_S if call.method == "AwaitRound" else TIMEOUT_S,
    }
    try:
        await _answered(channel, call, options)
    except grpc.aio.AioRpcError as error:
        kind = str(dict(error.trailing_metadata() or ()).get(ERROR_KEY, ""))
        if call.method == "AwaitRound" and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return HELD
        lost = call.method == "UploadDelta" and error.details() == LOST_STATUS
        if not kind and (error.code() in BY_GRPC or lost):
            return f"{error.code().name} by gRPC"
        return label(error.code(), kind, error.details() or "")
    return ACCEPTED


async def _answered(channel: grpc.aio.Channel, call: Call, options: dict[str, Any]) -> None:
    path, request = path_of(call.method), call.messages[0] if call.messages else b""
    raw: Any = channel  # its methods are typed for messages, these are bytes
    if call.method == "UploadDelta":
        await raw.stream_unary(path)(_requests(call), **options)
    elif call.method == "FetchAdapter":
        async for _ in raw.unary_stream(path)(request, **options):
            continue
    else:
        await raw.unary_unary(path)(request, **options)


async def _requests(call: Call) -> AsyncIterator[bytes]:
    for one in call.messages:
        yield one
    if call.stalls:
        await asyncio.Event().wait()

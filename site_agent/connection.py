"""The way to the aggregator: one channel at a time, left for a new one as soon as it is in doubt.

A channel may sit on a connection that died without a word, and channels of some releases of gRPC never reconnect after a
restart (grpc/grpc#38290). So nobody waits for a channel to mend: the next call dials anew, and calls still under way on the
old one keep it until they end.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import structlog
from med_duallora.v1 import federation_pb2_grpc as rpc

from shared import status
from shared.errors import Draining, InputError
from shared.protocol import CHUNK_BYTES
from shared.rpc import new_id
from shared.tls import NO_PROXY, TlsFiles

log = structlog.get_logger()
T = TypeVar("T")

Stub = Any
"""FederationServiceStub on an asyncio channel; the generated types describe the blocking one."""
MAX_ANSWER = CHUNK_BYTES + 1024
"""Most bytes of a message that gRPC takes in: a chunk with what stands around it."""
SHORTEST_KEEPALIVE_S = 2.0
"""The aggregator takes more frequent pings for abuse."""


@dataclass(eq=False)
class Dialled:
    """A channel in use. `name` tells it from others in the log."""

    channel: grpc.aio.Channel
    stub: Stub
    name: str = field(default_factory=new_id)
    calls: int = 0
    connected: bool = False
    """It has had its connection: without one now, whoever is there next may be another."""


class Connection:
    """Dials when a call needs it. Notices a dead connection within `call_timeout_s`, also while a call waits for hours."""

    def __init__(self, address: str, tls: TlsFiles | None, call_timeout_s: float) -> None:
        self._address, self._tls = address, tls
        keepalive_ms = int(1000 * max(call_timeout_s / 2, SHORTEST_KEEPALIVE_S))
        self._options = [
            ("grpc.enable_retries", 0),  # what is sent again is in the ledger again
            ("grpc.use_local_subchannel_pool", 1),  # or a new channel would be given the connection of the old one
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
            ("grpc.keepalive_time_ms", keepalive_ms),
            ("grpc.keepalive_timeout_ms", keepalive_ms),
            ("grpc.http2.ping_timeout_ms", keepalive_ms),  # what newer releases go by: else a minute
            ("grpc.http2.max_pings_without_data", 0),  # a long poll sends nothing for half a minute
            # gRPC would look for a download's window with pings, and one that waits behind a full slow line seems lost.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", CHUNK_BYTES),
            ("grpc.max_receive_message_length", MAX_ANSWER),
        ]
        self._stamp: tuple[int, ...] = ()
        self._current: Dialled | None = None
        self._open: list[Dialled] = []

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Dialled]:
        """Yield a channel for one call; if it fails in a way that puts the connection in doubt, the next call dials anew."""
        used = self._ready()
        used.calls += 1
        try:
            yield used
        except grpc.aio.AioRpcError as error:
            if self._current is used and _in_doubt(error):
                self._current = None
            raise
        finally:
            used.calls -= 1
            used.connected |= used.channel.get_state() == grpc.ChannelConnectivity.READY
            await self._close_unused()

    @property
    def name(self) -> str:
        """Name of the channel that the next call will use."""
        return self._ready().name

    async def close(self) -> None:
        """Close every channel, and end the calls that use one."""
        self._current = None
        while self._open:
            await self._open.pop().channel.close()

    def _ready(self) -> Dialled:
        """Return the channel in use; another one if there is none, if its connection is gone, or with a new certificate.

        A channel would connect again by itself, and nobody would know that it may be to another aggregator.
        """
        used = self._current
        if used is None or _is_lost(used) or self._replaced():
            used = self._current = self._dial()
            self._open.append(used)
        return used

    async def _close_unused(self) -> None:
        for one in [one for one in self._open if not one.calls and one is not self._current]:
            self._open.remove(one)
            await one.channel.close()

    def _dial(self) -> Dialled:
        if self._tls is None:
            # plain text stays on this machine: a proxy that the environment names would take it out
            channel = grpc.aio.insecure_channel(self._address, options=[*self._options, NO_PROXY])
        else:
            self._stamp = self._tls.stamp()
            channel = grpc.aio.secure_channel(self._address, self._tls.channel_credentials(), options=self._options)
        return Dialled(channel, rpc.FederationServiceStub(channel))

    def _replaced(self) -> bool:
        """Return whether the certificate's files were replaced since the last dialling, by others that can be used together."""
        if self._tls is None:
            return False
        try:
            if self._tls.stamp() == self._stamp:
                return False
            self._tls.check_pair()
        except InputError:
            return False  # half of them are replaced: what is in use stays
        log.info("certificate_replaced")
        return True


class Moves:
    """Whether a stream still moves: its next message was asked for, or its reply came, within `patience_s`."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._moved_at = time.monotonic()

    def on(self) -> None:
        """Note that the next message is asked for: the transport took the one before."""
        self._moved_at = time.monotonic()

    async def reply(self, call: Awaitable[T]) -> T:
        """Return the stream's reply. Cancels the call and raises DEADLINE_EXCEEDED once it does not move any more."""
        reply = asyncio.ensure_future(call)
        try:
            while (left := self._moved_at + self._patience_s - time.monotonic()) > 0:
                await asyncio.wait({reply}, timeout=left)
                if reply.done():
                    return reply.result()
        finally:
            reply.cancel()
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.aio.Metadata(),
            grpc.aio.Metadata(),
            f"the transfer did not move for {self._patience_s:g} s",
        )


def _is_lost(used: Dialled) -> bool:
    return used.connected and used.channel.get_state() != grpc.ChannelConnectivity.READY


def is_transient(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the same call may succeed later without anybody acting.

    A connection that breaks while a message is being written ends in gRPC's own INTERNAL, which is not the aggregator's. So does,
    now and then, a call that the aggregator refuses while its stream is being written: gRPC puts that over the status it received
    (grpc/grpc#36066), and `BeginUpload`, by which an upload is repeated, is told the refusal.
    """
    broke = error.code() == grpc.StatusCode.INTERNAL and error.details() != status.INTERNAL_TEXT
    return status.is_retryable(error) or (broke and status.error_of(error) is None)


def _in_doubt(error: grpc.aio.AioRpcError) -> bool:
    """Return whether another connection may do better: nobody answered, or a replica that is on its way out did."""
    raised = status.error_of(error)
    return isinstance(raised, Draining) if raised else is_transient(error)

"""The least that exchanging bytes over grpc.aio and keeping them on a disk can cost: what a federation's rounds are held against.

One server, sites as processes. In each round every site downloads a payload and uploads one, in messages of the protocol's chunk
size, without protobuf or TLS. An upload is answered when it is written and synced. The next round's downloads are answered when the
last upload of the round before is in: nobody polls.

Run as a program: `serve` or `site`, then `Exchange` as JSON.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from shared.protocol import CHUNK_BYTES

SERVICE = "benchmark.Exchange"
OPTIONS = (("grpc.max_receive_message_length", 4 << 20), ("grpc.max_send_message_length", 4 << 20))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Who exchanges what. Payloads have `size` bytes; the server keeps a file for each site in `folder`."""

    sites: int
    rounds: int
    size: int
    folder: str
    address: str = ""
    site: int = 0


class Server:
    """Serves `rounds` rounds. `opened` notes when each began, in seconds of the monotonic clock; the last one is the end."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._payload = os.urandom(exchange.size)
        self._open = [asyncio.Event() for _ in range(exchange.rounds + 1)]
        self._in = 0
        self._files = [self._create(Path(exchange.folder), number) for number in range(exchange.sites)]
        self.opened: list[float] = []
        self._begin()

    @staticmethod
    def _create(folder: Path, number: int) -> int:
        file = os.open(folder / f"uploads-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        parent = os.open(folder, os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)
        return file

    @property
    def finished(self) -> asyncio.Event:
        """Set when the last round is over."""
        return self._open[self._exchange.rounds]

    def _begin(self) -> None:
        self._open[len(self.opened)].set()
        self.opened.append(time.monotonic())

    async def download(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Send a round's payload once the round has begun."""
        await self._open[int(request)].wait()
        for part in parts(self._payload):
            yield part

    async def upload(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        """Take a payload, after a message with the site's number; answer when it is on the disk."""
        number = int(await anext(requests))
        data = b"".join([part async for part in requests])
        await asyncio.to_thread(self._keep, number, data)
        self._in += 1
        if self._in % self._exchange.sites == 0:
            self._begin()
        return b""

    def _keep(self, number: int, data: bytes) -> None:
        os.write(self._files[number], data)
        os.fsync(self._files[number])


def parts(payload: bytes) -> list[bytes]:
    """Cut a payload into messages."""
    return [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]


async def serve(exchange: Exchange) -> None:
    """Serve until the last round is over and standard input is closed; print when the rounds began."""
    serving, server = Server(exchange), grpc.aio.server(options=OPTIONS)
    handlers: dict[str, Any] = {
        "Download": grpc.unary_stream_rpc_method_handler(serving.download),
        "Upload": grpc.stream_unary_rpc_method_handler(serving.upload),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
    await serving.finished.wait()
    print(json.dumps({"opened": serving.opened}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


async def take_part(exchange: Exchange) -> None:
    """Be a site."""
    payload = parts(os.urandom(exchange.size))
    async with grpc.aio.insecure_channel(exchange.address, options=OPTIONS) as channel:
        download: Any = channel.unary_stream(f"/{SERVICE}/Download")
        upload: Any = channel.stream_unary(f"/{SERVICE}/Upload")

        async def messages() -> AsyncIterator[bytes]:
            yield str(exchange.site).encode()
            for part in payload:
                yield part

        for number in range(exchange.rounds):
            received = b"".join([part async for part in download(str(number).encode())])
            assert len(received) == exchange.size
            await upload(messages())


def main(role: str, argument: str) -> None:
    """Be the server or a site."""
    exchange = Exchange(**json.loads(argument))
    asyncio.run(serve(exchange) if role == "serve" else take_part(exchange))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

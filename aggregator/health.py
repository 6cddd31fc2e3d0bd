"""Whether this process can do its job: alive, and ready for calls. The same answer over HTTP and as grpc.health.v1.

Alive: the event loop runs, and the task that closes rounds has not died. Ready: the store answers in time, and the process is
not on its way out.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2 as pb  # type: ignore[import-untyped]

from aggregator.federation import Federation
from aggregator.store import federations
from shared.errors import MedDualLoRAError

log = structlog.get_logger()

ANSWER_S = 3.0
"""A store that has not answered for so long is not there."""
EVERY_S = 2.0
"""So often the store is asked, whether or not anybody wants to know."""
SERVICES = ("", "med_duallora.v1.FederationService", "med_duallora.v1.CoordinatorService")
UNASKED = "the store has not been asked yet"
MOST_BYTES = 200
"""Longest request; it holds the name of a service."""
MOST_WATCHERS = 64


class Health:
    """Asks the store every few seconds, and keeps the answer. `store_words`: empty while it answers."""

    def __init__(self, federation: Federation, closer: "asyncio.Task[None]") -> None:
        self._federation, self._closer = federation, closer
        self._thread = ThreadPoolExecutor(1, "health")  # its own: a store that is slow for others is not away
        self._asked: asyncio.Task[str] | None = None
        self._change = asyncio.Event()
        self.store_words = UNASKED

    @property
    def dead(self) -> str:
        """Why the process can only be started again; empty while it lives."""
        return "the task that closes rounds has ended" if self._closer.done() and not self._federation.draining else ""

    @property
    def leaving(self) -> bool:
        """Whether the process is on its way out."""
        return self._federation.draining

    @property
    def unready(self) -> str:
        """Why the process can take no calls now, by the last answer of the store; empty if it can."""
        return "on its way out" if self.leaving else self.dead or self.store_words

    async def run(self) -> None:
        """Go on asking, until cancelled."""
        while True:
            await self.ask()
            await asyncio.sleep(EVERY_S)

    async def ask(self) -> str:
        """Ask the store now and return `unready`. A question that has no answer yet is not asked again: it holds a thread."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._ask_store(), name="store question")
        try:
            async with asyncio.timeout(
                ANSWER_S
            ):  # wait_for may swallow the cancellation by which `run` ends (Python 3.11)
                words = await asyncio.shield(self._asked)
        except TimeoutError:
            words = f"the store has not answered for {ANSWER_S:.0f} s"
        if words != self.store_words:
            if words:
                log.warning("store_lost", reason=words)
            elif self.store_words != UNASKED:
                log.info("store_answers")
            self.store_words = words
            self.tell()
        return self.unready

    async def _ask_store(self) -> str:
        store, name = self._federation.store, self._federation.name
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, store.read, federations.revision, name)
        except MedDualLoRAError as error:
            return str(error)
        except Exception as error:  # a damaged store is one that cannot be used; its text stays in our log
            log.exception("store_not_read", exc_info=error)
            return f"the store cannot be read ({type(error).__name__})"
        return ""

    def close(self) -> None:
        """Ask no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def tell(self) -> None:
        """Wake whoever watches."""
        self._change.set()
        self._change = asyncio.Event()

    @property
    def next_change(self) -> asyncio.Event:
        """The event of the next change; take it before reading."""
        return self._change


class HealthServicer:
    """The standard health service. Of the library's own servicer, one watcher that reads nothing would hold up every change."""

    def __init__(self, health: Health) -> None:
        self._health, self._watchers = health, 0

    def add_to(self, server: grpc.aio.Server) -> None:
        """Have a server answer. Requests come as bytes, and are measured before they are parsed."""
        written = pb.HealthCheckResponse.SerializeToString
        handlers: dict[str, Any] = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check, None, written),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, None, written),
        }
        name = pb.DESCRIPTOR.services_by_name["Health"].full_name
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

    async def check(self, data: bytes, context: Any) -> pb.HealthCheckResponse:
        """Tell how a service is now."""
        if (name := await _service(data, context)) not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service '{name}'; there are {', '.join(SERVICES[1:])}")
        return self._status()

    async def watch(self, data: bytes, context: Any) -> AsyncIterator[pb.HealthCheckResponse]:
        """Tell of every change, until the process is on its way out. A service that there is not is told of once."""
        name = await _service(data, context)
        if name not in SERVICES:
            yield pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVICE_UNKNOWN)
            return
        if self._watchers >= MOST_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MOST_WATCHERS} watch already; call Check")
        self._watchers += 1
        try:
            last = None
            while True:
                change, last_one, now = self._health.next_change, self._health.leaving, self._status()
                if now != last:
                    yield now
                last = now
                if last_one:  # as it was before the yield: whoever reads slowly hears of the end too
                    return
                await change.wait()
        finally:
            self._watchers -= 1

    def _status(self) -> pb.HealthCheckResponse:
        status = pb.HealthCheckResponse.NOT_SERVING if self._health.unready else pb.HealthCheckResponse.SERVING
        return pb.HealthCheckResponse(status=status)


async def _service(data: bytes, context: Any) -> str:
    """Return the name of the service that is asked for; end the call if there is none in the bytes."""
    try:
        if len(data) > MOST_BYTES:
            raise DecodeError(f"{len(data)} bytes")
        return str(pb.HealthCheckRequest.FromString(data).service)
    except DecodeError:
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, f"expected a HealthCheckRequest of at most {MOST_BYTES} bytes"
        )
    raise AssertionError("unreachable: abort raises")

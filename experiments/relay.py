"""A TCP relay on loopback that does to connections what networks do: delay, reset, truncate, fall silent, repeat, refuse.

What happens to the n-th connection is a function of the plan and n alone, so a run is replayed from its seed. With several
targets it is a plain balancer in front of replicas: each connection goes to the next one that answers.
"""

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["reset", "truncate", "half_open", "duplicate"]
Direction = Literal["up", "down"]
"""Up is towards the target."""
KINDS: tuple[Kind, ...] = ("reset", "truncate", "half_open", "duplicate")
PIECE_BYTES = 1 << 16
LINE_BYTES = 4 << 20
"""What a delayed line holds; a line with a rate holds a tenth of a second more than it carries in its latency."""
_CONNECT_S = 5.0
_LINGER_0 = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a connection once `after` bytes went in one direction.

    reset: both sides get a RST. truncate: the rest of this direction is dropped and its end announced (FIN). half_open: nothing
    passes any more, and nobody is told. duplicate: the next segment (up to 64 KiB) arrives twice.
    """

    kind: Kind
    after: int
    direction: Direction = "up"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """What happens to connections, by their number. Times in seconds, one way."""

    seed: int = 0
    latency_s: float = 0.0
    jitter_s: float = 0.0
    """Added to the latency of a segment: uniform, from 0 to this; segments never overtake each other."""
    bytes_per_s: float = 0.0
    """Each direction's rate; 0: as fast as it goes."""
    script: tuple[Fault | None, ...] = ()
    """Fates of the first connections."""
    share: float = 0.0
    """Share of the further connections that something happens to, drawn from `kinds`."""
    kinds: tuple[Kind, ...] = KINDS
    within: int = 1 << 20
    """Drawn faults come after fewer bytes than this."""
    refuse_s: float = 0.0
    """After a fault, new connections are refused for up to this long (drawn)."""

    def fault(self, number: int) -> Fault | None:
        """Return what is to happen to connection `number`."""
        if number < len(self.script):
            return self.script[number]
        rng = random.Random(f"{self.seed}/{number}")
        if rng.random() >= self.share:
            return None
        return Fault(rng.choice(self.kinds), rng.randrange(self.within), rng.choice(("up", "down")))

    def refusal_s(self, number: int) -> float:
        """Return for how long connections are refused after the fault of connection `number`."""
        return random.Random(f"{self.seed}/{number}/refusal").uniform(0.0, self.refuse_s)

    @property
    def delays(self) -> bool:
        return bool(self.latency_s or self.jitter_s or self.bytes_per_s)


@dataclass
class Traffic:
    """Bytes of one direction of a connection: what the sender got rid of, and what reached the other side."""

    received: int = 0
    forwarded: int = 0
    kept: bytearray = field(default_factory=bytearray)
    """The bytes received, if the relay was asked to keep them."""


class Relay:
    """Relays as long as the `async with` block lasts; `address` says where to dial.

    It listens at `host`. `keep` holds every byte that passes. `buffer_bytes` bounds the kernel's buffers on both sides (0: as the
    kernel likes).
    """

    def __init__(
        self,
        targets: Sequence[str],
        plan: FaultPlan = FaultPlan(),
        *,
        keep: bool = False,
        buffer_bytes: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.targets, self.plan, self.keep, self._host = list(targets), plan, keep, host
        self.address = ""
        self.links: list[Link] = []
        """Every connection that reached a target, in order; the last one's fate is `plan.fault(len(links) - 1)`."""
        self.refused = 0
        self._buffer_bytes = buffer_bytes
        self._refusing_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Relay":
        self._listener = socket.create_server((self._host, 0), backlog=1024)
        self._listener.setblocking(False)
        self._bound(self._listener)
        self.address = f"{self._host}:{self._listener.getsockname()[1]}"
        self._start(self._accept())
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        for link in self.links:
            link.close()

    # what a test can do while it runs

    def refuse(self, seconds: float) -> None:
        """Reset every new connection for so long."""
        self._refusing_until = time.monotonic() + seconds

    def reset(self) -> None:
        """Cut every open connection."""
        for link in self.links:
            link.end("reset")

    def freeze(self) -> None:
        """Make every open connection half-open: nothing passes any more, and nobody is told."""
        for link in self.links:
            link.end("half_open")

    # what was seen

    @property
    def bytes_up(self) -> int:
        """Bytes taken from those who dial, also those that were lost on the way; of a refused connection nothing is taken."""
        return sum(link.up.received for link in self.links)

    @property
    def bytes_down(self) -> int:
        return sum(link.down.received for link in self.links)

    @property
    def captures(self) -> list[bytearray]:
        """What was kept: one byte string per connection and direction."""
        return [traffic.kept for link in self.links for traffic in (link.up, link.down)]

    # how it works

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            near, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            near.setblocking(False)
            if time.monotonic() < self._refusing_until:
                self.refused += 1
                _abort(near)
            else:
                self._start(self._relay(near))

    async def _relay(self, near: socket.socket) -> None:
        far = await self._connect()
        if far is None:
            self.refused += 1
            _abort(near)
            return
        link = Link(self.plan, len(self.links), near, far, self.keep)
        self.links.append(link)
        await link.run()
        if link.fault_came and self.plan.refuse_s:
            self.refuse(self.plan.refusal_s(link.number))

    async def _connect(self) -> socket.socket | None:
        """Return a connection to the next target that answers; None if none does."""
        first = len(self.links) % len(self.targets)
        for target in (*self.targets[first:], *self.targets[:first]):
            host, _, port = target.rpartition(":")
            far = socket.socket()
            far.setblocking(False)
            self._bound(far)
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await asyncio.get_running_loop().sock_connect(far, (host, int(port)))
            except (OSError, TimeoutError):
                far.close()
            except asyncio.CancelledError:
                far.close()
                raise
            else:
                return far
        return None

    def _bound(self, one: socket.socket) -> None:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._buffer_bytes:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                one.setsockopt(socket.SOL_SOCKET, option, self._buffer_bytes)


class Link:
    """One relayed connection."""

    def __init__(self, plan: FaultPlan, number: int, near: socket.socket, far: socket.socket, keep: bool) -> None:
        self.number, self.fault = number, plan.fault(number)
        self.fault_came = False
        self.up, self.down = Traffic(), Traffic()
        self.ended = ""
        """How it ended: "close", "reset" or "half_open"; empty as long as it lasts."""
        self._plan, self._near, self._far, self._keep = plan, near, far, keep
        self._ending: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._open_directions = 2

    async def run(self) -> None:
        """Relay until both sides are done or something ends it."""
        loop = asyncio.get_running_loop()
        pumps = [loop.create_task(self._pump("up")), loop.create_task(self._pump("down"))]
        try:
            self.ended = await self._ending
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        if self.ended == "reset":
            for source, traffic in ((self._near, self.up), (self._far, self.down)):
                self._take_rest(source, traffic)
                _abort(source)
        elif self.ended == "close":
            self.close()

    def end(self, how: str) -> None:
        """Let it end like this, unless it has ended already."""
        if not self._ending.done():
            self._ending.set_result(how)

    def close(self) -> None:
        """Close both sides."""
        self._near.close()
        self._far.close()

    async def _pump(self, direction: Direction) -> None:
        source, sink = (self._near, self._far) if direction == "up" else (self._far, self._near)
        traffic = self.up if direction == "up" else self.down
        line = _Line(self._plan, f"{self._plan.seed}/{self.number}/{direction}", sink, traffic)
        fault = self.fault if self.fault is not None and self.fault.direction == direction else None
        carrying = asyncio.get_running_loop().create_task(line.carry())
        carrying.add_done_callback(lambda task: None if task.cancelled() else self.end("reset"))
        try:
            await self._copy(source, line, traffic, fault)
            await line.finish()
            with contextlib.suppress(OSError):  # the other side may be gone already
                sink.shutdown(socket.SHUT_WR)
            while data := await self._receive(source, traffic):  # a truncated direction's tail
                del data
            self._open_directions -= 1
            if not self._open_directions:
                self.end("close")
        except OSError:
            self.end("reset")  # one side was reset: so is the other
        finally:
            carrying.cancel()
            await asyncio.gather(carrying, return_exceptions=True)

    async def _copy(self, source: socket.socket, line: "_Line", traffic: Traffic, fault: Fault | None) -> None:
        """Pass everything on until the source ends or the rest is to be dropped."""
        while data := await self._receive(source, traffic):
            if fault is None or traffic.received < fault.after:
                await line.send(data)
                continue
            self.fault_came = True
            head = len(data) - (traffic.received - fault.after)
            await line.send(data[:head])
            if fault.kind == "truncate":
                return
            if fault.kind != "duplicate":
                self.end(fault.kind)
                await asyncio.Event().wait()  # until `run` cancels this
            tail = data[head:] or await self._receive(source, traffic)
            await line.send(tail)
            await line.send(tail)
            fault = None

    async def _receive(self, source: socket.socket, traffic: Traffic) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(source, PIECE_BYTES)
        self._count(traffic, data)
        return data

    def _take_rest(self, source: socket.socket, traffic: Traffic) -> None:
        """Count what the kernel has taken from the sender already: it left the sender, and is lost."""
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                self._count(traffic, data)

    def _count(self, traffic: Traffic, data: bytes) -> None:
        traffic.received += len(data)
        if self._keep:
            traffic.kept += data


class _Line:
    """One direction's way to its sink. Without delays `send` writes at once, so that nothing piles up here."""

    def __init__(self, plan: FaultPlan, seed: str, sink: socket.socket, traffic: Traffic) -> None:
        self._plan, self._sink, self._traffic = plan, sink, traffic
        self._rng = random.Random(seed)
        self._due = 0.0
        self._free_at = 0.0
        self._on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        held = plan.bytes_per_s * (plan.latency_s + 0.1) if plan.bytes_per_s else LINE_BYTES
        self._room = asyncio.Semaphore(max(1, int(held / PIECE_BYTES)))

    async def send(self, data: bytes) -> None:
        """Take a segment; wait while the line is full."""
        if not data:
            return
        if not self._plan.delays:
            await self._write(data)
            return
        await self._room.acquire()
        now = time.monotonic()
        if self._plan.bytes_per_s:
            self._free_at = max(now, self._free_at) + len(data) / self._plan.bytes_per_s
        arrival = max(now, self._free_at) + self._plan.latency_s + self._rng.uniform(0.0, self._plan.jitter_s)
        self._due = max(self._due, arrival)
        self._on_the_way.put_nowait((self._due, data))

    async def carry(self) -> None:
        """Write what was sent when its time has come. Raises OSError once the sink is gone."""
        while True:
            due, data = await self._on_the_way.get()
            await asyncio.sleep(due - time.monotonic())
            await self._write(data)
            self._on_the_way.task_done()
            self._room.release()

    async def finish(self) -> None:
        """Return once everything was written."""
        await self._on_the_way.join()

    async def _write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sink, data)
        self._traffic.forwarded += len(data)


def _abort(one: socket.socket) -> None:
    """Close with a RST."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    one.close()

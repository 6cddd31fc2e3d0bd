"""A site without training: it joins, waits, downloads and sends seeded random updates, so cheaply that a thousand fit a machine.

Each site has a connection of its own. Run as a program this is one process with many of them: `SitesPlan` as JSON is its only
argument; it prints one JSON line for each thing that all of its sites have reached, and the tally at the end. With `hold`, sites
stay in AwaitRound in their first round until a line comes on standard input, as if they trained all the while.
"""

import asyncio
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from med_duallora.v1 import federation_pb2 as pb
from med_duallora.v1.federation_pb2_grpc import FederationServiceStub

from shared import chunks, status
from shared.adapter import Adapter, AdapterManifest, AdapterMetadata
from shared.layout import Layout
from shared.protocol import MAX_WAIT_S, SITE_KEY, VERSION
from shared.recipe import CODECS, INSTALLED
from shared.tls import TlsFiles

T = TypeVar("T")

BASE_MODEL = "cd" * 32
RANK, WIDTH = 8, 192
SCALARS_A_MODULE = 2 * RANK * WIDTH
CALL_TIMEOUT_S = 60.0
TRANSFER_TIMEOUT_S = 120.0
MAX_DELAY_S = 5.0
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # or every channel of the process would share one connection
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


def make_adapter(scalars: int) -> Adapter:
    """Return version 0 of an adapter with this many float32 scalars, a multiple of `SCALARS_A_MODULE`: A random, B zero."""
    if scalars % SCALARS_A_MODULE:
        raise ValueError(f"scalars must be a multiple of {SCALARS_A_MODULE}, got {scalars}")
    rng, modules = np.random.default_rng(0), scalars // SCALARS_A_MODULE
    tensors: dict[str, np.ndarray] = {}
    for block in range(modules):
        name = f"base_model.model.encoder.blocks.{block:02}.attn.q"
        tensors[f"{name}.lora_A.weight"] = rng.standard_normal((RANK, WIDTH), np.float32)
        tensors[f"{name}.lora_B.weight"] = np.zeros((WIDTH, RANK), np.float32)
    metadata = AdapterMetadata(
        base_model_sha256=BASE_MODEL,
        rank=RANK,
        alpha=16.0,
        target_modules=("q",),
        blocks=tuple(range(modules)),
        head_policy="local",
        frames="stacked",
        task="disease detection",
        class_names=("normal", "disease"),
    )
    return Adapter(AdapterManifest(Layout.of(tensors), metadata), 0, "", tensors)


def random_delta(layout: Layout, *seed: int) -> bytes:
    """Return the payload of the random update that these numbers stand for."""
    return (np.random.default_rng(seed).standard_normal(layout.parameters, np.float32) * np.float32(0.01)).tobytes()


@dataclass
class Tally:
    """What sites did. Times in seconds."""

    calls: Counter[str] = field(default_factory=Counter)
    repeats: Counter[str] = field(default_factory=Counter)
    """Calls that failed and were made again, by method and what was answered."""
    upload_s: list[float] = field(default_factory=list)
    """From the announcement to the receipt, repeats included."""

    def add(self, other: "Tally") -> None:
        """Take another tally in."""
        self.calls += other.calls
        self.repeats += other.repeats
        self.upload_s += other.upload_s

    @classmethod
    def from_jsonable(cls, value: Any) -> "Tally":
        """Read the fields of one after its way through JSON."""
        return cls(Counter(value["calls"]), Counter(value["repeats"]), list(value["upload_s"]))


@dataclass(frozen=True, kw_only=True)
class SitesPlan:
    """What one process of sites is told. `certificates`: a folder made by `aggregator certificates`; empty: plain."""

    address: str
    names: Sequence[str]
    seed: int = 0
    certificates: str = ""
    hold: bool = False


class SimulatedSite:
    """One site. Random updates depend on seed, name and round alone."""

    def __init__(
        self,
        address: str,
        name: str,
        tls: TlsFiles | None,
        seed: int,
        hold: asyncio.Event,
        reached: Callable[[str], None],
    ) -> None:
        self.name, self.tally = name, Tally()
        self._agent_id, self._rng = f"agent-of-{name}", random.Random(f"{seed} {name}")
        self._seed = (seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
        self._patients = 10 + self._seed[1] % 90
        self._metadata = ((SITE_KEY, name),) if tls is None else ()
        self._hold, self._reached = hold, reached
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, tls.channel_credentials(), options=OPTIONS)
        self._stub: Any = FederationServiceStub(self._channel)
        self._layout = Layout(())
        self._held = ""

    async def take_part(self) -> None:
        """Follow instructions until the federation is finished."""
        try:
            await self._join()
            self._reached("joined")
            following, number = "NONE", 0
            while following not in ("FINISHED", "EVICTED"):
                task = await self._await_round(following, number)
                following, number = _instruction(task), task.round
                if following == "TRAIN":
                    await self._fetch(task)
                    await self._train(task)
                    await self._upload(task)
                    following = "WAIT"
        finally:
            await self._channel.close()

    async def _join(self) -> None:
        request = pb.JoinRequest(
            protocol_version=VERSION,
            agent_id=self._agent_id,
            base_model_sha256=BASE_MODEL,
            training_patients=self._patients,
            codecs=CODECS,
            recipes=INSTALLED,
        )
        response: pb.JoinResponse = await self._call("Join", request)
        self._layout = AdapterManifest.from_bytes(response.adapter_manifest).layout

    async def _await_round(self, following: str, number: int) -> pb.AwaitRoundResponse:
        request = pb.AwaitRoundRequest(
            agent_id=self._agent_id,
            round=number,
            following=pb.Instruction.Value("INSTRUCTION_" + ("UNSPECIFIED" if following == "NONE" else following)),
            wait_s=MAX_WAIT_S,
        )
        response: pb.AwaitRoundResponse = await self._call("AwaitRound", request, MAX_WAIT_S + CALL_TIMEOUT_S)
        return response

    async def _fetch(self, task: pb.AwaitRoundResponse) -> None:
        """Download the version, unless it is held; its bytes are counted and forgotten."""

        async def once() -> None:
            received = 0
            request = pb.FetchAdapterRequest(version=task.version, if_none_match=self._held, round=task.round)
            call = self._stub.FetchAdapter(request, metadata=self._metadata, timeout=TRANSFER_TIMEOUT_S)
            async for part in call:
                received += len(part.chunk.data)
                if part.not_modified:
                    return
            assert received == self._layout.size

        await self._repeating("FetchAdapter", once)
        self._held = task.digest

    async def _train(self, task: pb.AwaitRoundResponse) -> None:
        """Take no time; with `hold`, be heard of until the word is given."""
        go = asyncio.create_task(self._hold.wait())
        while not self._hold.is_set():
            call = asyncio.create_task(self._await_round("TRAIN", task.round))
            self._reached("waiting")
            await asyncio.wait({go, call}, return_when=asyncio.FIRST_COMPLETED)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await go

    async def _upload(self, task: pb.AwaitRoundResponse) -> None:
        began = time.monotonic()
        payload = random_delta(self._layout, *self._seed, task.round)
        digest = hashlib.sha256(payload).hexdigest()
        announcement = pb.BeginUploadRequest(
            agent_id=self._agent_id,
            round=task.round,
            digest=digest,
            size=len(payload),
            codec="f32",
            base_version=task.version,
            training_patients=self._patients,
            layout_digest=self._layout.digest,
        )

        async def once() -> None:
            begun: pb.BeginUploadResponse = await self._call("BeginUpload", announcement)
            if not begun.HasField("receipt"):
                stream = self._stream(task.round, digest, payload, begun.committed)
                await self._stub.UploadDelta(stream, metadata=self._metadata, timeout=TRANSFER_TIMEOUT_S)

        await self._repeating("UploadDelta", once)
        self.tally.upload_s.append(time.monotonic() - began)

    async def _stream(
        self, number: int, digest: str, payload: bytes, offset: int
    ) -> AsyncIterator[pb.UploadDeltaRequest]:
        yield pb.UploadDeltaRequest(start=pb.UploadStart(agent_id=self._agent_id, round=number, digest=digest))
        for chunk in chunks.split(payload, offset):
            yield pb.UploadDeltaRequest(chunk=chunk)

    async def _call(self, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        async def once() -> Any:
            return await getattr(self._stub, method)(request, metadata=self._metadata, timeout=timeout_s)

        return await self._repeating(method, once)

    async def _repeating(self, method: str, once: Callable[[], Awaitable[T]]) -> T:
        """Make a call until it succeeds or trying again is useless, with the pauses of a real agent."""
        attempt = 0
        while True:
            self.tally.calls[method] += 1
            try:
                return await once()
            except grpc.aio.AioRpcError as error:
                if not status.is_retryable(error):
                    raise
                self.tally.repeats[f"{method}: {error.code().name} {(error.details() or '')[:60]}"] += 1
            await asyncio.sleep(self._rng.uniform(0.1, min(MAX_DELAY_S, 0.2 * 2.0 ** min(attempt, 12))))
            attempt += 1


def _instruction(task: pb.AwaitRoundResponse) -> str:
    return pb.Instruction.Name(task.instruction).removeprefix("INSTRUCTION_")


async def take_part(plan: SitesPlan, go: Callable[[], Awaitable[object]], reached: Callable[[str], None]) -> Tally:
    """Let every site of the plan take part to the end. `reached` is called once per thing that all sites have reached."""
    counts: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    hold, total = asyncio.Event(), Tally()

    def one_reached(name: str, what: str) -> None:
        counts[what] += (name, what) not in seen
        if (name, what) not in seen and counts[what] == len(plan.names):
            reached(what)
        seen.add((name, what))

    async def release() -> None:
        if plan.hold:
            await go()
        hold.set()

    folder = Path(plan.certificates)
    sites = [
        SimulatedSite(
            plan.address,
            name,
            TlsFiles(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key") if plan.certificates else None,
            plan.seed,
            hold,
            lambda what, name=name: one_reached(name, what),  # type: ignore[misc]
        )
        for name in plan.names
    ]
    async with asyncio.TaskGroup() as group:
        group.create_task(release())
        for site in sites:
            group.create_task(site.take_part())
    for site in sites:
        total.add(site.tally)
    return total


def main(argument: str) -> None:
    """Be one process of sites."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    def say(**facts: Any) -> None:
        print(json.dumps(facts), flush=True)

    async def run() -> None:
        tally = await take_part(
            SitesPlan(**json.loads(argument)),
            lambda: asyncio.to_thread(sys.stdin.readline),
            lambda what: say(reached=what),
        )
        say(tally=vars(tally))

    asyncio.run(run())


if __name__ == "__main__":
    main(sys.argv[1])

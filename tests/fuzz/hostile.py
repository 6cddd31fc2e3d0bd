"""The site's client against an aggregator that answers whatever it likes.

The connection is played. The client gets what gRPC would hand out: None for bytes that are no message, and an error for a message
larger than the connection takes. What protobuf copies of a message to tell its size is part of the case.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message
from med_duallora.v1 import federation_pb2 as pb

from aggregator import downloads, wire
from aggregator.downloads import Download
from aggregator.store.changes import Step
from shared import forms
from shared.adapter import Adapter
from shared.contract import Contract, RoundPolicy
from shared.protocol import ERROR_KEY
from shared.recipe import Recipe
from site_agent.client import FederationClient, Task
from site_agent.connection import MAX_ANSWER, Dialled
from site_agent.egress import Update, UpdateFacts
from tests.fuzz import calls
from tests.fuzz.calls import Call, Case
from tests.fuzz.target import ACCEPTED, Ready, Undocumented
from tests.support import adapters

SITE = "ge"
KINDS: dict[str, type[Message]] = {
    "Join": pb.JoinResponse,
    "AwaitRound": pb.AwaitRoundResponse,
    "FetchAdapter": pb.FetchAdapterResponse,
    "BeginUpload": pb.BeginUploadResponse,
    "UploadDelta": pb.UploadDeltaResponse,
    "ReportEvaluation": pb.ReportEvaluationResponse,
}
STATUSES: tuple[str, ...] = (
    "",
    "",
    "",
    "UNAVAILABLE Draining",
    "INTERNAL ",
    "UNKNOWN ",
    "INVALID_ARGUMENT InvalidUpdate",
    "ABORTED BadOffset",
)
STATUSES += (
    "NOT_FOUND Nonsense",
    "FAILED_PRECONDITION StaleRound",
    "RESOURCE_EXHAUSTED ",
    "OUT_OF_RANGE InvalidAdapter",
    "CANCELLED ",
)
BROADCASTS = ("f32", "topk+zstd")
"""The codecs by which the federations of the cases send what a round changed."""
CALL_TIMEOUT_S = 0.3
STALL_S = 0.05
"""A stream that stands still ends with the deadline that the client set; here it is over sooner."""


Answer = Message | grpc.aio.AioRpcError | None


def failure(status: str) -> grpc.aio.AioRpcError:
    """Return what a call raises that ends with this status and class of error."""
    code, _, kind = status.partition(" ")
    trailing = grpc.aio.Metadata((ERROR_KEY, kind)) if kind else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(grpc.StatusCode[code], grpc.aio.Metadata(), trailing, "why")


def handed_out(method: str, data: bytes) -> Answer:
    """Return what gRPC makes of an answer's bytes."""
    if len(data) > MAX_ANSWER:
        return failure("RESOURCE_EXHAUSTED ")
    message = KINDS[method]()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    return message


class Stub:
    """Answers each call with the next of its method in a case; with UNAVAILABLE when there is none."""

    def __init__(self, answers: list[tuple[Call, list[Answer]]]) -> None:
        self._left = answers

    def _next(self, method: str) -> tuple[Call, list[Answer]]:
        found = next((one for one in self._left if one[0].method == method), None)
        if found is None:
            raise failure("UNAVAILABLE ")
        self._left.remove(found)
        return found

    async def _answer(self, method: str) -> Message | None:
        call, said = self._next(method)
        if call.note or not said:
            raise failure(call.note or "INTERNAL ")
        return _returned(said[0])

    async def Join(self, request: Any, **options: Any) -> Message | None:
        return await self._answer("Join")

    async def AwaitRound(self, request: Any, **options: Any) -> Message | None:
        return await self._answer("AwaitRound")

    async def BeginUpload(self, request: Any, **options: Any) -> Message | None:
        return await self._answer("BeginUpload")

    async def ReportEvaluation(self, request: Any, **options: Any) -> Message | None:
        return await self._answer("ReportEvaluation")

    async def UploadDelta(self, requests: AsyncIterator[Any], **options: Any) -> Message | None:
        async for _ in requests:
            continue
        return await self._answer("UploadDelta")

    async def FetchAdapter(self, request: Any, **options: Any) -> AsyncIterator[Message | None]:
        call, said = self._next("FetchAdapter")
        for one in said:
            yield _returned(one)
        if call.stalls:
            await asyncio.sleep(min(options["timeout"], STALL_S))
            raise failure("DEADLINE_EXCEEDED ")
        if call.note:
            raise failure(call.note)


def _returned(answer: Answer) -> Message | None:
    if isinstance(answer, grpc.aio.AioRpcError):
        raise answer
    return answer


class Connection:
    """Plays the connection: every call is made on the stub."""

    def __init__(self, stub: Stub) -> None:
        self._stub: Any = stub

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Dialled]:
        """Yield the stub."""
        channel: Any = None
        yield Dialled(channel, self._stub, "fuzz")


class Ledger:
    """Plays the egress ledger: what it writes is no part of the cases."""

    def leaving(self, *what: Any) -> int:
        """Note nothing."""
        return 1

    def left(self, *what: Any) -> None:
        """Note nothing."""

    def control(self, *what: Any) -> None:
        """Note nothing."""


class ScriptedClient(FederationClient):
    """A client whose connection is a stub, and which gives up at the first failure."""

    def __init__(self, stub: Stub) -> None:
        ledger: Any = Ledger()
        super().__init__(
            "fed.test:1", None, "agent-1", ledger, plain_site=SITE, give_up_after_s=0.0, call_timeout_s=CALL_TIMEOUT_S
        )
        connection: Any = Connection(stub)
        self._calls.connection = connection
        self._calls.federation = "demo"


class World:
    """A federation as its aggregator would tell of it: version 0, which the site holds, and version 1, which it is to fetch."""

    def __init__(self, broadcast: str, number: int) -> None:
        self._number = number
        self.held = adapters.adapter(width=200)
        self.contract = Contract(
            federation="demo",
            adapter_digest=self.held.digest,
            manifest=self.held.manifest,
            recipe=Recipe(broadcast_codec=broadcast),
            policy=RoundPolicy(),
        )
        layout = self.contract.recipe.change_layout(self.held.manifest, 1)
        rng = np.random.default_rng(1)
        step = {spec.name: (0.01 * rng.standard_normal(spec.shape)).astype(np.float32) for spec in layout.tensors}
        self.change = layout.join(step, b"seed")
        self.next = self.held.successor(forms.changed(self.held.tensors, layout, self.change), 1)
        self.task = Task("TRAIN", 1, 1, self.next.digest, 60.0, "")
        payload = adapters.delta(self.held.manifest.layout, 3)
        facts = UpdateFacts(round=1, base_version=0, training_patients=10, metrics={"train_loss": 0.5})
        self.update = Update(facts, self.held.manifest.layout, payload)

    def _fetched(self, download: Download, any_form: bool = True) -> Call:
        request = pb.FetchAdapterRequest(any_form=any_form)
        return Call.of("FetchAdapter", *wire.download_parts(download, request))

    def cases(self) -> list[Case]:
        """Return what a well-behaved aggregator answers; the first call says what the client is asked to do."""
        step = Step(1, 1, len(self.change))
        plain = Download(self.next, "PLAIN", self.next.payload)
        packed = downloads.smallest(self.next, self.held, None)
        changed = Download(self.next, "CHANGES", self.change, self.held.digest, (step,))
        other = Download(replace(self.held, version=1), "PLAIN", self.held.payload)
        receipt = pb.Receipt(round=1, digest=self.update.digest, accepted_at=1.0)
        scripts = [
            [Call.of("Join", wire.join_response(self.contract, SITE, 10, 1))],
            [
                Call.of(
                    "AwaitRound",
                    pb.AwaitRoundResponse(
                        instruction=pb.INSTRUCTION_TRAIN, round=1, version=1, digest=self.next.digest
                    ),
                )
            ],
            [self._fetched(plain, any_form=False)],
            [self._fetched(packed)],
            [self._fetched(changed)],
            [self._fetched(other)],
            [self._fetched(packed), self._fetched(plain, any_form=False)],
            [Call.of("FetchAdapter", pb.FetchAdapterResponse(not_modified=True))],
            [Call.of("UploadDelta", pb.UploadDeltaResponse(receipt=receipt))],
            [
                Call.of("BeginUpload", pb.BeginUploadResponse(committed=100)),
                Call.of("UploadDelta", pb.UploadDeltaResponse(receipt=receipt)),
            ],
            [Call.of("BeginUpload", pb.BeginUploadResponse(receipt=receipt))],
            [Call.of("ReportEvaluation", pb.ReportEvaluationResponse())],
        ]
        return [Case(tuple(script), self._number) for script in scripts]


class Client:
    """Everything that the client reads of an aggregator."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._worlds = [World(broadcast, number) for number, broadcast in enumerate(BROADCASTS)]
        self._cases = [case for world in self._worlds for case in world.cases()]

    def seeds(self) -> list[bytes]:
        """Return the answers of a well-behaved aggregator."""
        return [calls.packed(case) for case in self._cases]

    def mutated(self, data: bytes, rng: Random) -> bytes:
        """Return another case."""
        case = calls.unpacked(data) or rng.choice(self._cases)
        return calls.packed(calls.mutated(case, self._cases, KINDS, STATUSES, rng))

    def ready(self, data: bytes) -> Ready:
        """Parse the answers, as gRPC does before anybody is asked."""
        case = calls.unpacked(data) or self._cases[0]
        answers = [
            (call, [handed_out(call.method, one) for one in call.messages])
            for call in case.calls
            if call.method in KINDS
        ]
        world = self._worlds[case.world % len(self._worlds)]
        asked = case.calls[0].method if case.calls else ""

        def run() -> str:
            return self._loop.run_until_complete(_run(world, asked, Stub(answers)))

        return Ready(world.held.manifest.layout.size, run)

    def close(self) -> None:
        """Close the loop."""
        self._loop.close()


async def _run(world: World, asked: str, stub: Stub) -> str:
    client = ScriptedClient(stub)
    match asked:
        case "Join":
            await client.join(
                federation="demo", base_model_sha256=adapters.BASE_MODEL, training_patients=10, software_version="0.1.0"
            )
        case "AwaitRound":
            await client.await_round(round_number=1, following="WAIT", version=0, wait_s=30.0)
        case "FetchAdapter":
            _check(world, await client.fetch(world.contract, world.task, world.held))
        case "UploadDelta":
            await client.upload(world.update, fresh=True)
        case "BeginUpload":
            await client.upload(world.update)
        case "ReportEvaluation":
            await client.report_evaluation(1, 1, 5, {"auc": 0.5})
    return ACCEPTED


def _check(world: World, fetched: Adapter) -> None:
    """Raise Undocumented if what the client took is not what was announced."""
    if fetched.payload != world.next.payload or fetched.manifest != world.held.manifest:
        raise Undocumented("the client took another adapter than the one that was announced")

"""The aggregator's services driven by a hostile site: the handlers that gRPC would call, on a real store, without a socket."""

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc
from google.protobuf.message import Message
from med_duallora.v1 import coordinator_pb2 as cpb
from med_duallora.v1 import coordinator_pb2_grpc, federation_pb2_grpc
from med_duallora.v1 import federation_pb2 as pb

from aggregator import identity, wire
from aggregator.federation import Federation, ServiceLimits
from aggregator.refusals import Refusals
from aggregator.servicers import CoordinatorServicer, FederationServicer
from aggregator.store import engine, federations
from shared import rpc, status
from shared.layout import Layout
from shared.protocol import ERROR_KEY, SITE_KEY, VERSION
from shared.recipe import CODECS, INSTALLED
from tests.fuzz import calls
from tests.fuzz.calls import Call, Case
from tests.fuzz.target import ACCEPTED, HELD, NOTHING, Ready, Undocumented
from tests.support import adapters
from tests.support.raw_site import digest
from tests.support.serving import make_store

SITE, OTHER = "ge", "philips"
SITES = (SITE, OTHER, "siemens")
CALLERS = (SITE, SITE, OTHER, "siemens", "stranger", "", "\x7f" * 70)
CODECS_SERVED = ("f32", "topk+zstd")
"""The codecs of the federations that are served."""
LIMITS = ServiceLimits(chunk_wait_s=0.05, upload_s=0.3, identity_s=0.0)
HELD_S = 0.05
"""After this a site gives up a question that the aggregator may hold for half a minute."""
KINDS: dict[str, type[Message]] = {
    "Join": pb.JoinRequest,
    "AwaitRound": pb.AwaitRoundRequest,
    "FetchAdapter": pb.FetchAdapterRequest,
    "BeginUpload": pb.BeginUploadRequest,
    "UploadDelta": pb.UploadDeltaRequest,
    "ReportEvaluation": pb.ReportEvaluationRequest,
    "Probe": pb.ProbeRequest,
    "GetStatus": cpb.GetStatusRequest,
    "ListRounds": cpb.ListRoundsRequest,
    "Pause": cpb.PauseRequest,
    "Resume": cpb.ResumeRequest,
    "Evict": cpb.EvictRequest,
    "Rollback": cpb.RollbackRequest,
}
SERVICES = {
    name: "Federation" if kind.DESCRIPTOR.file is pb.DESCRIPTOR else "Coordinator" for name, kind in KINDS.items()
}


def path_of(method: str) -> str:
    """Return a method's path on the wire."""
    return f"/med_duallora.v1.{SERVICES[method]}Service/{method}"


def begin(layout: Layout, payload: bytes, codec: str) -> pb.BeginUploadRequest:
    """Return an announcement as it should be."""
    return pb.BeginUploadRequest(
        federation="demo",
        agent_id=f"agent-of-{SITE}",
        round=1,
        digest=digest(payload),
        size=len(payload),
        codec=codec,
        layout_digest=layout.digest,
        training_patients=10,
        metrics={"train_loss": 0.5},
    )


def join(site: str) -> pb.JoinRequest:
    """Return a Join as it should be."""
    return pb.JoinRequest(
        federation="demo",
        protocol_version=VERSION,
        agent_id=f"agent-of-{site}",
        software_version="0.1.0",
        base_model_sha256=adapters.BASE_MODEL,
        training_patients=10,
        codecs=CODECS,
        recipes=INSTALLED,
    )


class World:
    """A federation of three sites in its first round, of which one has delivered. `renew` brings it back to that."""

    def __init__(self, folder: Path, codec: str, number: int) -> None:
        self.codec, self._number = codec, number
        self.place = Path(make_store(folder, sites=dict.fromkeys(SITES, 10), quorum=3, parameters={"codec": codec}))
        self.store = engine.open_store(str(self.place))
        self._raw = sqlite3.connect(self.place, isolation_level=None, check_same_thread=False)
        self.federation = Federation(self.store, "demo", LIMITS)
        self.layout = self.federation.upload_layout(1)
        self.payload, self.others = self._update(1), self._update(2)
        self._pristine = sqlite3.connect(":memory:", check_same_thread=False)
        self._revision, self._seen = 0, -1

    def _update(self, seed: int) -> bytes:
        plain = self.layout.written_as("F32")
        return self.layout.join(plain.split(adapters.delta(plain, seed)), b"seed")

    def keep(self) -> None:
        """Take what the store holds for what every case begins with."""
        self._raw.backup(self._pristine)
        self._revision = self.store.read(federations.revision, "demo")
        self._seen = self._version()

    def is_changed(self) -> bool:
        """Return whether the store was written to since `keep` or `renew`."""
        return self._version() != self._seen

    def renew(self) -> None:
        """Bring the store back to what `keep` kept, under a revision that it never had: nobody's copy of it is good any more."""
        self._pristine.backup(self._raw)
        self._revision += 1000
        self._raw.execute("UPDATE federations SET revision = ?", (self._revision,))
        self._seen = self._version()

    def _version(self) -> int:
        """Changes with every commit of another connection."""
        (found,) = self._raw.execute("PRAGMA data_version").fetchone()
        return int(found)

    def cases(self) -> list[Case]:
        """Return what a well-behaved site and a coordinator would call."""
        announced = begin(self.layout, self.payload, self.codec)
        spelled = pb.BeginUploadRequest()
        spelled.CopyFrom(announced)
        spelled.layout_json = _json(self.layout)
        reflected = begin(self.layout, self.others, self.codec)
        start = pb.UploadStart(federation="demo", agent_id=f"agent-of-{SITE}", round=1, digest=announced.digest)
        whole = pb.Chunk(data=self.payload)
        size = -(-len(self.payload) // 3)
        parts = [pb.Chunk(offset=at, data=self.payload[at : at + size]) for at in range(0, len(self.payload), size)]
        chunks = [pb.UploadDeltaRequest(chunk=chunk) for chunk in parts]
        metrics = {"auc": 0.5, "loss": 0.7}
        scripts = [
            [Call.of("Join", join(SITE), note=SITE)],
            [Call.of("AwaitRound", pb.AwaitRoundRequest(agent_id=f"agent-of-{SITE}", round=1), note=SITE)],
            [Call.of("FetchAdapter", pb.FetchAdapterRequest(federation="demo", any_form=True), note=SITE)],
            [Call.of("BeginUpload", announced, note=SITE)],
            [Call.of("BeginUpload", spelled, note=SITE)],
            [Call.of("BeginUpload", reflected, note=SITE)],
            [
                Call.of("BeginUpload", announced, note=SITE),
                Call.of("UploadDelta", pb.UploadDeltaRequest(start=start), *chunks, note=SITE),
            ],
            [
                Call.of(
                    "UploadDelta",
                    pb.UploadDeltaRequest(start=pb.UploadStart(announcement=announced)),
                    pb.UploadDeltaRequest(chunk=whole),
                    note=SITE,
                )
            ],
            [
                Call.of(
                    "ReportEvaluation",
                    pb.ReportEvaluationRequest(agent_id=f"agent-of-{SITE}", round=1, cases=5, metrics=metrics),
                    note=SITE,
                )
            ],
            [Call.of("Probe", pb.ProbeRequest(payload=b"x" * 100, echo=True), note=SITE)],
            [Call.of("GetStatus", cpb.GetStatusRequest())],
            [Call.of("ListRounds", cpb.ListRoundsRequest(federation="demo"))],
            [Call.of("Pause", cpb.PauseRequest(reason="why")), Call.of("Resume", cpb.ResumeRequest())],
            [Call.of("Evict", cpb.EvictRequest(site="siemens", reason="why", allow_quorum=2))],
            [Call.of("Rollback", cpb.RollbackRequest(version=0, reason="why", round=1))],
        ]
        return [Case(tuple(script), self._number) for script in scripts]

    def close(self) -> None:
        """Let go of the store."""
        self._raw.close()
        self._pristine.close()
        self.store.close()


def _json(layout: Layout) -> bytes:
    from shared.canonical import canonical_json

    return canonical_json(layout.to_jsonable())


@dataclass(frozen=True, slots=True)
class Details(grpc.HandlerCallDetails):
    """Which method is called."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """A call ended with a status."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code


class Context:
    """What a handler learns of its call on a plain port, and ends it by."""

    def __init__(self, site: str) -> None:
        self._metadata = ((SITE_KEY, site),) if site else ()
        self.trailing: dict[str, str] = {}

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what came with the call."""
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        """Return nothing: the port is plain."""
        return {}

    def peer(self) -> str:
        """Return who called."""
        return "fuzz"

    def set_trailing_metadata(self, pairs: tuple[tuple[str, str], ...]) -> None:
        """Note what goes with the status."""
        self.trailing = dict(pairs)

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End the call. The text must be one that can be sent."""
        details.encode()
        raise Refused(code, details)


class Handlers:
    """Plays the server for the generated code: keeps the handlers that it is given."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        """Not needed: the next call brings them too."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Keep a service's handlers."""
        del service
        self.found |= handlers


class Served:
    """A world's handlers, each inside of the interceptor that gives errors their status."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.refusals = Refusals(world.federation)
        given: Any = Handlers()
        federation_pb2_grpc.add_FederationServiceServicer_to_server(FederationServicer(world.federation), given)
        coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(CoordinatorServicer(world.federation), given)
        self._plain = given.found
        most = wire.most_bytes(world.federation.contract)
        self._calls = rpc.ServerCalls(identity.describe, self.refusals.note, most)
        self._handlers: dict[str, Any] = {}

    async def _handler(self, method: str) -> Any:
        if method not in self._handlers:

            async def plain(details: Any) -> Any:
                del details
                return self._plain[method]

            self._handlers[method] = await self._calls.intercept_service(plain, Details(path_of(method)))
        return self._handlers[method]

    async def call(self, call: Call) -> str:
        """Make a call; return ACCEPTED, HELD, or the status and class of a refusal. Raises Undocumented."""
        handler, context = await self._handler(call.method), Context(call.note)
        try:
            async with asyncio.timeout(HELD_S if call.method == "AwaitRound" else None):
                await self._answered(handler, call, context)
        except Refused as refused:
            return label(refused.code, context.trailing.get(ERROR_KEY, ""), str(refused))
        except TimeoutError:
            return HELD
        return ACCEPTED

    async def _answered(self, handler: Any, call: Call, context: Context) -> None:
        parse = handler.request_deserializer or (lambda data: data)
        if handler.request_streaming:

            async def requests() -> AsyncIterator[Any]:
                for one in call.messages:
                    yield parse(one)
                if call.stalls:
                    await asyncio.Event().wait()

            handler.response_serializer(await handler.stream_unary(requests(), context))
            return
        request = parse(call.messages[0] if call.messages else b"")
        if handler.response_streaming:
            async for answer in handler.unary_stream(request, context):
                handler.response_serializer(answer)
        else:
            handler.response_serializer(await handler.unary_unary(request, context))


def label(code: grpc.StatusCode, kind: str, text: str) -> str:
    """Return how a refusal is counted. Raises Undocumented for a status or a class of error that the protocol does not have."""
    expected = {error.__name__: status for error, status in status.TABLE.items()}
    if expected.get(kind) is not code:
        raise Undocumented(f"status {code.name} with error '{kind}': {text[:200]}")
    return f"{code.name} {kind}"


def drawn(data: bytes, cases: list[Case], rng: Random) -> bytes:
    """Return a mutated case of calls."""
    case = calls.unpacked(data) or rng.choice(cases)
    return calls.packed(calls.mutated(case, cases, KINDS, CALLERS, rng))


class Worlds:
    """A federation for each codec, as cases find them, and the loop that they live on."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        self.loop = asyncio.new_event_loop()
        worlds = [
            World(Path(self._folder.name) / str(number), codec, number) for number, codec in enumerate(CODECS_SERVED)
        ]
        self.served = [Served(world) for world in worlds]
        self.cases = [case for world in worlds for case in world.cases()]
        for served in self.served:
            self.loop.run_until_complete(_prepare(served))

    def close(self) -> None:
        """Remove the stores."""
        for served in self.served:
            self.loop.run_until_complete(served.refusals.close())
            served.world.close()
        self.loop.close()
        self._folder.cleanup()


async def _prepare(served: Served) -> None:
    """Let all sites join and one deliver."""
    world = served.world
    for site in SITES:
        assert await served.call(Call.of("Join", join(site), note=site)) == ACCEPTED
    announced = begin(world.layout, world.others, world.codec)
    announced.agent_id = f"agent-of-{OTHER}"
    start = pb.UploadDeltaRequest(start=pb.UploadStart(announcement=announced))
    chunk = pb.UploadDeltaRequest(chunk=pb.Chunk(data=world.others))
    assert await served.call(Call.of("UploadDelta", start, chunk, note=OTHER)) == ACCEPTED
    world.keep()


class Services:
    """The services, called in the process."""

    def __init__(self) -> None:
        self._worlds = Worlds()

    def seeds(self) -> list[bytes]:
        """Return the calls of a well-behaved site."""
        return [calls.packed(case) for case in self._worlds.cases]

    def mutated(self, data: bytes, rng: Random) -> bytes:
        """Return another case."""
        return drawn(data, self._worlds.cases, rng)

    def ready(self, data: bytes) -> Ready:
        """Choose the world."""
        case = calls.unpacked(data) or self._worlds.cases[0]
        served = self._worlds.served[case.world % len(self._worlds.served)]
        return Ready(served.world.layout.size, lambda: self._worlds.loop.run_until_complete(_run(served, case)))

    def close(self) -> None:
        """Remove the stores."""
        self._worlds.close()


async def _run(served: Served, case: Case) -> str:
    """Make a case's calls one after the other; what the last one came to is the label."""
    last = NOTHING
    try:
        for call in case.calls:
            if call.method in KINDS:
                last = await served.call(call)
    finally:
        if served.world.is_changed():
            served.world.renew()
    return last

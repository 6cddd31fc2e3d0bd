"""A site made of the generated stubs alone, so that a test can say anything the protocol lets it say."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from med_duallora.v1 import federation_pb2 as pb
from med_duallora.v1.federation_pb2_grpc import FederationServiceStub

from shared import chunks
from shared.adapter import Adapter, AdapterManifest
from shared.layout import Layout
from shared.protocol import SITE_KEY, VERSION
from shared.tls import TlsFiles
from tests.support import adapters

TIMEOUT_S = 20.0


class RawSite:
    """One site and its agent. Every method makes one call with the defaults of a well-behaved agent."""

    def __init__(self, address: str, name: str, tls: TlsFiles | None = None, agent_id: str = "", patients: int = 10):
        self.name, self.agent_id, self.patients = name, agent_id or f"agent-of-{name}", patients
        self.metadata = ((SITE_KEY, name),)
        if tls is None:
            self.channel = grpc.aio.insecure_channel(address)
        else:
            self.channel = grpc.aio.secure_channel(address, tls.channel_credentials())
        self.stub: Any = FederationServiceStub(self.channel)
        self.manifest: AdapterManifest = adapters.adapter().manifest

    async def __aenter__(self) -> "RawSite":
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.channel.close()

    @property
    def layout(self) -> Layout:
        return self.manifest.layout

    async def call(self, method: str, request: Any) -> Any:
        return await getattr(self.stub, method)(request, metadata=self.metadata, timeout=TIMEOUT_S)

    async def join(self, **changes: Any) -> pb.JoinResponse:
        values: dict[str, Any] = {
            "protocol_version": VERSION,
            "agent_id": self.agent_id,
            "base_model_sha256": adapters.BASE_MODEL,
            "training_patients": self.patients,
            "codecs": ["f32"],
            "recipes": ["med-duallora"],
        }
        response = await self.call("Join", pb.JoinRequest(**{**values, **changes}))
        self.manifest = AdapterManifest.from_bytes(response.adapter_manifest)
        return response

    async def wait(
        self, following: str = "UNSPECIFIED", round_number: int = 0, wait_s: float = 0.0, **changes: Any
    ) -> Any:
        values = {"agent_id": self.agent_id, "round": round_number, "wait_s": wait_s, **changes}
        request = pb.AwaitRoundRequest(following=f"INSTRUCTION_{following}", **values)
        return await self.call("AwaitRound", request)

    async def fetch(self, version: int, **changes: Any) -> tuple[pb.AdapterInfo | None, bytes]:
        """Return what was sent; (None, b"") for not_modified."""
        info, payload = None, b""
        request = pb.FetchAdapterRequest(version=version, **changes)
        async for part in self.stub.FetchAdapter(request, metadata=self.metadata, timeout=TIMEOUT_S):
            if part.WhichOneof("part") == "info":
                info = part.info
            payload += part.chunk.data
        return info, payload

    async def adapter(self, version: int) -> Adapter:
        info, payload = await self.fetch(version)
        assert info is not None
        return Adapter.from_payload(self.manifest, info.version, info.parent_digest, payload)

    async def begin(self, payload: bytes, round_number: int = 1, **changes: Any) -> pb.BeginUploadResponse:
        values: dict[str, Any] = {
            "agent_id": self.agent_id,
            "round": round_number,
            "digest": digest(payload),
            "size": len(payload),
            "codec": "f32",
            "base_version": round_number - 1,
            "training_patients": self.patients,
        }
        if "layout_json" not in changes:
            values["layout_digest"] = self.layout.digest
        return await self.call("BeginUpload", pb.BeginUploadRequest(**{**values, **changes}))

    async def stream(
        self, pieces: Sequence[pb.Chunk], announced: str, round_number: int = 1, then: Any = None
    ) -> pb.UploadDeltaResponse:
        """Send start and these chunks; `then` is awaited before the stream ends."""

        async def requests() -> AsyncIterator[pb.UploadDeltaRequest]:
            start = pb.UploadStart(agent_id=self.agent_id, round=round_number, digest=announced)
            yield pb.UploadDeltaRequest(start=start)
            for piece in pieces:
                yield pb.UploadDeltaRequest(chunk=piece)
            if then is not None:
                await then

        return await self.stub.UploadDelta(requests(), metadata=self.metadata, timeout=TIMEOUT_S)

    async def upload(
        self, payload: bytes, round_number: int = 1, chunk_bytes: int = 1 << 20, **changes: Any
    ) -> pb.Receipt:
        """Announce and send an update, going on from the committed offset."""
        begun = await self.begin(payload, round_number, **changes)
        if begun.HasField("receipt"):
            return begun.receipt
        pieces = list(chunks.split(payload, begun.committed, chunk_bytes))
        return (await self.stream(pieces, digest(payload), round_number)).receipt

    async def take_part(self, seed: int) -> pb.AwaitRoundResponse:
        """Follow instructions with random updates until the federation is finished; return the last answer."""
        await self.join()
        following, number = "UNSPECIFIED", 0
        while True:
            answer = await self.wait(following, number, wait_s=15.0)
            following, number = pb.Instruction.Name(answer.instruction).removeprefix("INSTRUCTION_"), answer.round
            if following in ("FINISHED", "EVICTED"):
                return answer
            if following == "TRAIN":
                adapter = await self.adapter(answer.version)
                assert adapter.digest == answer.digest
                update = adapters.delta(self.layout, seed + 1000 * number)
                await self.upload(update, number, base_version=answer.version)
                following = "WAIT"


def digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


async def refusal(call: Any) -> tuple[str, str, str]:
    """Await a call that must fail; return its status, the error's class from the trailing metadata, and the text."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        kinds = dict(error.trailing_metadata() or ())
        return error.code().name, str(kinds.get("med-error", "")), error.details() or ""
    raise AssertionError("the call was not refused")

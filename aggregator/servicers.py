"""The gRPC services: decode, call, encode. No decisions in here."""

import time
from collections.abc import AsyncIterator
from typing import Any

from med_duallora.v1 import coordinator_pb2 as cpb
from med_duallora.v1 import coordinator_pb2_grpc, federation_pb2_grpc
from med_duallora.v1 import federation_pb2 as pb

from aggregator import identity, slots, steering, wire
from aggregator.downloads import Downloads
from aggregator.federation import Federation
from aggregator.store import federations
from aggregator.store import rounds as round_rows
from aggregator.uploads import Uploads
from shared.errors import UpdateTooLarge
from shared.names import plain
from shared.protocol import MAX_PROBE_BYTES

# The second argument of every method is grpc.aio.ServicerContext, whose type parameters say nothing here.


class FederationServicer(federation_pb2_grpc.FederationServiceServicer):
    """What sites call."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._uploads = Uploads(federation)
        self._downloads = Downloads(federation)
        self._download_slots = slots.Slots(federation.limits.concurrent_uploads)

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinResponse:
        caller = identity.site_of(context)
        state, patients = await self._federation.join(caller, wire.join_claim(request))
        return wire.join_response(self._federation.contract, caller.site, patients, state.version)

    async def AwaitRound(self, request: pb.AwaitRoundRequest, context: Any) -> pb.AwaitRoundResponse:
        caller, report = identity.site_of(context), wire.site_report(request)
        answer = await self._federation.await_round(
            caller, request.federation, request.agent_id, report, request.wait_s
        )
        return wire.answer(answer)

    async def FetchAdapter(
        self, request: pb.FetchAdapterRequest, context: Any
    ) -> AsyncIterator[pb.FetchAdapterResponse]:
        caller = identity.site_of(context)
        async with self._download_slots.one(caller.site) as slot:
            adapter = await self._federation.fetch(caller, request.federation, request.version)
            if request.if_none_match == adapter.digest:
                yield wire.not_modified()
                return
            download = await self._downloads.choose(adapter, request.if_none_match, request.any_form)
            parts = wire.download_parts(download, request)
            async for part in slot.paced(parts, self._federation.limits.chunk_wait_s):
                yield part

    async def BeginUpload(self, request: pb.BeginUploadRequest, context: Any) -> pb.BeginUploadResponse:
        caller = identity.site_of(context)
        return wire.progress(await self._uploads.begin(caller, wire.announcement(caller.site, request)))

    async def UploadDelta(
        self, request_iterator: AsyncIterator[pb.UploadDeltaRequest], context: Any
    ) -> pb.UploadDeltaResponse:
        caller = identity.site_of(context)
        requests = slots.punctual(aiter(request_iterator), self._federation.limits.chunk_wait_s)
        start = await wire.upload_start(requests)
        chunks = wire.upload_chunks(requests)
        if start.HasField("announcement"):
            receipt = await self._uploads.take(caller, wire.announcement(caller.site, start.announcement), chunks)
        else:
            receipt = await self._uploads.receive(
                caller, start.federation, start.agent_id, start.round, start.digest, chunks
            )
        return pb.UploadDeltaResponse(receipt=wire.receipt(receipt))

    async def ReportEvaluation(self, request: pb.ReportEvaluationRequest, context: Any) -> pb.ReportEvaluationResponse:
        caller = identity.site_of(context)
        await self._federation.report_evaluation(caller, request.federation, wire.evaluation(request))
        return pb.ReportEvaluationResponse()

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeResponse:
        caller = identity.site_of(context)
        await self._federation.known(caller)
        if len(request.payload) > MAX_PROBE_BYTES:
            raise UpdateTooLarge(f"a probe of {len(request.payload)} bytes, allowed are {MAX_PROBE_BYTES}")
        joined = await self._described(caller) if request.describe else None
        echo = request.payload if request.echo else b""
        return pb.ProbeResponse(payload=echo, server_time=time.time(), joined=joined)

    async def _described(self, caller: identity.Caller) -> pb.JoinResponse:
        site = await self._federation.member(caller)
        version = (await self._federation.state()).version
        return wire.join_response(self._federation.contract, caller.site, site.training_patients or 0, version)


class CoordinatorServicer(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """What coordinators call."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation

    async def GetStatus(self, request: cpb.GetStatusRequest, context: Any) -> cpb.GetStatusResponse:
        await self._check(request.federation, identity.reader_of(context))
        state = await self._federation.read(federations.state, self._federation.name)
        return wire.status(state, self._federation.clock())

    async def ListRounds(self, request: cpb.ListRoundsRequest, context: Any) -> cpb.ListRoundsResponse:
        await self._check(request.federation, identity.reader_of(context))
        records = await self._federation.read(round_rows.records, self._federation.name)
        return cpb.ListRoundsResponse(rounds=[wire.round_record(record) for record in records])

    async def Pause(self, request: cpb.PauseRequest, context: Any) -> cpb.PauseResponse:
        who = await self._steers(request.federation, context)
        await steering.pause(self._federation, who, plain(request.reason, 500))
        return cpb.PauseResponse()

    async def Resume(self, request: cpb.ResumeRequest, context: Any) -> cpb.ResumeResponse:
        await steering.resume(self._federation, await self._steers(request.federation, context))
        return cpb.ResumeResponse()

    async def Evict(self, request: cpb.EvictRequest, context: Any) -> cpb.EvictResponse:
        who = await self._steers(request.federation, context)
        reason = plain(request.reason, 500)
        warning = await steering.evict(self._federation, who, request.site, reason, request.allow_quorum)
        return cpb.EvictResponse(warning=warning)

    async def Rollback(self, request: cpb.RollbackRequest, context: Any) -> cpb.RollbackResponse:
        who = await self._steers(request.federation, context)
        reason = plain(request.reason, 500)
        done = await steering.rollback(self._federation, who, request.version, reason, request.round)
        return cpb.RollbackResponse(round=done.round, abandoned_round=done.abandoned or 0)

    async def _steers(self, federation: str, context: Any) -> str:
        return await self._check(federation, identity.coordinator_of(context))

    async def _check(self, federation: str, person: identity.Person) -> str:
        await self._federation.check_certificate(person.serial, person.expires_at)
        self._federation.check_name(federation)
        return person.name

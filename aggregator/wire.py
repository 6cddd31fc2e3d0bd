"""Protobuf messages to values and back. Messages stop here."""

from collections.abc import AsyncIterator, Iterator, Mapping

from med_duallora.v1 import coordinator_pb2 as cpb
from med_duallora.v1 import federation_pb2 as pb

from aggregator import instructions, rounds
from aggregator.downloads import Download
from aggregator.facts import sites
from aggregator.federation import Evaluation
from aggregator.joining import JoinClaim
from aggregator.store.rounds import RoundRecord
from aggregator.uploads import Announcement, Progress, Receipt
from shared import blocks, chunks, json_text, protocol
from shared.contract import Contract, RoundPolicy
from shared.errors import BadOffset, InvalidAdapter, InvalidUpdate
from shared.layout import Layout
from shared.names import plain

MAX_LAYOUT_JSON = 128 << 10
MAX_LAYOUT_VALUES = 8192
MAX_METRICS = 32
MAX_METRIC_NAME = 64
HEX = frozenset("0123456789abcdef")

_INSTRUCTIONS: dict[instructions.Instruction, "pb.Instruction.ValueType"] = {
    "NONE": pb.INSTRUCTION_UNSPECIFIED,
    "TRAIN": pb.INSTRUCTION_TRAIN,
    "WAIT": pb.INSTRUCTION_WAIT,
    "ABANDON": pb.INSTRUCTION_ABANDON,
    "PAUSED": pb.INSTRUCTION_PAUSED,
    "FINISHED": pb.INSTRUCTION_FINISHED,
    "EVICTED": pb.INSTRUCTION_EVICTED,
}
_FOLLOWING = {number: name for name, number in _INSTRUCTIONS.items()}
_HOLDS: dict[int, rounds.Hold] = {
    pb.HOLD_CONTRACT: "CONTRACT",
    pb.HOLD_WINDOW: "WINDOW",
    pb.HOLD_RELEASE: "RELEASE",
    pb.HOLD_KEPT: "KEPT",
    pb.HOLD_DISK: "DISK",
}


def most_bytes(contract: Contract) -> dict[str, int]:
    """Return how large a message may be, for the calls that bring tensors or a layout."""
    chunk = min(protocol.CHUNK_BYTES, blocks.most(contract.manifest.layout.size))
    return {
        "BeginUpload": MAX_LAYOUT_JSON + protocol.MESSAGE_BYTES,
        "UploadDelta": max(chunk, MAX_LAYOUT_JSON) + protocol.MESSAGE_BYTES,
        "Probe": protocol.MAX_PROBE_BYTES + protocol.MESSAGE_BYTES,
    }


def join_claim(request: pb.JoinRequest) -> JoinClaim:
    """Decode a JoinRequest."""
    return JoinClaim(
        federation=request.federation,
        protocol_version=request.protocol_version,
        agent_id=request.agent_id,
        software_version=plain(request.software_version, 64),
        base_model_sha256=request.base_model_sha256,
        training_patients=request.training_patients,
        codecs=tuple(request.codecs),
        recipes=tuple(request.recipes),
    )


def join_response(contract: Contract, site: str, patients: int, version: int) -> pb.JoinResponse:
    """Encode what a federation is about."""
    return pb.JoinResponse(
        federation=contract.federation,
        protocol_version=protocol.VERSION,
        site=site,
        adapter_manifest=contract.manifest.to_bytes(),
        adapter_digest=contract.adapter_digest,
        recipe=contract.recipe.name,
        recipe_parameters=contract.recipe.parameters(),
        round_policy=round_policy(contract.policy),
        training_patients=patients,
        contract_sha256=contract.sha256,
        version=version,
    )


def round_policy(policy: RoundPolicy) -> pb.RoundPolicy:
    """Encode a round policy."""
    return pb.RoundPolicy(
        rounds=policy.rounds,
        invited=policy.invited,
        quorum=policy.quorum,
        deadline_s=policy.deadline_s,
        grace_s=policy.grace_s,
    )


def site_report(request: pb.AwaitRoundRequest) -> instructions.SiteReport:
    """Decode what a site says it has; an instruction or a hold this release does not know counts as none."""
    return instructions.SiteReport(
        round=request.round,
        following=_FOLLOWING.get(request.following, "NONE"),
        version=request.version,
        progress=min(max(request.progress, 0.0), 1.0) if request.progress == request.progress else 0.0,
        hold=_HOLDS.get(request.hold, ""),
    )


def answer(value: instructions.Answer) -> pb.AwaitRoundResponse:
    """Encode an instruction. Who only waits is told no digest: it would be half of what a waiting site costs."""
    return pb.AwaitRoundResponse(
        instruction=_INSTRUCTIONS[value.instruction],
        round=value.round,
        version=value.version,
        digest=value.digest if value.instruction in ("TRAIN", "FINISHED", "ABANDON") else "",
        remaining_s=value.remaining_s,
        reason=value.reason,
    )


def not_modified() -> pb.FetchAdapterResponse:
    """Encode that the site has the version it asks for."""
    return pb.FetchAdapterResponse(not_modified=True)


def download_parts(download: Download, request: pb.FetchAdapterRequest) -> Iterator[pb.FetchAdapterResponse]:
    """Encode a download: what follows and then its bytes from the offset asked for."""
    adapter, size = download.adapter, len(download.payload)
    if request.offset > size:
        raise BadOffset(f"asked for byte {request.offset} of version {adapter.version}, which has {size}; begin at 0")
    info = pb.AdapterInfo(
        version=adapter.version,
        parent_digest=adapter.parent_digest,
        digest=adapter.digest,
        size=size,
        layout_digest=adapter.manifest.layout.digest,
    )
    if request.any_form:
        info.form = pb.Form.Value(f"FORM_{download.form}")
        info.base_digest = download.base_digest
        info.changes.extend(pb.Change(version=c.version, round=c.round, size=c.size) for c in download.changes)
        info.payload_digest = download.payload_digest
    yield pb.FetchAdapterResponse(info=info)
    for chunk in chunks.split(download.payload, request.offset):
        yield pb.FetchAdapterResponse(chunk=chunk)


def announcement(site: str, request: pb.BeginUploadRequest) -> Announcement:
    """Decode an update's announcement. Raises InvalidUpdate or InvalidAdapter if it cannot be one."""
    check_digest(request.digest)
    return Announcement(
        federation=request.federation,
        header=rounds.UpdateHeader(
            site=site,
            agent_id=request.agent_id,
            round=request.round,
            digest=request.digest,
            size=request.size,
            codec=request.codec,
            base_version=request.base_version,
            training_patients=request.training_patients,
            metrics=_metrics(request.metrics),
        ),
        layout_digest=request.layout_digest,
        layout=_layout(request.layout_json) if request.WhichOneof("layout") == "layout_json" else None,
    )


def _metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Bound names and count before they can reach a log or an error's text."""
    if len(metrics) > MAX_METRICS or any(len(name) > MAX_METRIC_NAME for name in metrics):
        raise InvalidUpdate(f"at most {MAX_METRICS} metrics with names of {MAX_METRIC_NAME} characters are taken")
    return dict(metrics)


def _layout(data: bytes) -> Layout:
    try:
        return Layout.from_jsonable(json_text.read(data, MAX_LAYOUT_JSON, MAX_LAYOUT_VALUES))
    except ValueError as error:
        raise InvalidAdapter(f"layout_json {error}") from error


def check_digest(digest: str) -> None:
    """Raise InvalidUpdate unless `digest` is a SHA-256 in lower-case hex."""
    if len(digest) != 64 or not HEX.issuperset(digest):
        raise InvalidUpdate(f"digest must be 64 lower-case hexadecimal digits, got {digest[:70]!r}")


async def upload_start(requests: AsyncIterator[pb.UploadDeltaRequest]) -> pb.UploadStart:
    """Return the first message of an upload. Raises InvalidUpdate if it is anything else."""
    first = await anext(requests, None)
    if first is None or first.WhichOneof("part") != "start":
        raise InvalidUpdate("an upload begins with 'start', which names the update announced by BeginUpload")
    if not first.start.HasField("announcement"):
        check_digest(first.start.digest)
    return first.start


async def upload_chunks(requests: AsyncIterator[pb.UploadDeltaRequest]) -> AsyncIterator[pb.Chunk]:
    """Yield the chunks that follow. Raises InvalidUpdate if something else comes between them."""
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidUpdate("after 'start' an upload holds chunks only")
        yield request.chunk


def receipt(value: Receipt) -> pb.Receipt:
    """Encode a receipt."""
    return pb.Receipt(round=value.round, digest=value.digest, accepted_at=value.accepted_at)


def progress(value: Progress) -> pb.BeginUploadResponse:
    """Encode where an upload goes on."""
    return pb.BeginUploadResponse(
        committed=value.committed, receipt=receipt(value.receipt) if value.receipt is not None else None
    )


def evaluation(request: pb.ReportEvaluationRequest) -> Evaluation:
    """Decode a site's metrics."""
    return Evaluation(
        agent_id=request.agent_id,
        round=request.round,
        version=request.version,
        cases=request.cases,
        metrics=_metrics(request.metrics),
        arm=_arm(request.arm),
    )


def _arm(number: int) -> str:
    """Decode a model of the comparison; one that this release does not know keeps its number, and is refused by that."""
    if number not in pb.Arm.values():
        return f"number {number}"
    return pb.Arm.Name(number).removeprefix("ARM_").lower() if number else ""  # type: ignore[arg-type]


def status(state: rounds.FederationState, now: float) -> cpb.GetStatusResponse:
    """Encode a federation at a glance."""
    return cpb.GetStatusResponse(
        federation=state.name,
        state=state.phase,
        round=state.round.number,
        version=state.version,
        digest=state.digest,
        round_policy=round_policy(state.policy),
        sites=[_site(state, site, now) for site in state.sites.values()],
    )


def _site(state: rounds.FederationState, site: rounds.SiteState, now: float) -> cpb.Site:
    return cpb.Site(
        name=site.name,
        state=site.phase,
        training_patients=site.training_patients or 0,
        last_seen=site.last_seen,
        last_round=site.last_round,
        progress=1.0 if site.name in state.round.accepted else site.progress,
        certificate=sites.certificate(state, site, now),
        hold=sites.HOLDS.get(site.hold, ""),
        standing=sites.standing(state, site, now),
    )


def round_record(record: RoundRecord) -> cpb.Round:
    """Encode one round."""
    state = record.state
    return cpb.Round(
        number=state.number,
        state=state.phase,
        base_version=state.base_version,
        version=record.version or 0,
        manifest=record.manifest,
        opened_at=state.opened_at,
        closed_at=state.closed_at or 0.0,
        diagnostics=record.diagnostics,
    )

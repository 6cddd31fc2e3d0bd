"""The agent's side of the protocol, one method for each call it makes of it.

Protobuf stops here: callers see frozen dataclasses. How a call is made, and made again, is in `calls`.
"""

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from med_duallora.v1 import federation_pb2 as pb

from shared import chunks, status
from shared.adapter import Adapter
from shared.contract import Contract, check_told
from shared.errors import ContractMismatch, InputError, InvalidAdapter, NotFound
from shared.protocol import CHUNK_BYTES, MAX_WAIT_S, MESSAGE_BYTES, VERSION
from shared.recipe import CODECS, INSTALLED
from shared.rpc import CallRecord
from shared.tls import TlsFiles
from site_agent import wire
from site_agent.calls import CALL_TIMEOUT_S, Calls, Durably, at_once
from site_agent.connection import Moves, Stub
from site_agent.consent import ConsentWithheld, ContractChanged, differences
from site_agent.download import Download
from site_agent.egress import Update
from site_agent.ledger import Leaving, Ledger

log = structlog.get_logger()
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Joined:
    """What Join told: the contract and who we are to the aggregator."""

    site: str
    contract: Contract
    training_patients: int
    version: int


@dataclass(frozen=True, slots=True)
class Task:
    """What to do now, by the aggregator. `instruction` is one of the names in the protocol, without prefix."""

    instruction: str
    round: int
    version: int
    digest: str
    remaining_s: float
    reason: str


class FederationClient:
    """One site's conversation with its aggregator. Each call is repeated until it succeeds, is refused, or nothing was heard for
    `give_up_after_s`.

    A transfer that is cut has been heard of if more of it is durable than before: then pauses begin short again. `may_send` is
    asked before so many bytes of tensors leave for a round, in every attempt anew, and raises if they may not. The other settings
    are those of `Calls`.

    Another connection may lead to another aggregator, or to one that was given another store. So before anything that says
    something of the site's data is said on it, Join is repeated, and its contract compared with the one that was joined.
    """

    def __init__(
        self,
        address: str,
        tls: TlsFiles | None,
        agent_id: str,
        ledger: Ledger,
        *,
        plain_site: str,
        give_up_after_s: float,
        call_timeout_s: float = CALL_TIMEOUT_S,
        durably: Durably = at_once,
        may_send: Callable[[int, int], None] = lambda round_number, size: None,
        advice: Callable[[], str] = lambda: "",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._agent_id, self._may_send = agent_id, may_send
        self._calls = Calls(
            address,
            tls,
            ledger,
            plain_site=plain_site,
            seed=agent_id,
            give_up_after_s=give_up_after_s,
            call_timeout_s=call_timeout_s,
            same_contract=self._compare,
            durably=durably,
            advice=advice,
            say=say,
        )
        self._claim = pb.JoinRequest()
        self._contract: Contract | None = None
        self._joined_on = ""
        """Name of the channel on which the contract was told last."""

    @property
    def site(self) -> str:
        """The site's name, from Join on as the aggregator read it from the certificate."""
        return self._calls.site

    @property
    def federation(self) -> str:
        """The federation that was joined; empty before."""
        return self._calls.federation

    async def close(self) -> None:
        """Close the connection."""
        await self._calls.connection.close()

    async def join(
        self, *, federation: str, base_model_sha256: str, training_patients: int, software_version: str
    ) -> Joined:
        """Agree on version and contract. Raises what the aggregator refused with, or ConsentWithheld for a contract that is none,
        or that this release cannot keep.
        """
        self._claim = pb.JoinRequest(
            federation=federation,
            protocol_version=VERSION,
            agent_id=self._agent_id,
            software_version=software_version,
            base_model_sha256=base_model_sha256,
            training_patients=training_patients,
            codecs=CODECS,
            recipes=INSTALLED,
        )
        joined = await self._calls.until_answered("Join", self._join)
        self._calls.federation, self._calls.site = joined.contract.federation, joined.site
        self._contract = joined.contract
        return joined

    async def keep_to_contract(self) -> None:
        """Return when the contract is known to be the one that was joined. Raises ContractChanged naming what differs."""
        await self._calls.until_answered("Join", self._compare)

    async def _compare(self, attempt: int) -> None:
        """Repeat Join if the next call goes over another channel than the last Join."""
        while self._contract is not None and self._calls.connection.name != self._joined_on:
            try:
                offered = (await self._join(attempt)).contract
            except ConsentWithheld as error:
                raise ContractChanged(str(error)) from error
            except grpc.aio.AioRpcError as error:
                if isinstance(raised := status.error_of(error), (ContractMismatch, NotFound)):
                    raise ContractChanged(str(raised)) from error
                raise
            if offered != self._contract:
                self._joined_on = ""
                raise ContractChanged("; ".join(differences(self._contract, offered)[:MOST_NAMED]))

    async def _join(self, attempt: int) -> Joined:
        """Make one Join with the claim of the first, and read the contract that it tells."""

        async def once(stub: Stub, options: dict[str, Any], record: CallRecord) -> tuple[str, pb.JoinResponse]:
            record.count_up(self._claim)
            reply: pb.JoinResponse = wire.read("Join", await stub.Join(self._claim, **options), wire.MAX_JOIN)
            record.count_down(reply)
            return record.connection, reply

        claim = self._claim
        said = {"base_model_sha256": claim.base_model_sha256, "training_patients": claim.training_patients}
        channel, reply = await self._calls.attempt(
            "Join", attempt, self._calls.call_timeout_s, once, Leaving(facts=said)
        )
        try:
            contract = wire.contract_of(reply)
        except InputError as error:
            raise ConsentWithheld(f"the aggregator's contract cannot be agreed to: {error}") from error
        if contract.sha256 != reply.contract_sha256:
            raise ConsentWithheld(
                f"the aggregator's contract hash {reply.contract_sha256[:12]} is not that of what it sent "
                f"({contract.sha256[:12]}): different releases; upgrade the older side"
            )
        self._joined_on = channel
        return Joined(reply.site, contract, reply.training_patients, reply.version)

    async def await_round(
        self,
        *,
        round_number: int,
        following: str,
        version: int,
        wait_s: float,
        progress: float = 0.0,
        hold: str | None = None,
        give_up_after_s: float = math.inf,
    ) -> Task:
        """Ask what to do; holds until something differs or `wait_s` is over.

        `hold` is one of the protocol's names without prefix: what of the site's own doing holds it up. `give_up_after_s` shortens
        the client's own for a question that grows old.
        """
        wait_s = min(wait_s, MAX_WAIT_S)
        request = pb.AwaitRoundRequest(
            federation=self.federation,
            agent_id=self._agent_id,
            round=round_number,
            following=pb.Instruction.Value(f"INSTRUCTION_{following}"),
            version=version,
            wait_s=wait_s,
            progress=progress,
            hold=pb.Hold.Value(f"HOLD_{hold or 'UNSPECIFIED'}"),
        )
        reply: pb.AwaitRoundResponse = await self._calls.unary(
            "AwaitRound", request, holds_s=wait_s, give_up_after_s=give_up_after_s
        )
        return Task(
            wire.instruction(reply.instruction),
            reply.round,
            reply.version,
            reply.digest,
            reply.remaining_s,
            reply.reason,
        )

    async def fetch(self, contract: Contract, task: Task, held: Adapter | None) -> Adapter:
        """Return version `task.version`, downloading what of it is not in `held`; a cut download goes on where it stopped.

        Raises InvalidAdapter if what arrived has not the digest that was announced, even when sent as a whole.
        """
        download = Download(contract, held)
        if await self._download(download, task):
            try:
                return download.adapter(task.version, task.digest)
            except InvalidAdapter as error:
                log.warning("download_not_reproduced", version=task.version, form=download.form, error=str(error))
        download = Download(
            contract, held, any_form=False
        )  # what came cannot be used or gone on with: all of it, plainly
        await self._download(download, task)
        return download.adapter(task.version, task.digest)

    async def _download(self, download: Download, task: Task) -> bool:
        """Take a download in. Returns False if another attempt finds other bytes than those that arrived before it."""

        async def once(stub: Stub, options: dict[str, Any], record: CallRecord) -> bool:
            request = pb.FetchAdapterRequest(
                federation=self.federation,
                version=task.version,
                if_none_match=download.held_digest,
                offset=download.received,
                round=task.round,
                any_form=download.any_form,
            )
            record.count_up(request)
            async for answer in stub.FetchAdapter(request, **options):
                part = wire.read("FetchAdapter", answer, min(CHUNK_BYTES, download.most_bytes) + MESSAGE_BYTES)
                record.count_down(part)
                if part.not_modified:
                    return True
                if part.HasField("info"):
                    if not download.begin(part.info):
                        return False
                else:
                    download.add(part.chunk)
            return True

        timeout_s = self._calls.transfer_s(download.most_bytes)
        return await self._calls.until_answered(
            "FetchAdapter",
            lambda attempt: self._calls.attempt("FetchAdapter", attempt, timeout_s, once),
            durable=lambda: download.received,
        )

    async def upload(self, update: Update, *, fresh: bool = False) -> None:
        """Send an update; returns once the aggregator's receipt says that it counts.

        One that is `fresh`, of which nothing was ever sent, and is one chunk, is announced with its bytes in one call. Else, and
        if that fails, the aggregator is asked first what it has of it. A transfer that does not move for `call_timeout_s` begins
        again at the durable offset. After an attempt that made nothing durable the chunks are smaller: a slow uplink may be why.
        """
        at_once = fresh and len(update.payload) <= CHUNK_BYTES
        chunk_bytes, durable = CHUNK_BYTES, 0 if at_once else -1

        async def send(attempt: int, offset: int, start: pb.UploadStart) -> None:
            self._may_send(update.facts.round, len(update.payload) - offset)

            async def once(stub: Stub, options: dict[str, Any], record: CallRecord) -> None:
                moves = Moves(self._calls.call_timeout_s)
                stream = self._stream(update, start, offset, chunk_bytes, record, moves)
                answer = await moves.reply(stub.UploadDelta(stream, **options))
                record.count_down(wire.read("UploadDelta", answer, MESSAGE_BYTES))

            leaving = Leaving(
                round=update.facts.round,
                digest=update.digest,
                payload_bytes=len(update.payload) - offset,
                tensors=tuple(spec.name for spec in update.layout.tensors),
                facts=_announced(update) if start.HasField("announcement") else {},
            )
            await self._calls.attempt(
                "UploadDelta", attempt, self._calls.transfer_s(len(update.payload)), once, leaving
            )

        async def once(attempt: int) -> None:
            nonlocal chunk_bytes, durable
            if at_once and attempt == 0:
                await send(attempt, 0, pb.UploadStart(announcement=self._begin_request(update)))
                return
            leaving = Leaving(round=update.facts.round, digest=update.digest, facts=_announced(update))
            begun: pb.BeginUploadResponse = await self._calls.unary("BeginUpload", self._begin_request(update), leaving)
            if begun.HasField("receipt"):
                return
            if begun.committed > len(update.payload):
                raise ConsentWithheld(
                    f"the aggregator says that it holds {begun.committed} bytes of an update that has {len(update.payload)}"
                )
            if begun.committed == durable:
                chunk_bytes = min(chunk_bytes, self._calls.patient_bytes())
            durable = begun.committed
            start = pb.UploadStart(
                federation=self.federation, agent_id=self._agent_id, round=update.facts.round, digest=update.digest
            )
            await send(attempt, durable, start)

        await self._calls.until_answered("UploadDelta", once, durable=lambda: durable)

    async def report_evaluation(
        self, round_number: int, version: int, cases: int, metrics: dict[str, float], arm: str = ""
    ) -> None:
        """Report aggregate metrics of a version on so many cases; with `arm`, of one model of the comparison.

        Raises InputError for what the recipe lets nobody tell.
        """
        if self._contract is not None:
            check_told(self._contract.recipe, metrics, always=True, arm=arm)
        told = {"arm": arm} if arm else {}
        await self._calls.unary(
            "ReportEvaluation",
            pb.ReportEvaluationRequest(
                federation=self.federation,
                agent_id=self._agent_id,
                round=round_number,
                version=version,
                cases=cases,
                metrics=metrics,
                arm=pb.Arm.Value(f"ARM_{arm.upper() or 'UNSPECIFIED'}"),
            ),
            Leaving(round=round_number, facts={"version": version, "cases": cases, "metrics": metrics, **told}),
        )

    def _begin_request(self, update: Update) -> pb.BeginUploadRequest:
        if self._contract is not None:
            check_told(self._contract.recipe, update.facts.metrics)
        return pb.BeginUploadRequest(
            federation=self.federation,
            agent_id=self._agent_id,
            round=update.facts.round,
            digest=update.digest,
            size=len(update.payload),
            codec=update.facts.codec,
            base_version=update.facts.base_version,
            training_patients=update.facts.training_patients,
            metrics=update.facts.metrics,
            **update.layout_field(),
        )

    async def _stream(
        self, update: Update, start: pb.UploadStart, offset: int, chunk_bytes: int, record: CallRecord, moves: Moves
    ) -> AsyncIterator[pb.UploadDeltaRequest]:
        first = pb.UploadDeltaRequest(start=start)
        record.count_up(first)
        record.federation, record.round = self.federation, update.facts.round
        yield first
        for chunk in chunks.split(update.payload, offset, chunk_bytes):
            moves.on()
            request = pb.UploadDeltaRequest(chunk=chunk)
            record.count_up(request)
            yield request
        moves.on()


def _announced(update: Update) -> dict[str, Any]:
    """Return what an update's header says of the site's data."""
    facts = update.facts
    return {"codec": facts.codec, "training_patients": facts.training_patients, "metrics": dict(facts.metrics)}

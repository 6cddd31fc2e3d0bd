"""The agent's side of the protocol: every call with a deadline, retries with jitter, one log event and its lines of the egress
ledger per attempt.

Protobuf stops here: callers see frozen dataclasses. A retry repeats the same idempotency key, so a lost reply costs nothing. What
says something about the site's data is in the ledger, durably, before it is handed to the network.
"""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import structlog
from med_duallora.v1 import federation_pb2 as pb

from shared import chunks, json_text, status
from shared.adapter import MAX_HEADER, Adapter, AdapterManifest
from shared.contract import Contract, RoundPolicy, check_told
from shared.errors import (
    AggregatorUnreachable,
    ContractMismatch,
    IncompatibleProtocol,
    InputError,
    InvalidAdapter,
    NotFound,
)
from shared.protocol import ATTEMPT_KEY, CALL_ID_KEY, CHUNK_BYTES, MAX_WAIT_S, MESSAGE_BYTES, SITE_KEY, VERSION
from shared.recipe import CODECS, INSTALLED, make
from shared.rpc import CallRecord, new_id
from shared.tls import TlsFiles
from site_agent.connection import Connection, Moves, Stub, is_transient
from site_agent.consent import ConsentWithheld, ContractChanged, differences
from site_agent.download import Download
from site_agent.egress import Update
from site_agent.ledger import Leaving, Ledger

log = structlog.get_logger()

T = TypeVar("T")
CALL_TIMEOUT_S = 30.0
MIN_RATE_BYTES_PER_S = 16_000
"""Slowest uplink a transfer's deadline allows for."""
FIRST_RETRIES_S = 600.0
SMALLEST_CHUNK_BYTES = 1 << 16
MAX_JOIN = MAX_HEADER + MESSAGE_BYTES
MOST_NAMED = 5
MAX_PARAMETERS = 16 << 10
"""Bytes of a recipe's parameters as text: several times what all there are take."""


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


def retry_delay_s(attempt: int, elapsed_s: float, rng: random.Random) -> float:
    """Return the wait after failure number `attempt` (from 0) of an outage that has lasted `elapsed_s`: doubling with full
    jitter, at most 5 s in the first ten minutes, then at most 60 s."""
    cap = 5.0 if elapsed_s < FIRST_RETRIES_S else 60.0
    return rng.uniform(0.1, min(cap, 0.2 * 2.0 ** min(attempt, 12)))


Durably = Callable[[Callable[[], int]], Awaitable[int]]


async def at_once(write: Callable[[], int]) -> int:
    """Write once; a disk that is full is the caller's error."""
    return write()


class FederationClient:
    """One site's calls. Each is repeated until it succeeds, is refused, or nothing was heard for `give_up_after_s`.

    A transfer that is cut has been heard of if more of it is durable than before: then pauses begin short again.
    `call_timeout_s` is how long the aggregator may be silent where it should answer or take bytes. `durably` writes a line of the
    ledger, however long its disk is full: until it is written nothing is sent. `may_send` is asked before so many bytes of tensors
    leave for a round, in every attempt anew, and raises if they may not. `advice`: what to do when nobody answers, for the log.

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
    ) -> None:
        self._address, self._agent_id = address, agent_id
        self._ledger, self._durably, self._may_send, self._advice = ledger, durably, may_send, advice
        self._connection = Connection(address, tls, call_timeout_s)
        self._identity = ((SITE_KEY, plain_site),) if tls is None else ()
        self._give_up_after_s, self._call_timeout_s = give_up_after_s, call_timeout_s
        self._rng = random.Random(agent_id)
        self.site, self.federation = plain_site, ""
        self._claim = pb.JoinRequest()
        self._contract: Contract | None = None
        self._joined_on = ""
        """Name of the channel on which the contract was told last."""

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

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
        joined = await self._retrying("Join", self._join)
        self.federation, self.site, self._contract = joined.contract.federation, joined.site, joined.contract
        return joined

    async def keep_to_contract(self) -> None:
        """Return when the contract is known to be the one that was joined. Raises ContractChanged naming what differs."""
        await self._retrying("Join", self._compare)

    async def _compare(self, attempt: int) -> None:
        """Repeat Join if the next call goes over another channel than the last Join."""
        while self._contract is not None and self._connection.name != self._joined_on:
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
            reply: pb.JoinResponse = _read("Join", await stub.Join(self._claim, **options), MAX_JOIN)
            record.count_down(reply)
            return record.connection, reply

        claim = self._claim
        said = {"base_model_sha256": claim.base_model_sha256, "training_patients": claim.training_patients}
        channel, reply = await self._logged("Join", attempt, self._call_timeout_s, once, Leaving(facts=said))
        try:
            contract = contract_of(reply)
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
        give_up_after_s: float = math.inf,
    ) -> Task:
        """Ask what to do; holds until something differs or `wait_s` is over.

        `give_up_after_s` shortens the client's own for a question that grows old.
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
        )
        reply: pb.AwaitRoundResponse = await self._unary(
            "AwaitRound", request, holds_s=wait_s, give_up_after_s=give_up_after_s
        )
        return Task(
            _instruction(reply.instruction), reply.round, reply.version, reply.digest, reply.remaining_s, reply.reason
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
                part = _read("FetchAdapter", answer, min(CHUNK_BYTES, download.most_bytes) + MESSAGE_BYTES)
                record.count_down(part)
                if part.not_modified:
                    return True
                if part.HasField("info"):
                    if not download.begin(part.info):
                        return False
                else:
                    download.add(part.chunk)
            return True

        timeout_s = self._transfer_s(download.most_bytes)
        return await self._retrying(
            "FetchAdapter",
            lambda attempt: self._logged("FetchAdapter", attempt, timeout_s, once),
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
                moves = Moves(self._call_timeout_s)
                stream = self._stream(update, start, offset, chunk_bytes, record, moves)
                answer = await moves.reply(stub.UploadDelta(stream, **options))
                record.count_down(_read("UploadDelta", answer, MESSAGE_BYTES))

            leaving = Leaving(
                round=update.facts.round,
                digest=update.digest,
                payload_bytes=len(update.payload) - offset,
                tensors=tuple(spec.name for spec in update.layout.tensors),
                facts=_announced(update) if start.HasField("announcement") else {},
            )
            await self._logged("UploadDelta", attempt, self._transfer_s(len(update.payload)), once, leaving)

        async def once(attempt: int) -> None:
            nonlocal chunk_bytes, durable
            if at_once and attempt == 0:
                await send(attempt, 0, pb.UploadStart(announcement=self._begin_request(update)))
                return
            leaving = Leaving(round=update.facts.round, digest=update.digest, facts=_announced(update))
            begun: pb.BeginUploadResponse = await self._unary("BeginUpload", self._begin_request(update), leaving)
            if begun.HasField("receipt"):
                return
            if begun.committed > len(update.payload):
                raise ConsentWithheld(
                    f"the aggregator says that it holds {begun.committed} bytes of an update that has {len(update.payload)}"
                )
            if begun.committed == durable:
                chunk_bytes = min(chunk_bytes, self._patient_bytes())
            durable = begun.committed
            start = pb.UploadStart(
                federation=self.federation, agent_id=self._agent_id, round=update.facts.round, digest=update.digest
            )
            await send(attempt, durable, start)

        await self._retrying("UploadDelta", once, durable=lambda: durable)

    async def report_evaluation(self, round_number: int, version: int, cases: int, metrics: dict[str, float]) -> None:
        """Report aggregate metrics of a version on the validation cases. Raises InputError under differential privacy."""
        if self._contract is not None:
            check_told(self._contract.recipe, metrics, always=True)
        await self._unary(
            "ReportEvaluation",
            pb.ReportEvaluationRequest(
                federation=self.federation,
                agent_id=self._agent_id,
                round=round_number,
                version=version,
                cases=cases,
                metrics=metrics,
            ),
            Leaving(round=round_number, facts={"version": version, "cases": cases, "metrics": metrics}),
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

    async def _unary(
        self,
        method: str,
        request: Any,
        leaving: Leaving | None = None,
        holds_s: float = 0.0,
        give_up_after_s: float = math.inf,
    ) -> Any:
        """Make a call that the aggregator may hold for so long before it answers. `leaving`: what it says of the site's data."""

        async def once(stub: Stub, options: dict[str, Any], record: CallRecord) -> Any:
            record.count_up(request)
            answer = await getattr(stub, method)(request, **options)
            reply = _read(method, answer, MESSAGE_BYTES)
            record.count_down(reply)
            return reply

        timeout_s = self._call_timeout_s + holds_s
        return await self._retrying(
            method, lambda attempt: self._logged(method, attempt, timeout_s, once, leaving), give_up_after_s
        )

    async def _retrying(
        self,
        method: str,
        once: Callable[[int], Awaitable[T]],
        give_up_after_s: float = math.inf,
        durable: Callable[[], int] = lambda: 0,
    ) -> T:
        """Try until it succeeds, an error says that trying again is useless, or the outage lasts too long.

        An attempt that found or left more bytes `durable` than the one before was no part of the outage.
        """
        give_up_after_s = min(give_up_after_s, self._give_up_after_s)
        heard_at, failures, held = time.monotonic(), 0, durable()
        attempt = 0
        while True:
            try:
                return await once(attempt)
            except grpc.aio.AioRpcError as error:
                if not is_transient(error):
                    raise (status.error_of(error) or _unexpected(method, error)) from error
                if durable() > held:
                    heard_at, failures, held = time.monotonic(), 0, durable()
                await self._wait(method, error, failures, time.monotonic() - heard_at, give_up_after_s)
            attempt += 1
            failures += 1

    async def _logged(
        self,
        method: str,
        attempt: int,
        timeout_s: float,
        call: Callable[[Stub, dict[str, Any], CallRecord], Awaitable[T]],
        leaving: Leaving | None = None,
    ) -> T:
        """Make one attempt with an id of its own, and write its event however it ends; of one that says something of the site's
        data, the contract is compared and what is `leaving` is in the ledger before."""
        line, bound = 0, leaving is not None and method != "Join"
        if bound:
            await self._compare(attempt)
        if leaving is not None:
            line = await self._durably(lambda: self._ledger.leaving(method, attempt, leaving))
        record = CallRecord("site", method, new_id(), attempt, self.site, self.federation)
        metadata = (*self._identity, (CALL_ID_KEY, record.call_id), (ATTEMPT_KEY, str(attempt)))
        code, said = "OK", ""
        try:
            if bound:  # the connection may have gone while the ledger's disk was full; no await from here to its use
                await self._compare(attempt)
            async with self._connection.use() as dialled:
                record.connection = dialled.name
                return await call(dialled.stub, {"timeout": timeout_s, "metadata": metadata}, record)
        except grpc.aio.AioRpcError as error:
            code, said = error.code().name, error.details() or ""
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception as error:
            code, said = "REFUSED_HERE", f"{type(error).__name__}: {error}"
            raise
        finally:
            record.finish(code, said)
            self._enter(line, record, code)

    def _enter(self, line: int, record: CallRecord, code: str) -> None:
        """Complete a call's lines of the ledger. Where they cannot be written, its first line stands for what may have left."""
        _, size, payload = record.up
        try:
            if line:
                self._ledger.left(line, record.method, code, size, payload)
            else:
                self._ledger.control(record.method, size)
        except OSError as error:
            log.warning("ledger_not_completed", rpc=record.method, line=line, error=error.strerror)

    async def _wait(
        self, method: str, error: grpc.aio.AioRpcError, failures: int, elapsed_s: float, give_up_after_s: float
    ) -> None:
        left = give_up_after_s - elapsed_s
        refused, advice = status.error_of(error) is not None, self._advice()
        if left <= 0:
            raise AggregatorUnreachable(
                f"no answer from {self._address} for {elapsed_s:.0f} s ({error.code().name}: {error.details()}); "
                f"check the address and the network{advice and f' ({advice})'}, then start the agent again: nothing is lost"
            ) from error
        delay = min(retry_delay_s(failures, elapsed_s, self._rng), left)
        log.warning(
            "call_to_repeat" if refused else "aggregator_unreachable",
            address=self._address,
            rpc=method,
            code=error.code().name,
            error=error.details(),
            retry_in_s=round(delay, 2),
            gives_up_in_s=round(left),
            **({"advice": advice} if advice and not refused else {}),
        )
        await asyncio.sleep(delay)

    def _transfer_s(self, size: int) -> float:
        return self._call_timeout_s + size / MIN_RATE_BYTES_PER_S

    def _patient_bytes(self) -> int:
        """Return what the slowest uplink carries in half the time a transfer may stand still."""
        return max(SMALLEST_CHUNK_BYTES, int(MIN_RATE_BYTES_PER_S * self._call_timeout_s / 2))


def _announced(update: Update) -> dict[str, Any]:
    """Return what an update's header says of the site's data."""
    facts = update.facts
    return {"codec": facts.codec, "training_patients": facts.training_patients, "metrics": dict(facts.metrics)}


def contract_of(reply: pb.JoinResponse) -> Contract:
    """Return the contract that an aggregator's answer describes. Raises InputError for one that is none."""
    policy = reply.round_policy
    return Contract(
        federation=reply.federation,
        adapter_digest=reply.adapter_digest,
        manifest=AdapterManifest.from_bytes(reply.adapter_manifest),
        recipe=make(reply.recipe, _parameters(reply.recipe_parameters)),
        policy=RoundPolicy(
            rounds=policy.rounds,
            invited=policy.invited,
            quorum=policy.quorum,
            deadline_s=policy.deadline_s,
            grace_s=policy.grace_s,
        ),
    )


def _parameters(data: bytes) -> dict[str, Any]:
    try:
        value = json_text.read(data, MAX_PARAMETERS)
    except ValueError as error:
        raise InputError(f"the text of the recipe's parameters {error}; upgrade the older side") from error
    if not isinstance(value, dict):
        raise InputError(f"the recipe's parameters are a {type(value).__name__}, expected names and numbers")
    return value


def _read(method: str, answer: Any, most_bytes: int) -> Any:
    """Return an answer. Raises IncompatibleProtocol if it is larger than any that is meant, or no message: gRPC hands out None."""
    if answer is None:
        raise IncompatibleProtocol(f"the aggregator's answer to {method} cannot be read; upgrade the older side")
    if answer.ByteSize() > most_bytes:
        raise IncompatibleProtocol(
            f"the aggregator's answer to {method} has {answer.ByteSize()} bytes, allowed are {most_bytes}; upgrade the older side"
        )
    return answer


def _instruction(number: int) -> str:
    """Return an instruction's name without its prefix. Raises IncompatibleProtocol for one of a later release."""
    try:
        return pb.Instruction.Name(number).removeprefix("INSTRUCTION_")  # type: ignore[arg-type]
    except ValueError:
        raise IncompatibleProtocol(
            f"the aggregator gave instruction {number}, which this release does not know; upgrade the agent"
        ) from None


def _unexpected(method: str, error: grpc.aio.AioRpcError) -> Exception:
    return AggregatorUnreachable(f"{method} failed with {error.code().name}: {error.details()}")

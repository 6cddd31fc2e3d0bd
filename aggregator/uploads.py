"""Updates on their way in: announced, streamed, checked, accepted. What arrived is durable before anything else happens."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from med_duallora.v1 import federation_pb2 as pb

from aggregator import payload, rounds
from aggregator.federation import Federation, check_patients
from aggregator.identity import Caller
from aggregator.slots import Slots
from aggregator.store import agents, updates
from aggregator.store.updates import UpdateKey
from shared import chunks
from shared.contract import check_metrics
from shared.errors import (
    BadOffset,
    ContractMismatch,
    InvalidAdapter,
    InvalidUpdate,
    UpdateTooLarge,
)
from shared.layout import Layout
from shared.protocol import CHUNK_BYTES

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that an update counts; `accepted_at` in seconds since 1970."""

    round: int
    digest: str
    accepted_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """An update's header and the layout its sender derived: by digest, or spelled out."""

    federation: str
    header: rounds.UpdateHeader
    layout_digest: str = ""
    layout: Layout | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an announced update is: durable bytes, or the receipt if it is accepted."""

    committed: int
    receipt: Receipt | None = None


class Uploads:
    """Takes the updates of one federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._slots = Slots(federation.limits.concurrent_uploads)

    async def begin(self, caller: Caller, announcement: Announcement) -> Progress:
        """Check everything that can be checked before bytes are taken, and say where to go on.

        Raises NotEnrolled, IdentityInUse, ContractMismatch, InvalidAdapter, InvalidUpdate, UpdateTooLarge, StaleRound or
        ConflictingUpdate.
        """
        federation, header = self._federation, announcement.header
        federation.check_name(announcement.federation)
        site = await federation.member(caller)
        if site.phase != "joined":
            raise ContractMismatch(
                f"site '{site.name}' has not joined; Join first, which checks what both sides agreed to"
            )
        check_patients(site, header.training_patients)
        check_metrics(dict(header.metrics))
        self._check_header(announcement)
        key = self._key(caller, header.round, header.digest)
        committed = await federation.record(
            _announce, federation.name, header, federation.clock(), federation.limits.identity_s
        )
        if committed is None:
            return Progress(header.size, await self._receipt(key))
        log.info(
            "update_announced",
            site=caller.site,
            round=header.round,
            digest=header.digest[:12],
            bytes=header.size,
            committed=committed,
            **{name: round(value, 6) for name, value in header.metrics.items()},
        )
        return Progress(committed)

    def _check_header(self, announcement: Announcement) -> None:
        contract, header = self._federation.contract, announcement.header
        if header.codec != contract.recipe.codec:
            raise ContractMismatch(f"codec '{header.codec[:20]}', the recipe says '{contract.recipe.codec}'")
        expected = contract.recipe.upload_layout(contract.manifest, header.round, contract.policy.invited)
        if announcement.layout is not None:
            expected.check_equal(announcement.layout)
        elif announcement.layout_digest != expected.digest:
            raise InvalidAdapter(
                f"layout {announcement.layout_digest[:12] or 'not given'} is not the round's {expected.digest[:12]}; "
                "spell it out in layout_json to learn which tensor differs"
            )
        if header.size > expected.size:
            raise UpdateTooLarge(
                f"an update of {header.size} bytes was announced, round {header.round} takes {expected.size}"
            )
        if header.size != expected.size:
            raise InvalidUpdate(
                f"an update of {header.size} bytes was announced, round {header.round} takes {expected.size}"
            )

    async def receive(
        self,
        caller: Caller,
        federation_name: str,
        agent_id: str,
        key_round: int,
        digest: str,
        stream: AsyncIterator[pb.Chunk],
    ) -> Receipt:
        """Take an announced update's bytes and return the receipt.

        What arrived before a cut stays. Raises BadOffset if the stream does not continue the durable bytes or is silent too
        long, InvalidUpdate (and drops the bytes) if digest or tensors are wrong, StaleRound if the round closed meanwhile.
        """
        federation = self._federation
        federation.check_name(federation_name)
        await federation.member(caller)
        key = self._key(caller, key_round, digest)
        found = await federation.read(_find, key, agent_id, federation.clock(), federation.limits.identity_s)
        if found is None:
            raise BadOffset(f"update {digest[:12]} of round {key_round} was not announced here; begin again")
        header, accepted_at, announced_at = found
        if accepted_at is not None:
            return Receipt(key_round, digest, accepted_at)
        async with self._slots.one(caller.site), _deadline(federation.limits.upload_s):
            at = await self._take(key, agent_id, header.size, announced_at, stream)
        log.info("update_accepted", site=caller.site, round=key_round, digest=digest[:12], bytes=header.size)
        return Receipt(key_round, digest, at)

    async def _take(
        self, key: UpdateKey, agent_id: str, size: int, announced_at: float | None, stream: AsyncIterator[pb.Chunk]
    ) -> float:
        """Return since when the update is accepted."""
        federation = self._federation
        end = await federation.read(updates.committed, key)
        async for chunk in stream:
            chunks.check(chunk, end, size)
            if len(chunk.data) > CHUNK_BYTES:
                raise UpdateTooLarge(f"a chunk of {len(chunk.data)} bytes, allowed are {CHUNK_BYTES}")
            if len(chunk.data) == size:
                await self._check(key, size, chunk.data)
                return await federation.record(updates.stage_and_accept, key, chunk.data, federation.clock())
            await federation.write(
                _stage, key, end, chunk.data, agent_id, federation.clock(), federation.limits.identity_s
            )
            end += len(chunk.data)
        if end < size:
            raise BadOffset(f"the stream ended at byte {end} of {size}; begin again to go on from there")
        await self._check(key, size, None)
        return await federation.record(updates.accept, key, federation.clock(), announced_at)

    async def _check(self, key: UpdateKey, size: int, whole: bytes | None) -> None:
        """Raise InvalidUpdate, and drop what is staged, unless digest and tensors are right."""
        try:
            await asyncio.to_thread(self._check_bytes, key, size, whole)
        except InvalidUpdate as error:
            log.warning("update_refused", site=key.site, round=key.round, digest=key.digest[:12], error=str(error))
            await self._federation.record(updates.drop, key)
            raise

    def _check_bytes(self, key: UpdateKey, size: int, whole: bytes | None) -> None:
        hashed, contract = hashlib.sha256(), self._federation.contract
        layout = contract.recipe.upload_layout(contract.manifest, key.round, contract.policy.invited)
        for piece in self._pieces(key, whole):
            hashed.update(piece)
        if hashed.hexdigest() != key.digest:
            raise InvalidUpdate(
                f"the {size} bytes received have digest {hashed.hexdigest()[:12]}, announced was {key.digest[:12]}; "
                "the received bytes were dropped, send the update again"
            )
        payload.check_delta(layout, self._pieces(key, whole))

    def _pieces(self, key: UpdateKey, whole: bytes | None) -> Iterable[bytes]:
        return updates.pieces(self._federation.store, key) if whole is None else [whole]

    async def _receipt(self, key: UpdateKey) -> Receipt:
        found = await self._federation.read(updates.find, key)
        if found is None or found[1] is None:
            raise BadOffset(f"update {key.digest[:12]} is not accepted; begin again")
        return Receipt(key.round, key.digest, found[1])

    def _key(self, caller: Caller, round_number: int, digest: str) -> UpdateKey:
        return UpdateKey(self._federation.name, round_number, caller.site, digest)


def _announce(
    connection: sa.Connection, federation: str, header: rounds.UpdateHeader, now: float, identity_s: float
) -> int | None:
    agents.heard(connection, federation, header.site, header.agent_id, now, identity_s)
    return updates.announce(connection, federation, header, now)


def _find(
    connection: sa.Connection, key: UpdateKey, agent_id: str, now: float, identity_s: float
) -> tuple[rounds.UpdateHeader, float | None, float | None] | None:
    """Return an update's header, when it was accepted, and when it was announced."""
    agents.check(connection, key.federation, key.site, agent_id, now, identity_s)
    found = updates.find(connection, key)
    return None if found is None else (*found, updates.announced(connection, key))


def _stage(
    connection: sa.Connection, key: UpdateKey, offset: int, data: bytes, agent_id: str, now: float, identity_s: float
) -> None:
    agents.heard(connection, key.federation, key.site, agent_id, now, identity_s)  # a long upload is a sign of life
    updates.stage(connection, key, offset, data)


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    """Raise BadOffset when the body takes too long, so that the site begins again where its bytes ended."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise BadOffset(f"the upload took longer than {seconds:.0f} s; what arrived is kept, begin again") from None

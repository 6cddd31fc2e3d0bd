"""Updates on their way in: announced, streamed, checked, accepted. What arrived is durable before anything else happens."""

import asyncio
import hashlib
import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import sqlalchemy as sa
import structlog
from med_duallora.v1 import federation_pb2 as pb

from aggregator import gate, payload, rounds
from aggregator.federation import Federation
from aggregator.identity import Caller
from aggregator.joining import check_patients
from aggregator.slots import Slots
from aggregator.store import agents, audit, federations, updates
from aggregator.store.updates import UpdateKey
from shared import chunks
from shared.contract import check_told
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

AT_ONCE_S = 0.5
"""An update that follows its announcement within this is written down once, with its bytes."""


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


@dataclass(frozen=True, slots=True)
class Counted:
    """An update that counts: since when, how large it is, and the revision of the federation that was found."""

    at: float
    norms: Mapping[str, float]
    revision: int


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
        await self._check_announcement(caller, announcement)
        return await self._announce(caller, announcement.header, self._federation.clock())

    async def _check_announcement(self, caller: Caller, announcement: Announcement) -> None:
        federation, header = self._federation, announcement.header
        federation.check_name(announcement.federation)
        site = await federation.member(caller)
        if site.phase != "joined":
            raise ContractMismatch(
                f"site '{site.name}' has not joined; Join first, which checks what both sides agreed to"
            )
        check_patients(site, header.training_patients)
        check_told(federation.contract.recipe, header.metrics)
        self._check_header(announcement)

    async def _announce(self, caller: Caller, header: rounds.UpdateHeader, began: float) -> Progress:
        """Write down that an upload has begun."""
        federation = self._federation
        key = self._key(caller, header.round, header.digest)
        committed = await federation.record(_announce, federation.name, header, began, federation.limits.identity_s)
        federation.heartbeats.written(caller, header.agent_id)
        if committed is None:
            return Progress(header.size, await self._receipt(key))
        log.info("update_announced", committed=committed, **_facts(header))
        return Progress(committed)

    async def take(self, caller: Caller, announcement: Announcement, stream: AsyncIterator[pb.Chunk]) -> Receipt:
        """Take an update that is announced in the same call and is one chunk; return the receipt.

        It is written and made to count in one commit. One that is slow to come is announced as `begin` does, so that the round
        knows of it before its deadline. Raises what `begin` and `receive` raise.
        """
        federation, header, began = self._federation, announcement.header, self._federation.clock()
        await self._check_announcement(caller, announcement)
        if header.size > CHUNK_BYTES:
            raise InvalidUpdate(
                f"an update of {header.size} bytes is more than the {CHUNK_BYTES} of a chunk: announce it with BeginUpload"
            )
        now_open = (await federation.state()).round
        if header.round != now_open.number or header.site in now_open.accepted:
            progress = await self._announce(caller, header, began)
            if progress.receipt is not None:
                return progress.receipt
        else:
            rounds.check_open(now_open, header)
        async with self._slots.one(caller.site), _deadline(federation.limits.upload_s):
            data = await self._only_chunk(caller, header, began, now_open.deadline_at, stream)
            await federation.member(caller)  # its certificate may have been revoked, or the site evicted, meanwhile
            at = await self._count(header, [data], _accept_whole, federation.name, header, data, began)
        federation.heartbeats.written(caller, header.agent_id)
        log.info("update_accepted", **_facts(header))
        return Receipt(header.round, header.digest, at)

    async def _only_chunk(
        self,
        caller: Caller,
        header: rounds.UpdateHeader,
        began: float,
        deadline_at: float | None,
        stream: AsyncIterator[pb.Chunk],
    ) -> bytes:
        """Return all bytes of an update. If they do not come at once, write down that they are on their way."""
        left_s = math.inf if deadline_at is None else deadline_at - self._federation.clock()
        coming = asyncio.ensure_future(anext(stream, None))
        try:
            await asyncio.wait({coming}, timeout=max(0.0, min(AT_ONCE_S, left_s / 2)))
            if not coming.done():
                await self._announce(caller, header, began)
            chunk = await coming
        finally:
            coming.cancel()
        if chunk is None:
            raise BadOffset(f"the stream ended at byte 0 of {header.size}; begin again")
        chunks.check(chunk, 0, header.size)
        if len(chunk.data) != header.size:
            raise InvalidUpdate(
                f"{len(chunk.data)} bytes of {header.size} came in one chunk: an update announced in the same call is one chunk"
            )
        return chunk.data

    async def _count(
        self, header: rounds.UpdateHeader, pieces: Iterable[bytes], work: Callable[..., Counted], *args: Any
    ) -> float:
        """Check an update's bytes, let `work` make it count, and return since when it does. Drops what is staged of wrong bytes.

        `work` gets the update's norms, `args`, the time, and for how long an agent keeps its site.
        """
        federation = self._federation
        before: Mapping[str, np.ndarray] = {}
        if federation.contract.recipe.norm_gate:
            before = (await federation.adapter(header.base_version)).tensors
        try:
            counted = await federation.record_checked(
                lambda: self._check_bytes(header, pieces, before),
                lambda counted: federation.advance(counted.revision, lambda state: _with(state, header, counted)),
                work,
                *args,
                federation.clock(),
                federation.limits.identity_s,
            )
        except InvalidUpdate as error:
            key = UpdateKey(federation.name, header.round, header.site, header.digest)
            log.warning("update_refused", site=key.site, round=key.round, digest=key.digest[:12], error=str(error))
            await federation.record(updates.drop, key)
            raise
        return counted.at

    def _check_header(self, announcement: Announcement) -> None:
        recipe, header = self._federation.contract.recipe, announcement.header
        if header.codec != recipe.codec:
            raise ContractMismatch(f"codec '{header.codec[:20]}', the recipe says '{recipe.codec}'")
        expected = self._federation.upload_layout(header.round)
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
        if not expected.fits(header.size):
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
        header, accepted_at, announced_at, committed = found
        if accepted_at is not None:
            return Receipt(key_round, digest, accepted_at)
        async with self._slots.one(caller.site), _deadline(federation.limits.upload_s):
            at = await self._rest(caller, key, agent_id, header, announced_at, committed, stream)
        federation.heartbeats.written(caller, agent_id)
        log.info("update_accepted", **_facts(header))
        return Receipt(key_round, digest, at)

    async def _rest(
        self,
        caller: Caller,
        key: UpdateKey,
        agent_id: str,
        header: rounds.UpdateHeader,
        announced_at: float | None,
        end: int,
        stream: AsyncIterator[pb.Chunk],
    ) -> float:
        """Take what is not durable yet, and return since when the update is accepted: with the commit of its last chunk."""
        federation, size, last = self._federation, header.size, b""
        async for chunk in stream:
            chunks.check(chunk, end, size)
            if len(chunk.data) > CHUNK_BYTES:
                raise UpdateTooLarge(f"a chunk of {len(chunk.data)} bytes, allowed are {CHUNK_BYTES}")
            if end + len(chunk.data) == size:
                last = chunk.data
                break
            await federation.write(
                _stage, key, end, chunk.data, agent_id, federation.clock(), federation.limits.identity_s
            )
            end += len(chunk.data)
        if end + len(last) < size:
            raise BadOffset(f"the stream ended at byte {end} of {size}; begin again to go on from there")
        await federation.member(caller)  # as above
        durable = updates.pieces(federation.store, key) if end else ()
        pieces = itertools.chain(durable, [last] if last else ())
        return await self._count(header, pieces, _accept_rest, key, header, agent_id, end, last, announced_at)

    def _check_bytes(
        self, header: rounds.UpdateHeader, pieces: Iterable[bytes], before: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Return how large an update is, where the recipe has a gate. Raises InvalidUpdate unless digest and tensors are right.

        before: the version it was trained from.
        """
        recipe, layout = self._federation.contract.recipe, self._federation.upload_layout(header.round)
        hashed, wrong, norms = hashlib.sha256(), None, dict[str, float]()

        def hashing() -> Iterator[bytes]:
            for piece in pieces:
                hashed.update(piece)
                yield piece

        seen = hashing()
        try:
            if recipe.norm_gate:
                norms = gate.norms(recipe.rule, before, payload.checked(layout, seen))
            else:
                payload.check_delta(layout, seen)
        except InvalidUpdate as error:
            wrong = error
        for _ in seen:  # what the check has not read
            continue
        if hashed.hexdigest() != header.digest:
            raise InvalidUpdate(
                f"the {header.size} bytes received have digest {hashed.hexdigest()[:12]}, announced was "
                f"{header.digest[:12]}; the received bytes were dropped, send the update again"
            )
        if wrong is not None:
            raise wrong
        return norms

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


def _accept_whole(
    connection: sa.Connection,
    norms: Mapping[str, float],
    federation: str,
    header: rounds.UpdateHeader,
    data: bytes,
    began: float,
    now: float,
    identity_s: float,
) -> Counted:
    agents.heard(connection, federation, header.site, header.agent_id, now, identity_s)
    at = updates.accept_whole(connection, federation, header, data, began, now, norms)
    _tell_accepted(connection, federation, header, at, now)
    return Counted(at, norms, federations.revision(connection, federation))


def _accept_rest(
    connection: sa.Connection,
    norms: Mapping[str, float],
    key: UpdateKey,
    header: rounds.UpdateHeader,
    agent_id: str,
    end: int,
    last: bytes,
    announced_at: float | None,
    now: float,
    identity_s: float,
) -> Counted:
    agents.heard(connection, key.federation, key.site, agent_id, now, identity_s)
    if last:
        updates.stage(connection, key, end, last)
    at = updates.accept(connection, key, now, announced_at, norms)
    _tell_accepted(connection, key.federation, header, at, now)
    return Counted(at, norms, federations.revision(connection, key.federation))


def _tell_accepted(
    connection: sa.Connection, federation: str, header: rounds.UpdateHeader, at: float, now: float
) -> None:
    """Write the audit line of an update that counts since this transaction; one that did before has its line."""
    if at == now:
        audit.append(
            connection,
            federation,
            now,
            "update_accepted",
            site=header.site,
            round=header.round,
            digest=header.digest,
            bytes=header.size,
            codec=header.codec,
            patients=header.training_patients,
        )


def _with(state: rounds.FederationState, header: rounds.UpdateHeader, counted: Counted) -> rounds.FederationState:
    """Return the state as `_accept_whole` and `_accept_rest` leave it."""
    if header.round != state.round.number:
        return state  # it was in already: no other round takes an update
    site = replace(state.sites[header.site], last_seen=counted.at, last_round=header.round)
    return replace(
        state,
        round=rounds.admit(state.round, header, counted.at, counted.norms),
        sites={**state.sites, header.site: site},
    )


def _facts(header: rounds.UpdateHeader) -> dict[str, str | int | float]:
    """Return what the log says of an update."""
    return {
        "site": header.site,
        "round": header.round,
        "digest": header.digest[:12],
        "bytes": header.size,
        **{name: round(value, 6) for name, value in header.metrics.items()},
    }


def _find(
    connection: sa.Connection, key: UpdateKey, agent_id: str, now: float, identity_s: float
) -> tuple[rounds.UpdateHeader, float | None, float | None, int] | None:
    """Return an update's header, when it was accepted, when it was announced, and how many bytes of it are durable."""
    agents.check(connection, key.federation, key.site, agent_id, now, identity_s)
    found = updates.find(connection, key)
    return None if found is None else (*found, updates.announced(connection, key), updates.committed(connection, key))


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

"""Rows of updates and their bytes: announced, staged chunk by chunk, accepted, and from then on immutable."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import sqlalchemy as sa

from aggregator import rounds
from aggregator.store import rounds as round_rows
from aggregator.store import schema
from aggregator.store.engine import Store
from shared.canonical import canonical_json
from shared.errors import BadOffset, InputError

TABLE = schema.updates
NO_NORMS: Mapping[str, float] = MappingProxyType({})
CHUNKS = schema.chunks


@dataclass(frozen=True, slots=True)
class UpdateKey:
    """What an update is known by."""

    federation: str
    round: int
    site: str
    digest: str

    @property
    def bound(self) -> dict[str, str | int]:
        """The values of the statements here."""
        return {
            "of_federation": self.federation,
            "of_round": self.round,
            "of_site": self.site,
            "of_digest": self.digest,
        }


@dataclass(frozen=True, slots=True)
class AcceptedSize:
    """What an accepted update took, in bytes, and what was told with it."""

    round: int
    site: str
    bytes: int
    metrics: Mapping[str, float]


def _is(table: sa.Table, *names: str) -> tuple[sa.ColumnElement[bool], ...]:
    return tuple(
        table.c[name] == sa.bindparam(f"of_{name}") for name in names or ("federation", "round", "site", "digest")
    )


# Statements are made once: making one takes several times as long as running it.
_FIND = sa.select(TABLE).where(*_is(TABLE))
_DIGESTS = sa.select(TABLE.c.digest).where(*_is(TABLE, "federation", "round", "site"))
_INSERT = TABLE.insert()
_ACCEPT = TABLE.update().where(*_is(TABLE)).values(accepted_at=sa.bindparam("now"), norms=sa.bindparam("sizes"))
_DELETE = TABLE.delete().where(*_is(TABLE))
_ANNOUNCED = sa.select(TABLE.c.announced_at).where(*_is(TABLE))
_COMMITTED = sa.select(sa.func.coalesce(sa.func.sum(CHUNKS.c.size), 0)).where(*_is(CHUNKS))
_INSERT_CHUNK = CHUNKS.insert()
_DELETE_CHUNKS = CHUNKS.delete().where(*_is(CHUNKS))
_CHUNK_AT = (
    sa.select(CHUNKS.c.data, TABLE.c.size.label("whole"))
    .join(TABLE, sa.and_(*(CHUNKS.c[name] == TABLE.c[name] for name in ("federation", "round", "site", "digest"))))
    .where(*_is(CHUNKS), CHUNKS.c.offset == sa.bindparam("offset"))
)


def announce(connection: sa.Connection, federation: str, update: rounds.UpdateHeader, now: float) -> int | None:
    """Note an update whose bytes follow. Returns the bytes already durable, or None if it is accepted already.

    An unfinished upload of the same site under another digest is dropped. Raises as `rounds.admit` does.
    """
    state = round_rows.state_for(connection, federation, update.round, update.site)
    if rounds.is_held(state, update.site, update.digest):
        return None
    rounds.check_open(state, update)
    key = UpdateKey(federation, update.round, update.site, update.digest)
    if find(connection, key) is not None:
        return committed(connection, key)
    _drop_unfinished(connection, key)
    _insert(connection, key, update, now, None)
    return 0


def _insert(
    connection: sa.Connection,
    key: UpdateKey,
    update: rounds.UpdateHeader,
    announced_at: float,
    accepted_at: float | None,
    norms: Mapping[str, float] = NO_NORMS,
) -> None:
    connection.execute(
        _INSERT,
        {
            "federation": key.federation,
            "round": key.round,
            "site": key.site,
            "digest": key.digest,
            "agent_id": update.agent_id,
            "size": update.size,
            "codec": update.codec,
            "base_version": update.base_version,
            "training_patients": update.training_patients,
            "metrics": canonical_json(dict(update.metrics)).decode(),
            "announced_at": announced_at,
            "accepted_at": accepted_at,
            "norms": canonical_json(dict(norms)).decode(),
        },
    )


def _drop_unfinished(connection: sa.Connection, key: UpdateKey) -> None:
    """Forget what the update's site has announced in its round and not finished."""
    for digest in connection.execute(_DIGESTS, key.bound).scalars().all():
        drop(connection, replace(key, digest=digest))


def find(connection: sa.Connection, key: UpdateKey) -> tuple[rounds.UpdateHeader, float | None] | None:
    """Return an update's header and when it was accepted (None: not yet); None if it was never announced."""
    row = connection.execute(_FIND, key.bound).mappings().first()
    if row is None:
        return None
    header = rounds.UpdateHeader(
        site=key.site,
        agent_id=row["agent_id"],
        round=key.round,
        digest=key.digest,
        size=row["size"],
        codec=row["codec"],
        base_version=row["base_version"],
        training_patients=row["training_patients"],
    )
    return header, row["accepted_at"]


def announced(connection: sa.Connection, key: UpdateKey) -> float | None:
    """Return when an update was announced, which tells it from one that was dropped and announced again; None if it is not."""
    at: float | None = connection.execute(_ANNOUNCED, key.bound).scalar()
    return at


def committed(connection: sa.Connection, key: UpdateKey) -> int:
    """Return how many bytes of an update are durable."""
    return int(connection.execute(_COMMITTED, key.bound).scalar_one())


def stage(connection: sa.Connection, key: UpdateKey, offset: int, data: bytes) -> None:
    """Write the next bytes of an announced update.

    Raises BadOffset if they do not continue where the durable bytes end (another stream of the same upload was faster, or
    the upload was dropped), StaleRound if the round was closed meanwhile.
    """
    found = find(connection, key)
    if found is None or found[1] is not None:
        raise BadOffset(
            f"no unfinished upload {key.digest[:12]} of site '{key.site}' in round {key.round}; begin again"
        )
    rounds.check_open(round_rows.state_for(connection, key.federation, key.round, key.site), found[0])
    end = committed(connection, key)
    if offset != end:
        raise BadOffset(f"chunk starts at byte {offset}, durable are {end}; begin again")
    _insert_chunk(connection, key, offset, data)


def _insert_chunk(connection: sa.Connection, key: UpdateKey, offset: int, data: bytes) -> None:
    connection.execute(
        _INSERT_CHUNK,
        {
            "federation": key.federation,
            "round": key.round,
            "site": key.site,
            "digest": key.digest,
            "offset": offset,
            "size": len(data),
            "data": data,
        },
    )


def accept(
    connection: sa.Connection,
    key: UpdateKey,
    now: float,
    announced_at: float | None = None,
    norms: Mapping[str, float] = NO_NORMS,
) -> float:
    """Make an update count and return since when it does. Its size, digest and tensors must have been checked.

    `announced_at`: when what was checked had been announced. Repeating it returns the first time. Raises as `rounds.admit`
    does, and BadOffset if bytes are missing or are those of a later announcement.
    """
    round_rows.lock(connection, key.federation, key.round)
    state = round_rows.state_for(connection, key.federation, key.round, key.site)
    held = state.accepted.get(key.site)
    if held is not None and rounds.is_held(state, key.site, key.digest):
        return held.at
    found = find(connection, key)
    if found is None or committed(connection, key) != found[0].size:
        raise BadOffset(f"upload {key.digest[:12]} of site '{key.site}' is not complete; begin again")
    if announced_at is not None and announced(connection, key) != announced_at:
        raise BadOffset(f"upload {key.digest[:12]} of site '{key.site}' was announced anew; begin again")
    rounds.admit(state, found[0], now)
    connection.execute(_ACCEPT, {**key.bound, "now": now, "sizes": canonical_json(dict(norms)).decode()})
    return now


def accept_whole(
    connection: sa.Connection,
    federation: str,
    update: rounds.UpdateHeader,
    data: bytes,
    began: float,
    now: float,
    norms: Mapping[str, float] = NO_NORMS,
) -> float:
    """Write an update that nobody has announced and make it count, in one commit; return since when it does.

    `began`: when its upload did. The bytes must have been checked. Repeating it returns the first time. What its site had begun
    to upload in this round is dropped. Raises as `rounds.admit` does.
    """
    round_rows.lock(connection, federation, update.round)
    state = round_rows.state_for(connection, federation, update.round, update.site)
    held = state.accepted.get(update.site)
    if held is not None and rounds.is_held(state, update.site, update.digest):
        return held.at
    rounds.admit(state, update, now)
    key = UpdateKey(federation, update.round, update.site, update.digest)
    if update.site in state.announced:
        _drop_unfinished(connection, key)
    _insert(connection, key, update, began, now, norms)
    _insert_chunk(connection, key, 0, data)
    return now


def drop(connection: sa.Connection, key: UpdateKey) -> None:
    """Forget an unfinished upload. An accepted one is left alone."""
    found = find(connection, key)
    if found is None or found[1] is not None:
        return
    connection.execute(_DELETE_CHUNKS, key.bound)
    connection.execute(_DELETE, key.bound)


def accepted(connection: sa.Connection, federation: str, since: int = 0) -> list[AcceptedSize]:
    """Return the size of every accepted update from round `since` on, by round and site."""
    mine = (TABLE.c.federation == federation, TABLE.c.accepted_at.is_not(None), TABLE.c.round >= since)
    columns = (TABLE.c.round, TABLE.c.site, TABLE.c.size, TABLE.c.metrics)
    rows = connection.execute(sa.select(*columns).where(*mine).order_by(TABLE.c.round, TABLE.c.site))
    return [AcceptedSize(row.round, row.site, row.size, json.loads(row.metrics)) for row in rows]


def bytes_by_site(connection: sa.Connection, federation: str) -> dict[str, int]:
    """Return how many bytes the accepted updates of all rounds have together, by site."""
    mine = (TABLE.c.federation == federation, TABLE.c.accepted_at.is_not(None))
    rows = connection.execute(sa.select(TABLE.c.site, sa.func.sum(TABLE.c.size)).where(*mine).group_by(TABLE.c.site))
    return {site: int(size) for site, size in rows}


def purge(connection: sa.Connection, federation: str, keep_rounds: int, now: float) -> list[int]:
    """Drop the bytes of updates in rounds that ended before the last `keep_rounds` that did. Returns those rounds' numbers.

    Digests, manifests and adapters stay: the chain from manifest to manifest can still be verified, the results cannot be
    computed again. At least one round is kept, so that a result can still be compared where two replicas computed it.
    """
    if keep_rounds < 1:
        raise InputError(f"updates of at least 1 round must be kept, got {keep_rounds}")
    table = schema.rounds
    ended = (table.c.federation == federation, table.c.phase.in_(("closed", "abandoned")))
    query = sa.select(table.c.number).where(*ended).order_by(table.c.number.desc()).offset(keep_rounds).limit(1)
    newest = connection.execute(query).scalar()
    if newest is None:
        return []
    old = (*ended, table.c.number <= newest, table.c.purged_at.is_(None))
    numbers = list(connection.execute(sa.select(table.c.number).where(*old).order_by(table.c.number)).scalars())
    if numbers:
        connection.execute(CHUNKS.delete().where(CHUNKS.c.federation == federation, CHUNKS.c.round <= newest))
        connection.execute(table.update().where(*old).values(purged_at=now))
    return numbers


def pieces(store: Store, key: UpdateKey) -> Iterator[bytes]:
    """Yield an update's durable bytes in order, one short transaction per chunk."""
    offset, size = 0, 1
    while offset < size:
        data, size = store.read(_chunk_at, key, offset)
        if not data:
            return
        yield data
        offset += len(data)


def checked_pieces(store: Store, key: UpdateKey) -> Iterator[bytes]:
    """Yield an accepted update's bytes as `pieces` does. Raises InputError after the last one if they are not the update's."""
    hashed = hashlib.sha256()
    for data in pieces(store, key):
        hashed.update(data)
        yield data
    if hashed.hexdigest() != key.digest:
        raise InputError(
            f"the store is damaged: the bytes of round {key.round}'s update of site '{key.site}' have SHA-256 "
            f"{hashed.hexdigest()[:12]}, accepted was {key.digest[:12]}; restore a copy of the store, or give the round up: "
            f"aggregator rollback VERSION --round {key.round}"
        )


def _chunk_at(connection: sa.Connection, key: UpdateKey, offset: int) -> tuple[bytes, int]:
    """Return the chunk that begins there, empty if there is none, and the size of the whole update."""
    row = connection.execute(_CHUNK_AT, {**key.bound, "offset": offset}).first()
    return (b"", 0) if row is None else (bytes(row.data), row.whole)

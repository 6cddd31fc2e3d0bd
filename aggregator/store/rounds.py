"""Rows of rounds: opening, inviting, closing by compare-and-swap, rolling back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from aggregator import rounds as core
from aggregator.rounds import AcceptedUpdate, RoundState
from aggregator.store import schema
from shared.canonical import canonical_json
from shared.errors import NotFound

TABLE = schema.rounds
UNFINISHED = ("open", "closing")

# Statements are made once: making one takes several times as long as running it.
_THIS = (TABLE.c.federation == sa.bindparam("federation"), TABLE.c.number == sa.bindparam("number"))
_ROUND = sa.select(TABLE).where(*_THIS)
_LOCK = sa.select(TABLE.c.number).where(*_THIS).with_for_update()
_LAST = sa.select(sa.func.max(TABLE.c.number)).where(TABLE.c.federation == sa.bindparam("federation"))
_UPDATES = (
    sa.select(
        schema.updates.c.site,
        schema.updates.c.digest,
        schema.updates.c.training_patients,
        schema.updates.c.announced_at,
        schema.updates.c.accepted_at,
        schema.updates.c.norms,
    )
    .where(schema.updates.c.federation == sa.bindparam("federation"), schema.updates.c.round == sa.bindparam("number"))
    .order_by(schema.updates.c.site)
)
_UPDATES_OF_SITE = _UPDATES.where(schema.updates.c.site == sa.bindparam("site"))
_LAST_ACCEPTED = (
    sa.select(schema.updates.c.site, sa.func.max(schema.updates.c.round))
    .where(schema.updates.c.federation == sa.bindparam("federation"), schema.updates.c.accepted_at.is_not(None))
    .group_by(schema.updates.c.site)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A round with what was written down about it."""

    state: RoundState
    manifest: bytes
    input_digest: str
    version: int | None
    diagnostics: dict[str, float]
    purged_at: float | None
    """Since when the bytes of its updates are gone, by the retention setting."""


def open_round(
    connection: sa.Connection,
    federation: str,
    number: int,
    base_version: int,
    invited: Sequence[str],
    now: float,
    deadline_at: float | None,
) -> None:
    """Write a new open round."""
    connection.execute(
        TABLE.insert().values(
            federation=federation,
            number=number,
            phase="open",
            base_version=base_version,
            invited=canonical_json(list(invited)).decode(),
            opened_at=now,
            deadline_at=deadline_at,
        )
    )


def last(connection: sa.Connection, federation: str) -> RoundState:
    """Return the last round made: the open or closing one unless the federation is finished."""
    number = connection.execute(_LAST, {"federation": federation}).scalar()
    return state(connection, federation, int(number or 0))


def state(connection: sa.Connection, federation: str, number: int) -> RoundState:
    """Return one round. Raises NotFound."""
    return record(connection, federation, number).state


def record(connection: sa.Connection, federation: str, number: int) -> RoundRecord:
    """Return one round with its manifest and diagnostics. Raises NotFound."""
    return _record(connection, _row(connection, federation, number))


def state_for(connection: sa.Connection, federation: str, number: int, site: str) -> RoundState:
    """Return one round with the updates of one site alone: all that is asked of it when that site's update comes in. Raises
    NotFound."""
    return _record(connection, _row(connection, federation, number), site).state


def _row(connection: sa.Connection, federation: str, number: int) -> Mapping[Any, Any]:
    row = connection.execute(_ROUND, {"federation": federation, "number": number}).mappings().first()
    if row is None:
        raise NotFound(f"federation '{federation}' has no round {number} yet")
    return row


def records(connection: sa.Connection, federation: str, since: int = 0) -> list[RoundRecord]:
    """Return every round from number `since` on, oldest first."""
    mine = (TABLE.c.federation == federation, TABLE.c.number >= since)
    rows = connection.execute(sa.select(TABLE).where(*mine).order_by(TABLE.c.number))
    return [_record(connection, row) for row in rows.mappings().all()]


def _record(connection: sa.Connection, row: Mapping[Any, Any], site: str = "") -> RoundRecord:
    """Return a round with the updates of all sites, or of one."""
    accepted, announced = {}, {}
    key = {"federation": row["federation"], "number": row["number"]}
    found = connection.execute(_UPDATES_OF_SITE, {**key, "site": site}) if site else connection.execute(_UPDATES, key)
    for update in found:
        if update.accepted_at is None:
            announced[update.site] = update.announced_at
        else:
            norms = json.loads(update.norms)
            accepted[update.site] = AcceptedUpdate(update.digest, update.training_patients, update.accepted_at, norms)
    return RoundRecord(
        state=RoundState(
            number=row["number"],
            base_version=row["base_version"],
            invited=tuple(json.loads(row["invited"])),
            phase=row["phase"],
            opened_at=row["opened_at"],
            deadline_at=row["deadline_at"],
            closed_at=row["closed_at"],
            accepted=accepted,
            announced=announced,
        ),
        manifest=(row["manifest"] or "").encode(),
        input_digest=row["input_digest"] or "",
        version=row["version"],
        diagnostics=json.loads(row["diagnostics"] or "{}"),
        purged_at=row["purged_at"],
    )


def count_closed(connection: sa.Connection, federation: str) -> int:
    """Return how many rounds are closed: abandoned ones have a number too, and do not count."""
    query = sa.select(sa.func.count()).where(TABLE.c.federation == federation, TABLE.c.phase == "closed")
    return int(connection.execute(query).scalar_one())


def last_accepted(connection: sa.Connection, federation: str) -> dict[str, int]:
    """Return the last round each site had an update accepted in, by site."""
    rows = connection.execute(_LAST_ACCEPTED, {"federation": federation})
    return {row[0]: int(row[1]) for row in rows}


def start_clock(connection: sa.Connection, federation: str, deadline_at: float) -> None:
    """Give the open round its deadline if it has none."""
    connection.execute(
        TABLE.update()
        .where(TABLE.c.federation == federation, TABLE.c.phase == "open", TABLE.c.deadline_at.is_(None))
        .values(deadline_at=deadline_at)
    )


def give_back(connection: sa.Connection, federation: str, since: float, now: float) -> None:
    """Move the open round's deadline by as much of the time from `since` to `now` as the round was there for."""
    began = sa.case((TABLE.c.opened_at > since, TABLE.c.opened_at), else_=since)
    connection.execute(
        TABLE.update()
        .where(TABLE.c.federation == federation, TABLE.c.phase == "open", began < now)
        .values(deadline_at=TABLE.c.deadline_at + (now - began))
    )


def invite(
    connection: sa.Connection, federation: str, number: int, invited: Sequence[str], deadline_at: float | None
) -> None:
    """Write down whom the open round asks now, and until when."""
    connection.execute(
        TABLE.update()
        .where(*_is(federation, number), TABLE.c.phase == "open")
        .values(invited=canonical_json(list(invited)).decode(), deadline_at=deadline_at)
    )


def lock(connection: sa.Connection, federation: str, number: int) -> None:
    """Keep every other transaction from changing this round until this one ends (SQLite: a write is alone anyway)."""
    connection.execute(_LOCK, {"federation": federation, "number": number})


def begin_closing(connection: sa.Connection, federation: str, number: int, manifest: bytes, input_digest: str) -> bool:
    """Fix what the round is made of. Returns False, changing nothing, if the round is no longer open."""
    changed = connection.execute(
        TABLE.update()
        .where(*_is(federation, number), TABLE.c.phase == "open")
        .values(phase="closing", manifest=manifest.decode(), input_digest=input_digest)
    )
    return bool(changed.rowcount)


def close(
    connection: sa.Connection,
    federation: str,
    number: int,
    manifest: bytes,
    version: int,
    diagnostics: Mapping[str, float],
    now: float,
) -> bool:
    """Write the result down and drop uploads that were never finished.

    Returns False, changing nothing, if somebody else already has: the first writer wins.
    """
    changed = connection.execute(
        TABLE.update()
        .where(*_is(federation, number), TABLE.c.phase == "closing")
        .values(
            phase="closed",
            manifest=manifest.decode(),
            version=version,
            diagnostics=canonical_json(dict(diagnostics)).decode(),
            closed_at=now,
        )
    )
    if changed.rowcount:
        _drop_unfinished(connection, federation, number)
    return bool(changed.rowcount)


def go_on(connection: sa.Connection, federation: str, version: int, rounds: int, deadline_s: float, now: float) -> None:
    """Make `version` the current one and open the next round for the active sites it draws, or finish after the last."""
    federations = schema.federations
    values: dict[str, Any] = {"version": version}
    closed = count_closed(connection, federation)
    if closed >= rounds:
        values["phase"] = "finished"
    connection.execute(federations.update().where(federations.c.name == federation).values(**values))
    if closed < rounds:
        policy, seed = connection.execute(
            sa.select(federations.c.policy, federations.c.sampling_seed).where(federations.c.name == federation)
        ).one()
        number = last(connection, federation).number + 1
        invited = core.invite(_active_sites(connection, federation), json.loads(policy)["invited"], seed, number)
        open_round(connection, federation, number, version, invited, now, now + deadline_s)


def abandon(connection: sa.Connection, federation: str, number: int, now: float) -> None:
    """End a round without a result; its updates stay on record and count for nothing, unfinished ones are dropped."""
    changed = connection.execute(
        TABLE.update()
        .where(*_is(federation, number), TABLE.c.phase.in_(UNFINISHED))
        .values(phase="abandoned", closed_at=now, manifest=None, input_digest=None)
    )
    if changed.rowcount:
        _drop_unfinished(connection, federation, number)


def _drop_unfinished(connection: sa.Connection, federation: str, number: int) -> None:
    """Forget every upload of a round that was not accepted: nobody can finish it any more."""
    updates, chunks = schema.updates, schema.chunks
    accepted = sa.exists().where(
        updates.c.federation == chunks.c.federation,
        updates.c.round == chunks.c.round,
        updates.c.site == chunks.c.site,
        updates.c.digest == chunks.c.digest,
        updates.c.accepted_at.is_not(None),
    )
    connection.execute(
        chunks.delete().where(chunks.c.federation == federation, chunks.c.round == number, sa.not_(accepted))
    )
    connection.execute(
        updates.delete().where(
            updates.c.federation == federation, updates.c.round == number, updates.c.accepted_at.is_(None)
        )
    )


def _active_sites(connection: sa.Connection, federation: str) -> list[str]:
    sites = schema.sites
    query = sa.select(sites.c.name).where(sites.c.federation == federation, sites.c.phase != "evicted")
    return list(connection.execute(query).scalars())


def _is(federation: str, number: int) -> tuple[sa.ColumnElement[bool], ...]:
    return TABLE.c.federation == federation, TABLE.c.number == number

"""Rows of agents: who used a site's certificate, and when. The one heard from last is the site's agent."""

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
import structlog

from aggregator.store import schema
from shared.errors import IdentityInUse, InputError

log = structlog.get_logger()

TABLE = schema.agents
MAX_AGENT_ID = 64

# Statements are made once: making one takes several times as long as running it.
_LAST = (
    sa.select(TABLE.c.agent_id, TABLE.c.last_seen)
    .where(TABLE.c.federation == sa.bindparam("federation"), TABLE.c.site == sa.bindparam("site"))
    .order_by(TABLE.c.last_seen.desc(), TABLE.c.agent_id.desc())
    .limit(1)
)
_HEARD = TABLE.update().where(
    *(TABLE.c[name] == sa.bindparam(f"of_{name}") for name in ("federation", "site", "agent_id"))
)
_INSERT = TABLE.insert()
_SOFTWARE = (
    sa.select(TABLE.c.site, TABLE.c.software_version, TABLE.c.protocol_version)
    .where(TABLE.c.federation == sa.bindparam("federation"))
    .order_by(TABLE.c.last_seen, TABLE.c.agent_id)
)


@dataclass(frozen=True, slots=True)
class Software:
    """The versions that an agent says it has, of the software and of the protocol."""

    software: str
    protocol: str


def check(connection: sa.Connection, federation: str, site: str, agent_id: str, now: float, quiet_s: float) -> None:
    """Raise IdentityInUse if another agent used the site's certificate less than `quiet_s` ago, saying when."""
    if not 0 < len(agent_id) <= MAX_AGENT_ID or not agent_id.isprintable():
        raise InputError(f"agent_id must have 1 to {MAX_AGENT_ID} printable characters, got {agent_id[:80]!r}")
    last = connection.execute(_LAST, {"federation": federation, "site": site}).first()
    if last is None or last.agent_id == agent_id:
        return
    ago = max(now - last.last_seen, 0.0)  # the clock of the replica that wrote it may be ahead
    if ago < quiet_s:
        raise IdentityInUse(
            f"another agent uses the certificate of site '{site}': agent {last.agent_id[:8]} was heard from {ago:.0f} s "
            f"ago, this one is {agent_id[:8]}. Stop one of the two; this one may take over {quiet_s:.0f} s after the "
            "other's last call"
        )
    log.warning("agent_replaced", site=site, before=last.agent_id[:8], agent_id=agent_id[:8], silent_s=round(ago, 1))


def last(connection: sa.Connection, federation: str, site: str) -> str:
    """Return the id of the agent that used a site's certificate last; empty if none has."""
    found = connection.execute(_LAST, {"federation": federation, "site": site}).first()
    return "" if found is None else str(found.agent_id)


def software(connection: sa.Connection, federation: str) -> dict[str, Software]:
    """Return what the agent that each site was heard from last runs on, by site."""
    rows = connection.execute(_SOFTWARE, {"federation": federation})  # oldest first: the last one stands
    return {row.site: Software(row.software_version, row.protocol_version) for row in rows}


def heard(
    connection: sa.Connection,
    federation: str,
    site: str,
    agent_id: str,
    now: float,
    quiet_s: float,
    values: Mapping[str, str | float | bool] | None = None,
) -> None:
    """Check the agent and note that it called; `values` are further columns of its row. Raises IdentityInUse."""
    check(connection, federation, site, agent_id, now, quiet_s)
    key = {"of_federation": federation, "of_site": site, "of_agent_id": agent_id}
    if connection.execute(_HEARD, {**key, "last_seen": now, **(values or {})}).rowcount:
        return
    row = {
        "authenticated": True,
        "software_version": "",
        "protocol_version": "",
        "progress": 0.0,
        "version": 0,
        "expires_at": 0.0,
        "serial": "",
        "hold": "",
        "federation": federation,
        "site": site,
        "agent_id": agent_id,
        "first_seen": now,
        "last_seen": now,
        **(values or {}),
    }
    connection.execute(_INSERT, row)

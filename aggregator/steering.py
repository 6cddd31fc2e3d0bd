"""What a coordinator does to a federation: pause, resume, evict, roll back."""

import sqlalchemy as sa
import structlog

from aggregator import rounds
from aggregator.federation import Federation
from aggregator.store import federations
from aggregator.store import rounds as round_rows
from shared.errors import InputError

log = structlog.get_logger()


async def pause(federation: Federation, who: str, reason: str) -> None:
    """Open no further round and let no running one close; updates under way are still taken."""
    await federation.decide(federations.set_phase, federation.name, "paused", reason, federation.clock())
    log.warning("federation_paused", by=who, reason=reason)


async def resume(federation: Federation, who: str) -> None:
    """Go on. The open round's deadline moves by the length of the pause."""
    await federation.decide(federations.set_phase, federation.name, "running", "", federation.clock())
    log.warning("federation_resumed", by=who)


async def evict(federation: Federation, who: str, site: str, reason: str) -> None:
    """Take a site out for good. Raises InputError if the others could then never meet their quorum."""
    left = await federation.decide(_evict, federation.name, site, reason)
    log.warning("site_evicted", site=site, by=who, reason=reason)
    if left <= 2:
        log.warning("few_sites", sites_count=left, consequence="each of two sites can subtract itself from the mean")


def _evict(connection: sa.Connection, federation: str, site: str, reason: str) -> int:
    """Return how many sites are left. One transaction: two evictions at once must not leave too few."""
    rounds.check_eviction(federations.state(connection, federation), site)
    federations.evict(connection, federation, site, reason)
    return sum(s.phase != "evicted" for s in federations.state(connection, federation).sites.values())


async def rollback(federation: Federation, who: str, version: int, reason: str) -> None:
    """Make an earlier version the current one. The open round is abandoned and the next one starts from that version."""
    await federation.adapter(version)  # raises NotFound, naming the versions there are
    policy, now = federation.contract.policy, federation.clock()
    abandoned = await federation.decide(_rollback, federation.name, version, policy.rounds, policy.deadline_s, now)
    log.warning("federation_rolled_back", version=version, by=who, reason=reason, abandoned_round=abandoned)


def _rollback(
    connection: sa.Connection, federation: str, version: int, rounds_count: int, deadline_s: float, now: float
) -> int | None:
    last = round_rows.last(connection, federation)
    if last.phase == "closing":
        raise InputError(f"round {last.number} is being closed this moment; try again in a few seconds")
    abandoned = last.number if last.phase == "open" else None
    if abandoned is not None:
        round_rows.abandon(connection, federation, abandoned, now)
    round_rows.go_on(connection, federation, version, rounds_count, deadline_s, now)
    return abandoned

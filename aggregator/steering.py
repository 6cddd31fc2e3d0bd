"""What a coordinator does to a federation: pause, resume, evict, roll back."""

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
import structlog

from aggregator import rounds
from aggregator.federation import Federation
from aggregator.rounds import RoundState
from aggregator.store import audit, federations
from aggregator.store import rounds as round_rows
from shared.errors import InputError

log = structlog.get_logger()


async def pause(federation: Federation, who: str, reason: str) -> None:
    """Tell no site to train and let no open round close, until resumed; updates under way are still taken.

    A round whose manifest is fixed is finished, and the next one opens: nobody is asked to train in it yet.
    """
    await federation.decide(_set_phase, federation.name, "paused", reason, who, federation.clock())
    log.warning("federation_paused", by=who, reason=reason)


async def resume(federation: Federation, who: str) -> None:
    """Go on. The open round's deadline moves by the length of the pause."""
    await federation.decide(_set_phase, federation.name, "running", "", who, federation.clock())
    log.warning("federation_resumed", by=who)


def _set_phase(
    connection: sa.Connection, federation: str, phase: Literal["paused", "running"], reason: str, who: str, now: float
) -> None:
    federations.set_phase(connection, federation, phase, reason, now)
    event = {"paused": "federation_paused", "running": "federation_resumed"}[phase]
    audit.append(connection, federation, now, event, by=who, reason=reason)


async def evict(federation: Federation, who: str, site: str, reason: str, allow_quorum: int = 0) -> str:
    """Take a site out for good. Returns what that means for the privacy of the others, if anything.

    Raises InputError as `rounds.check_eviction` does.
    """
    warning = await federation.decide(_evict, federation.name, site, reason, who, allow_quorum, federation.clock())
    log.warning("site_evicted", site=site, by=who, reason=reason)
    if warning:
        log.warning("small_quorum", consequence=warning)
    return warning


def _evict(
    connection: sa.Connection, federation: str, site: str, reason: str, who: str, allow_quorum: int, now: float
) -> str:
    """One transaction: two evictions at once must not leave too few."""
    warning = rounds.check_eviction(federations.state(connection, federation), site, allow_quorum)
    federations.evict(connection, federation, site, reason)
    audit.append(connection, federation, now, "site_evicted", site=site, by=who, reason=reason)
    return warning


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The last round there is, the one that starts from the version unless all rounds are closed; and the one given up."""

    round: int
    abandoned: int | None


async def rollback(federation: Federation, who: str, version: int, reason: str, number: int = 0) -> RolledBack:
    """Make an earlier version the current one. The open round is abandoned and the next one starts from that version.

    While that round is open, repeating it changes nothing: whoever got no answer asks again, and updates that came in meanwhile
    are not to be lost. `number` names a round to give up all the same, even one that is being closed: its bytes may be damaged.
    Raises NotFound, naming the versions there are; InputError if a round is being closed and not named, or the named one is over.
    """
    await federation.adapter(version)
    policy, now = federation.contract.policy, federation.clock()
    done = await federation.decide(
        _rollback, federation.name, version, number, policy.rounds, policy.deadline_s, who, reason, now
    )
    log.warning(
        "federation_rolled_back",
        version=version,
        by=who,
        reason=reason,
        round=done.round,
        abandoned_round=done.abandoned,
    )
    return done


def _rollback(
    connection: sa.Connection,
    federation: str,
    version: int,
    number: int,
    rounds_count: int,
    deadline_s: float,
    who: str,
    reason: str,
    now: float,
) -> RolledBack:
    last = round_rows.last(connection, federation)
    if last.phase == "closing" and number != last.number:
        raise InputError(
            f"round {last.number} is being closed this moment; try again in a few seconds. If it cannot be closed (the "
            f"aggregator's log says why), give it up with --round {last.number}"
        )
    if number and (number != last.number or last.phase not in round_rows.UNFINISHED):
        raise InputError(
            f"round {number} cannot be given up: the last one is round {last.number}, and it is {last.phase}"
        )
    if not number and last.base_version == version and _began_by_rollback(connection, federation, last):
        return RolledBack(last.number, None)
    abandoned = last.number if last.phase in round_rows.UNFINISHED else None
    if abandoned is not None:
        round_rows.abandon(connection, federation, abandoned, now)
    round_rows.go_on(connection, federation, version, rounds_count, deadline_s, now)
    told = {"version": version, "abandoned_round": abandoned, "by": who, "reason": reason}
    audit.append(connection, federation, now, "federation_rolled_back", **told)
    return RolledBack(round_rows.last(connection, federation).number, abandoned)


def _began_by_rollback(connection: sa.Connection, federation: str, last: RoundState) -> bool:
    """Return whether this is an open round that a rollback began: nothing else abandons the one before."""
    if last.phase != "open" or last.number == 1:
        return False
    return round_rows.state(connection, federation, last.number - 1).phase == "abandoned"

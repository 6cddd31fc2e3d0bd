"""What a round begins with: a pure function of the rounds a site has finished and the version it is given.

Versions form a tree, because a coordinator may roll back. A site's local adapter and its error-feedback residual belong to a
place in that tree, so both are looked up by version and never taken from whatever was trained last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a round began with.

    local: the round whose local adapter was in force; 0 is the one before the first round.
    residual: the round whose residual was; 0 is none at all.
    received: digest of the global adapter.
    """

    local: int = 0
    residual: int = 0
    received: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What counts here of a finished round."""

    number: int
    base_version: int
    accepted: bool
    start: Start


def start(finished: Sequence[Finished], version: int, parent_digest: str, digest: str) -> Start:
    """Return what the next round begins with when it is given `version`, whose file has this digest and names this parent.

    A version that a round began from before has its snapshot: what that first round began with. Its number alone does not say
    so: an aggregator whose store was restored from a backup gives it again. A new version goes with the round that made it, or
    with the snapshot of its parent if the site took no part in that round. Where neither is known (the site missed the parent
    too), it goes with the last round that began from an earlier version.
    """
    rounds = sorted(finished, key=lambda one: one.number)
    for one in rounds:
        if (one.base_version, one.start.received) == (version, digest):
            return replace(one.start, received=digest)
    siblings = [one for one in rounds if parent_digest and one.start.received == parent_digest]
    taken = {one.start.local for one in rounds}  # a round whose outcome went with another version did not make this one
    makers = [one for one in siblings if one.number not in taken]
    if siblings and not makers:
        return replace(siblings[0].start, received=digest)
    before = makers or [one for one in rounds if one.base_version < version]
    return _after(before[-1], digest) if before else Start(received=digest)


def _after(last: Finished, digest: str) -> Start:
    """A round whose update was never accepted leaves its local adapter, but not its residual: what its encoding lost was lost
    of something that nobody counted, and what the rounds before had lost is still owed."""
    return Start(local=last.number, residual=last.number if last.accepted else last.start.residual, received=digest)

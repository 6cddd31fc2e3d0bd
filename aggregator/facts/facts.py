"""The facts: a pure function of what the store holds, what this process counted, and the time."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from aggregator import rounds as core
from aggregator.facts import communication, events, model, sites
from aggregator.facts.calls import Counted, Failure
from aggregator.facts.material import Material
from aggregator.rounds import FederationState

EVENTS = 30
RECENT = 10
"""Closed rounds from which the length of the next ones is told."""
Facts = dict[str, Any]


def make(material: Material, now: float, counted: Counted | None = None) -> Facts:
    """Return the facts as JSON values; times in seconds since 1970, None for what is not known.

    `counted`: what a serving process has counted since its start; None where nobody serves.
    """
    state, is_open = material.state, material.state.round.phase == "open"
    journal = list(events.read(material.journal))
    of_sites = sites.make(state, _newest(events.refusals(journal), counted), events.approved_until(journal), now)
    by_name = {site["site"]: site for site in of_sites}
    missing = list(core.missing(state)) if is_open else []
    this_round = _round_finish(state, [by_name[name] for name in missing])
    return {
        "federation": state.name,
        "at": now,
        "phase": state.phase,
        "reason": state.reason,
        "round": state.round.number,
        "rounds": state.policy.rounds,
        "rounds_closed": material.closed,
        "round_phase": state.round.phase,
        "round_opened_at": state.round.opened_at,
        "accepted": len(core.counted(state)),
        "quorum": core.quorum(state),
        "invited": len(state.round.invited),
        "sampling": _sampling(state),
        "in": sorted(core.counted(state)),
        "missing": missing,
        "why_missing": {name: sites.why_missing(by_name[name], now) for name in missing},
        "quarantined": core.quarantined(state) if is_open else {},
        "waiting_for": core.waiting_for(state, now),
        "overdue": core.is_overdue(state, now),
        "deadline_at": state.round.deadline_at,
        "round_expected_finish_at": this_round,
        "expected_finish_at": _finish(material, max(now, this_round or 0.0)),
        "version": state.version,
        "digest": state.digest,
        "recipe": material.contract.recipe.name,
        "contract_sha256": material.contract.sha256,
        "sites": of_sites,
        "model": model.make(material),
        "communication": communication.make(material, counted),
        "events": [{"n": one.n, "at": one.at, "event": one.event, "words": one.words} for one in journal[:EVENTS]],
    }


def _newest(refused: Mapping[str, Failure], counted: Counted | None) -> dict[str, Failure]:
    """The journal knows what every replica refused for good, this process also what another try may get round."""
    found = dict(refused)
    for site, failure in (counted.failures if counted else {}).items():
        if site not in found or failure.at >= found[site].at:
            found[site] = failure
    return found


def _sampling(state: FederationState) -> dict[str, int] | None:
    """How rounds draw their sites; None where every site is invited to every round."""
    if not core.is_sampled(state):
        return None
    return {"invited": state.policy.invited, "sites": len(state.sites), "seed": state.sampling_seed}


def _round_finish(state: FederationState, missing: Sequence[Facts]) -> float | None:
    """When the last of the missing sites is expected, but not after the deadline; None unless all of them can be told."""
    expected: list[float] = [at for site in missing if (at := site["expected_finish_at"]) is not None]
    if not expected or len(expected) < len(missing):
        return None
    last = max(expected)
    return last if state.round.deadline_at is None else min(last, state.round.deadline_at)


def _finish(material: Material, earliest: float) -> float | None:
    """When the last round closes if those that are left take as long as the last ones did; None if none has closed.

    earliest: when this one can close.
    """
    state = material.state
    if state.phase != "running":
        return None
    ended = [one.state for one in material.records if one.state.phase == "closed" and one.state.closed_at][-RECENT:]
    timed = [one for one in ended if one.number > 1] or ended  # the first one waited for the sites to join
    if not timed:
        return None
    typical = statistics.median((one.closed_at or 0.0) - one.opened_at for one in timed)
    return max(earliest, state.round.opened_at + typical) + typical * (state.policy.rounds - material.closed - 1)

"""Where every site stands, in facts and in words. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from aggregator import rounds
from aggregator.facts.calls import Failure
from aggregator.rounds import FederationState, Hold, SiteState
from shared.certificates import expiry_words

Standing = Literal[
    "evicted",
    "never joined",
    "quarantined",
    "in",
    "finished",
    "revoked",
    "silent",
    "held up",
    "uploading",
    "training",
    "waiting",
    "not asked",
]
SILENT_S = 90.0
"""An agent asks at least every 30 s, and while it trains every 20 s: one that was not heard for so long is away."""
LEAST_PROGRESS = 0.02
"""Below this share of the training, the time it takes in all cannot be told from it."""


HOLDS: Mapping[Hold, str] = {
    "CONTRACT": "does not consent to the contract as it is; the agent's log there names the field",
    "WINDOW": "outside the hours at which it trains",
    "RELEASE": "its update waits there for a person to let it leave",
    "KEPT": "its people keep this round's update",
    "DISK": "the disk of its state folder is full",
}
"""What a site says holds it up, in words."""


def make(
    state: FederationState, failures: Mapping[str, Failure], approved_until: Mapping[str, float], now: float
) -> list[dict[str, Any]]:
    """Return the facts of each site, by name.

    `failures`: the last call of a site that did not go well; `approved_until`: the end of the certificate that was made for a site,
    told of until it has shown one.
    """
    return [
        _site(
            state,
            replace(site, expires_at=site.expires_at or approved_until.get(name, 0.0)),
            failures.get(name),
            now,
        )
        for name, site in state.sites.items()
    ]


def _site(state: FederationState, site: SiteState, failure: Failure | None, now: float) -> dict[str, Any]:
    where = standing(state, site, now)
    return {
        "site": site.name,
        "phase": site.phase,
        "reason": site.reason,
        "training_patients": site.training_patients,
        "last_seen": site.last_seen or None,
        "authenticated": site.authenticated if site.last_seen else None,
        "last_round": site.last_round,
        "progress": 1.0 if site.name in state.round.accepted else round(site.progress, 3),
        "invited": site.name in state.round.invited,
        "accepted": site.name in state.round.accepted,
        "certificate_expires_at": site.expires_at or None,
        "certificate_revoked": state.is_revoked(site),
        "certificate": certificate(state, site, now),
        "standing": where,
        "hold": HOLDS.get(site.hold, "") if where == "held up" else "",
        "expected_finish_at": expected_finish(state, site) if where == "training" else None,
        "last_error": None if failure is None else {"at": failure.at, "rpc": failure.rpc, "words": failure.words},
    }


def standing(state: FederationState, site: SiteState, now: float) -> Standing:
    """Return in a word where a site stands in the open round."""
    current = state.round
    if site.phase == "evicted":
        return "evicted"
    if site.phase == "enrolled":
        return "never joined"
    if site.name in rounds.quarantined(state):
        return "quarantined"
    if state.phase == "finished":
        return "finished"
    if site.name in current.accepted:
        return "in"
    if state.is_revoked(site):
        return "revoked"
    if now - site.last_seen > SILENT_S:
        return "silent"
    if site.hold:
        return "held up"
    if site.name not in current.invited:
        return "not asked"
    if site.name in current.announced:
        return "uploading"
    return "training" if site.progress and state.phase == "running" else "waiting"


def expected_finish(state: FederationState, site: SiteState) -> float | None:
    """Return when a site's training ends if it goes on as fast as it did in this round; None if that cannot be told yet."""
    began, progress = _began(state), site.progress
    if progress < LEAST_PROGRESS or site.last_seen <= began:
        return None
    return began + (site.last_seen - began) / min(progress, 1.0)


def _began(state: FederationState) -> float:
    """Since when the open round can have been trained in: the first one's clock starts when a site joins."""
    deadline_at = state.round.deadline_at
    return (
        state.round.opened_at
        if deadline_at is None
        else max(state.round.opened_at, deadline_at - state.policy.deadline_s)
    )


def why_missing(site: Mapping[str, Any], now: float) -> str:
    """Return in words what an invited site whose update is not in the open round does, from its facts."""
    match site["standing"]:
        case "training":
            return f"training, {site['progress']:.0%} done"
        case "silent":
            seen = site["last_seen"]
            return f"not heard from for {span(now - seen)}" if seen else "not heard from yet"
        case "held up":
            return str(site["hold"])
        case "uploading":
            return "sending its update"
        case "never joined":
            return "never joined"
        case "revoked":
            return "its certificate is revoked; with another one it goes on: site-agent join"
        case "quarantined":
            return "its update is far larger than the others and is set aside"
        case _:
            return "has not begun to train" if not site["last_error"] else f"last error: {site['last_error']['words']}"


def span(seconds: float) -> str:
    """Return a length of time in words, to about one part in sixty: "48 s", "12 min", "3 h 20 min", "4 days"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes < 10 and rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} days"


def certificate(state: FederationState, site: SiteState, now: float) -> str:
    """What is to be said of the certificate that a site showed last; nothing if it is good for long."""
    if state.is_revoked(site):
        return "certificate revoked"
    return f"certificate {words}" if site.expires_at and (words := expiry_words(site.expires_at, now)) else ""

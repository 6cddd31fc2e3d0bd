"""Rounds as values: who is in, who is missing, and when a round closes. No clock, socket or store in here.

A round is open, then closing (its input manifest is fixed), then closed. `invited`, `quorum` and `deadline` are three
separate numbers: a round closes when every active site is in, or when its deadline has passed and the quorum is met. A round
whose deadline passed without quorum asks further sites, if the draw left any; else it stays open and says who is missing. No
site can end a federation.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from aggregator import gate
from shared.canonical import canonical_json, sha256_hex
from shared.contract import RoundPolicy
from shared.errors import ConflictingUpdate, InputError, StaleRound

RoundPhase = Literal["open", "closing", "closed", "abandoned"]
FederationPhase = Literal["running", "paused", "finished"]
SitePhase = Literal["enrolled", "joined", "evicted"]
Hold = Literal["", "CONTRACT", "WINDOW", "RELEASE", "KEPT", "DISK"]
"""What of its site's own doing holds an agent up, by its own word: names of the protocol, empty if nothing does."""
EVICTED, QUARANTINED = "evicted", "quarantined"
"""How reasons begin why a site's update is not in a round."""
FEWEST_TO_HIDE_IN = 3
"""Updates of a round below which one can be read, see `quorum_warning`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateHeader:
    """What a site announces before its bytes. Sizes in bytes, digests hex SHA-256."""

    site: str
    agent_id: str
    round: int
    digest: str
    size: int
    codec: str
    base_version: int
    training_patients: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AcceptedUpdate:
    """An update that counts. `at` in seconds since 1970."""

    digest: str
    training_patients: int
    at: float
    norms: Mapping[str, float] = field(default_factory=dict)
    """How large it is, by part (aggregator/gate.py); empty where the recipe has no gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundState:
    """One round. `announced` holds uploads begun and not finished, by site; times in seconds since 1970."""

    number: int
    base_version: int
    invited: tuple[str, ...]
    phase: RoundPhase = "open"
    opened_at: float = 0.0
    deadline_at: float | None = None
    closed_at: float | None = None
    accepted: Mapping[str, AcceptedUpdate] = field(default_factory=dict)
    announced: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    """One site. `training_patients` is None until fixed; `last_seen` is 0 for a site never heard from."""

    name: str
    phase: SitePhase = "enrolled"
    reason: str = ""
    training_patients: int | None = None
    last_seen: float = 0.0
    authenticated: bool = True
    progress: float = 0.0
    last_round: int = 0
    version: int = 0
    expires_at: float = 0.0
    """When the certificate ends that its agent showed last, seconds since 1970; 0 if it showed none."""
    serial: str = ""
    """That certificate's serial number, hex."""
    hold: Hold = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationState:
    """A federation at one moment: what every decision is made from."""

    name: str
    policy: RoundPolicy
    phase: FederationPhase = "running"
    reason: str = ""
    version: int = 0
    digest: str = ""
    last_version: int = 0
    """The highest version ever made; after a rollback higher than the current one."""
    sites: Mapping[str, SiteState] = field(default_factory=dict)
    sampling_seed: int = 0
    """What every round's draw of sites is made from, where not every site is invited to every round."""
    norm_gate: float = 0.0
    """How many times the round's median an update may be, by the recipe; 0: any size."""
    revoked: frozenset[str] = frozenset()
    """Serial numbers of certificates that are not good any more, hex."""
    round: RoundState
    """The open or closing round; the last one when the federation is finished."""

    def is_revoked(self, site: SiteState) -> bool:
        """Whether the certificate that a site showed last is good for nothing any more."""
        return bool(site.serial) and site.serial in self.revoked

    @property
    def basis(self) -> tuple[object, ...]:
        """What a decision about the open round hangs on: all but what was heard from agents, which never stands still."""
        sites = {name: (site.phase, site.reason, site.training_patients) for name, site in self.sites.items()}
        return self.policy, self.phase, self.version, self.sampling_seed, self.round, sites


def admit(
    state: RoundState, update: UpdateHeader, at: float = 0.0, norms: Mapping[str, float] = MappingProxyType({})
) -> RoundState:
    """Return the state with `update` accepted; the same state if this is a retry of one already held.

    Raises ConflictingUpdate if another update of the site counts already, StaleRound if the round takes no more updates or
    the update was trained from another version. The number of patients and the bytes are checked by the caller.
    """
    if is_held(state, update.site, update.digest):
        return state
    check_open(state, update)
    accepted = AcceptedUpdate(update.digest, update.training_patients, at, norms)
    announced = {site: since for site, since in state.announced.items() if site != update.site}
    return replace(state, accepted={**state.accepted, update.site: accepted}, announced=announced)


def is_held(state: RoundState, site: str, digest: str) -> bool:
    """Return whether exactly this update is accepted; raise ConflictingUpdate if another one of the site is."""
    held = state.accepted.get(site)
    if held is not None and held.digest != digest:
        raise ConflictingUpdate(
            f"round {state.number} already holds update {held.digest[:12]} of site '{site}', got {digest[:12]}; "
            "updates are never replaced: throw this one away and ask for the current round"
        )
    return held is not None


def check_open(state: RoundState, update: UpdateHeader) -> None:
    """Raise StaleRound unless the round takes an update of this site, trained from this version."""
    number = state.number
    if state.phase != "open":
        raise StaleRound(
            f"round {number} is {state.phase} and takes no more updates; this one of site '{update.site}' came too late: "
            "throw it away and ask for the current round"
        )
    if update.round != number:
        raise StaleRound(f"round {number} is open, the update is for round {update.round}; ask for the current round")
    if update.base_version != state.base_version:
        raise StaleRound(
            f"round {number} starts from version {state.base_version}, the update was trained from version "
            f"{update.base_version}; fetch version {state.base_version} and train again"
        )
    if update.site not in state.invited:
        raise StaleRound(f"site '{update.site}' is not invited to round {number}; wait for the next one")


def draw(names: Iterable[str], seed: int, number: int) -> list[str]:
    """Return sites in the order in which round `number` asks them: by the SHA-256 of [seed, round, name].

    A site's place against another hangs on nothing else: not on the order of names, the machine, or who was taken out.
    """
    return sorted(names, key=lambda name: sha256_hex(canonical_json([seed, number, name])))


def invite(names: Iterable[str], count: int, seed: int, number: int) -> tuple[str, ...]:
    """Return whom round `number` asks first: `count` of these sites, or all if there are no more; sorted by name."""
    return tuple(sorted(draw(names, seed, number)[:count]))


def is_sampled(federation: FederationState) -> bool:
    """Return whether a round asks fewer sites than there are."""
    return federation.policy.invited < len(federation.sites)


def active_sites(federation: FederationState) -> tuple[str, ...]:
    """Return the sites whose update the round waits for or holds: invited and not evicted, sorted."""
    return tuple(sorted(s for s in federation.round.invited if federation.sites[s].phase != "evicted"))


def quorum(federation: FederationState) -> int:
    """Return how many updates the round needs. A quorum of all invited means all who have not been evicted, and whose update is
    not quarantined: three at least, or as few as the sites agreed to.

    Sites that were asked in place of others never raise it.
    """
    policy, active = federation.policy, len(active_sites(federation))
    if policy.quorum != policy.invited:
        return policy.quorum
    return min(policy.quorum, active, max(active - len(quarantined(federation)), FEWEST_TO_HIDE_IN))


def is_quorate(federation: FederationState) -> bool:
    """Return whether the round has the updates it needs, one at least."""
    return len(counted(federation)) >= max(1, quorum(federation))


def counted(federation: FederationState) -> dict[str, AcceptedUpdate]:
    """Return the accepted updates of active sites in site order that are not quarantined: what the round would be made of now."""
    out = quarantined(federation)
    return {site: update for site, update in _arrived(federation).items() if site not in out}


def quarantined(federation: FederationState) -> dict[str, str]:
    """Return which accepted updates of active sites are far larger than the others, by site, and by how much in words.

    What has arrived since may change that, until the round closes.
    """
    sizes = {site: update.norms for site, update in _arrived(federation).items()}
    return gate.too_large(sizes, federation.norm_gate)


def _arrived(federation: FederationState) -> dict[str, AcceptedUpdate]:
    accepted = federation.round.accepted
    return {site: accepted[site] for site in active_sites(federation) if site in accepted}


def missing(federation: FederationState) -> tuple[str, ...]:
    """Return the active sites without an accepted update, sorted."""
    held = _arrived(federation)
    return tuple(s for s in active_sites(federation) if s not in held)


def set_aside(federation: FederationState) -> dict[str, str]:
    """Return the digests of accepted updates that do not count, by site: the site was evicted since, or it is quarantined."""
    held = counted(federation)
    return {site: update.digest for site, update in sorted(federation.round.accepted.items()) if site not in held}


def replacements(federation: FederationState, now: float) -> tuple[str, ...]:
    """Return the sites to be asked now in place of others, next in the round's draw first. While any are, no round is due.

    One for each invited site that was evicted; and when deadline and grace have passed without quorum, one for each site
    that is missing or quarantined. Always empty where every site is invited.
    """
    reserve = _reserve(federation)
    if not reserve:
        return ()
    state, count = federation.round, _vacancies(federation)
    if _asks_further_at(federation) <= now:
        count = max(count, len(missing(federation)) + len(quarantined(federation)))
    return tuple(draw(reserve, federation.sampling_seed, state.number)[:count])


def _reserve(federation: FederationState) -> list[str]:
    """Return who may still be asked to take part in the open round."""
    if not _is_running(federation) or not is_sampled(federation):
        return []
    invited = set(federation.round.invited)
    return [name for name, site in federation.sites.items() if site.phase != "evicted" and name not in invited]


def _vacancies(federation: FederationState) -> int:
    """Return how many sites the round is short of because invited ones were evicted."""
    return max(0, federation.policy.invited - len(active_sites(federation)))


def _asks_further_at(federation: FederationState) -> float:
    """Return when the round gives up waiting for its quorum and asks further sites, if there are any; else infinity."""
    deadline = federation.round.deadline_at
    if deadline is None or is_quorate(federation):
        return float("inf")
    return deadline + federation.policy.grace_s


def _is_running(federation: FederationState) -> bool:
    return federation.phase == "running" and federation.round.phase == "open"


def is_due(federation: FederationState, now: float) -> bool:
    """Return whether the open round is to be closed now."""
    due = due_at(federation)
    return due is not None and now >= due


def due_at(federation: FederationState) -> float | None:
    """Return from when on the open round is to be closed if nothing else happens; None if something must happen first.

    0 when every active site is in, or as many as a round invites (more were asked when some did not answer). Else, with the
    quorum met, the deadline, or deadline + grace while an upload begun before the deadline is still unfinished.
    """
    state = federation.round
    if not _is_running(federation) or not is_quorate(federation):
        return None
    if _vacancies(federation) and _reserve(federation):
        return None  # an evicted site is replaced first
    absent = missing(federation)
    if not absent or len(counted(federation)) >= federation.policy.invited:
        return 0.0
    if state.deadline_at is None:
        return None
    unfinished = any(state.announced.get(s, float("inf")) <= state.deadline_at for s in absent)
    return state.deadline_at + (federation.policy.grace_s if unfinished else 0.0)


def is_overdue(federation: FederationState, now: float) -> bool:
    """Return whether the open round's deadline has passed and it still waits for its quorum."""
    deadline = federation.round.deadline_at
    return _is_running(federation) and deadline is not None and now >= deadline and not is_quorate(federation)


def next_moment(federation: FederationState, now: float) -> float | None:
    """Return when time alone next changes what is to be done about the open round; None if never."""
    if not _is_running(federation):
        return None
    further = _asks_further_at(federation) if _reserve(federation) else None
    moments = (due_at(federation), federation.round.deadline_at, further)
    return min((m for m in moments if m is not None and now < m < float("inf")), default=None)


def left_out(federation: FederationState) -> dict[str, str]:
    """Return why each enrolled site without a counted update is not in the round, by site."""
    held, state, out = counted(federation), federation.round, quarantined(federation)
    reasons = {}
    for name, site in sorted(federation.sites.items()):
        if name in held:
            continue
        if site.phase == "evicted":
            reasons[name] = f"{EVICTED}: {site.reason}" if site.reason else EVICTED
        elif name in out:
            reasons[name] = f"{QUARANTINED}: {out[name]}"
        elif name not in state.invited:
            reasons[name] = "not invited"
        elif name in state.announced:
            reasons[name] = "upload begun, not finished in time"
        elif site.phase == "enrolled":
            reasons[name] = "never joined"
        else:
            reasons[name] = "joined, no update in time"
    return reasons


def waiting_for(federation: FederationState, now: float) -> str:
    """Return in words whom the open round waits for; empty when it waits for nobody."""
    state, absent = federation.round, missing(federation)
    if state.phase != "open":
        return ""
    reserve = _reserve(federation)
    if not absent:
        if reserve and _vacancies(federation):
            return f"round {state.number} waits for sites in place of evicted ones"
        out = quarantined(federation)
        if out and not is_quorate(federation):
            return (
                f"round {state.number} has {len(counted(federation))} of {quorum(federation)} updates needed, those of "
                f"{', '.join(out)} being quarantined"
            )
        return ""
    text = f"round {state.number} waits for {', '.join(absent[:8])}{' and others' if len(absent) > 8 else ''}"
    if state.deadline_at is None or now < state.deadline_at:
        return text
    further = "; after the grace others are invited in their place" if reserve and not is_quorate(federation) else ""
    return f"{text}: past its deadline with {len(counted(federation))} of {quorum(federation)} updates needed{further}"


def check_eviction(federation: FederationState, site: str, allow_quorum: int = 0) -> str:
    """Return what it means for privacy that `site` goes; empty from three updates in a round on, or if it has gone before.

    Raises InputError if the sites left could never meet the quorum the others agreed to, or if rounds would need fewer than
    three updates and neither the sites agreed to so few nor `allow_quorum` says so.
    """
    if site not in federation.sites:
        raise InputError(f"no site '{site}' in federation '{federation.name}' (sites: {', '.join(federation.sites)})")
    policy = federation.policy
    rest = sum(s.phase != "evicted" for n, s in federation.sites.items() if n != site)
    if federation.sites[site].phase == "evicted":
        return ""
    if rest < 1 or (policy.quorum != policy.invited and rest < policy.quorum):
        raise InputError(
            f"evicting '{site}' would leave {rest} sites, fewer than the quorum of {policy.quorum} the sites agreed to; "
            "pause the federation instead, and start another one"
        )
    needed = min(policy.quorum, rest)
    if needed < min(FEWEST_TO_HIDE_IN, policy.quorum) and not 1 <= allow_quorum <= needed:
        raise InputError(
            f"evicting '{site}' would leave {rest} sites: {quorum_warning(needed)}. The sites agreed to a quorum of "
            f"{policy.quorum}; if {needed} is acceptable to them, say so with --allow-quorum {needed}"
        )
    return quorum_warning(needed)


def quorum_warning(needed: int) -> str:
    """Return what it means for the sites' privacy that a round needs so few updates; empty for three and more."""
    if needed == 2:
        return "with a quorum of 2 each of two sites can subtract its own update from the mean and read the other's"
    if needed == 1:
        return "with a quorum of 1 a round may be one site's update alone, readable by every other site"
    return ""

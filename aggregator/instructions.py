"""What a site is to do next, from what it says it does: a value made of values, like `rounds`."""

from dataclasses import dataclass, replace
from typing import Literal

from aggregator.rounds import FederationState, Hold, waiting_for

Instruction = Literal["NONE", "TRAIN", "WAIT", "ABANDON", "PAUSED", "FINISHED", "EVICTED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """What a site says it has and does when it asks for an instruction."""

    round: int = 0
    following: Instruction = "NONE"
    version: int = 0
    progress: float = 0.0
    hold: Hold = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a site is to do. `remaining_s` is 0 when no deadline runs."""

    instruction: Instruction
    round: int
    version: int
    digest: str
    remaining_s: float = 0.0
    reason: str = ""


def instruct(federation: FederationState, name: str, report: SiteReport, now: float) -> Answer:
    """Return what site `name` is to do, given what it says it does. The same values give the same answer."""
    site, state = federation.sites[name], federation.round
    answer = Answer(
        instruction="WAIT",
        round=state.number,
        version=federation.version,
        digest=federation.digest,
        remaining_s=max(0.0, state.deadline_at - now) if state.deadline_at is not None else 0.0,
    )
    if site.phase == "evicted":
        return replace(answer, instruction="EVICTED", reason=site.reason or "evicted by the coordinator")
    if federation.phase == "finished":
        return replace(answer, instruction="FINISHED", remaining_s=0.0, reason="all rounds are closed")
    if report.following == "TRAIN" and 0 < report.round != state.number:
        return replace(answer, instruction="ABANDON", reason=f"round {report.round} is over")
    if federation.phase == "paused":
        return replace(answer, instruction="PAUSED", reason=federation.reason or "paused by the coordinator")
    if name in state.accepted or name not in state.invited:
        return replace(answer, reason=waiting_for(federation, now))
    if state.phase == "closing":
        abandoned = report.following == "TRAIN"
        return (
            replace(answer, instruction="ABANDON", reason=f"round {state.number} is closing") if abandoned else answer
        )
    return replace(answer, instruction="TRAIN")


def is_news(answer: Answer, report: SiteReport) -> bool:
    """Return whether the answer differs from what the site follows, so that it must go out at once."""
    if answer.instruction in ("FINISHED", "EVICTED", "ABANDON"):
        return True
    if answer.instruction == "PAUSED":
        return report.following != "PAUSED"
    return (answer.instruction, answer.round) != (report.following, report.round)

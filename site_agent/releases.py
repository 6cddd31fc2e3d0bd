"""Updates that wait for a person: with `egress = "manual"` none leaves before `site-agent release`, which writes its decision here.

A decision is about the bytes with one digest. It lies in the state folder under that name, so that the agent, which holds the
folder, and the person, who runs another command, need not talk to each other.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.canonical import canonical_json, write_atomically
from shared.errors import InputError
from site_agent import people, round_files
from site_agent.damage import Damaged
from site_agent.round_files import Record

RELEASES = "releases"
POLL_S = 1.0
FEWEST_DIGITS = 12
"""Of a digest by which somebody names an update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a person said of an update. `by`: their account on this machine; `at` in seconds since 1970."""

    digest: str
    leaves: bool
    by: str
    at: float


def decide(state: Path, digest: str, *, leaves: bool) -> Decision:
    """Write what the person who runs this says of an update. Raises InputError if it was said before."""
    if (held := find(state, digest)) is not None:
        raise InputError(
            f"update {digest[:12]} was {'released' if held.leaves else 'withheld'} by {held.by} already; that stands"
        )
    decision, path = Decision(digest=digest, leaves=leaves, by=people.account(), at=time.time()), _path(state, digest)
    write_atomically(path, canonical_json(asdict(decision)), 0o600)
    for written in (path.parent, path):
        people.hand_over(written, state)
    return decision


def find(state: Path, digest: str) -> Decision | None:
    """Return what was said of an update; None if nothing was. Raises InputError for a file that nobody here wrote."""
    path = _path(state, digest)
    try:
        decision = Decision(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read by this account: {error.strerror}; give it to the agent's") from error
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path} is no decision of `site-agent release` ({error}); remove it, and decide again"
        ) from error
    if decision.digest != digest or type(decision.leaves) is not bool:
        raise InputError(f"{path} is about another update; remove it, and decide again")
    return decision


def waiting(state: Path) -> list[tuple[Record, str]]:
    """Return the updates in a state folder that nobody has decided on and that were never sent, with their digests."""
    found, rounds = [], state / round_files.ROUNDS
    for number in round_files.numbers(rounds):
        try:
            record = round_files.read_record(round_files.folder_of(rounds, number))
        except Damaged:
            continue  # the agent sets it aside, and says so
        digest = record.files[round_files.DELTA]
        if record.fate == "unsent" and find(state, digest) is None:
            found.append((record, digest))
    return found


def reviewed(state: Path, digest: str) -> list[tuple[Record, str]]:
    """Return the update that somebody has reviewed, named by the first digits of its digest, if it is one that waits.

    Raises InputError for too few digits, and for one that does not wait, naming those that do.
    """
    named = digest.strip().lower()
    if not FEWEST_DIGITS <= len(named) <= 64 or not set(named) <= set("0123456789abcdef"):
        raise InputError(
            f"--digest is {FEWEST_DIGITS} to 64 hexadecimal digits, got '{digest[:80]}'; they are shown by: site-agent release "
            f"--state {state} --show"
        )
    held = waiting(state)
    if not (found := [one for one in held if one[1].startswith(named)]):
        there = ", ".join(one[:FEWEST_DIGITS] for _, one in held) or "none"
        raise InputError(
            f"no update with digest {named} waits in {state} (what waits: {there}); nothing was decided. Look at it again: "
            f"site-agent release --state {state} --show"
        )
    return found


def _path(state: Path, digest: str) -> Path:
    return state / RELEASES / f"{digest}.json"

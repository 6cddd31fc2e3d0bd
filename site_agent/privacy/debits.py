"""What this site has spent of its patients' privacy: a hash-chained journal, and the key of the round that is being trained.

privacy/debits.jsonl   one line a release, durable before its training begins; never removed, nor moved aside with a contract
privacy/key.json       256 bits that the noise of that round is drawn from, and which round that is

A debit is about patients, not about a contract: what was released of them under any contract of this state folder counts against
every budget. A site cannot prove that two cohorts have no patient in common, so all lines count, whatever cases they name; somebody
who knows that they have none begins another state folder.

**A key is there only as long as nothing made with it has left.** It is written before its debit and destroyed when its round is
committed, so training again with it makes one release, which was paid for. Without it the round is another release.
"""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared import journal
from shared.canonical import canonical_json, sha256_hex, sync_folder, write_atomically
from shared.errors import InputError
from shared.journal import Chain
from site_agent.ledger import DEBITED
from site_agent.privacy import accountant
from site_agent.privacy.accountant import Epsilon, Release
from site_agent.privacy.stream import Stream
from site_agent.state import DEBITS, PRIVACY

KEY = "key.json"
OWNER_ONLY = 0o600


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A round that is to be trained. contract, received, made_from: SHA-256 of what was agreed to, of the version that it begins
    with, and of cases and settings. delta, budget: the contract's dp_delta and dp_epsilon."""

    federation: str
    contract: str
    round: int
    received: str
    made_from: str
    patients: int
    release: Release
    clip: float
    delta: float
    budget: float

    @property
    def binding(self) -> str:
        """SHA-256 of all that makes it the same release with the same key, hex."""
        return sha256_hex(canonical_json(asdict(self)))


@dataclass(frozen=True, slots=True)
class Plan:
    """What training a round takes: its key, and what will have been spent then. `paid`: its debit is written already."""

    asked: Asked
    stream: Stream
    before: Epsilon
    after: Epsilon
    paid: bool


class OverBudget(Exception):
    """A round would pass the budget. `before` and `after` it: what is and what would be spent."""

    def __init__(self, before: Epsilon, after: Epsilon) -> None:
        super().__init__(f"{after.pld:.4g}")
        self.before, self.after = before, after


class Debits:
    """The folder privacy/ of one agent's state."""

    def __init__(self, state: Path) -> None:
        self._folder = state / PRIVACY

    def plan(self, asked: Asked, noted: Collection[str] = ()) -> Plan:
        """Return what training this round takes, writing nothing. `noted`: digests of lines that another journal knows of.

        Raises OverBudget, and InputError for a journal that was changed or has lost lines, or without an accountant.
        """
        chain = self._chain(noted)
        releases = [release_of(entry.facts) for entry in chain.entries]
        before = accountant.epsilon(releases, asked.delta)
        stream, binding = self._held(asked), asked.binding
        if stream is not None and any(
            (e.facts["key"], e.facts["binding"]) == (stream.id, binding) for e in chain.entries
        ):
            return Plan(asked, stream, before, before, paid=True)
        after = accountant.epsilon([*releases, asked.release], asked.delta)
        if not after.pld <= asked.budget:
            raise OverBudget(before, after)
        return Plan(asked, stream or Stream.fresh(), before, after, paid=False)

    def enter(self, plan: Plan) -> str:
        """Make a plan's key and debit durable, in this order; return the digest of the journal's last line. Nothing is written
        twice. Raises OSError; to be tried again then, with the same plan."""
        if self._held(plan.asked) != plan.stream:
            self._write_key(plan)
        chain = self._chain()
        if plan.paid or any(e.facts["key"] == plan.stream.id for e in chain.entries):
            sync_folder(self._folder)  # it may have been renamed there, and not be durable yet
            return chain.head.digest
        line = journal.line(chain.head, time.time(), DEBITED, _facts(plan))
        path = self._folder / DEBITS
        held = path.read_bytes() if path.exists() else b""
        write_atomically(path, held + line + b"\n", OWNER_ONLY)
        return journal.after(chain.head, line).digest

    def forget(self, round_number: int) -> None:
        """Destroy the key of a round: its update is durable, and about to leave. Raises OSError; to be tried again then."""
        if not self._folder.exists():
            return
        path = self._folder / KEY
        value = _key_file(path)
        if value is None or value["round"] == round_number:
            path.unlink(missing_ok=True)
        sync_folder(self._folder)

    def _chain(self, noted: Collection[str] = ()) -> Chain:
        chain = read(self._folder.parent, missing_ok=True)
        if lost := set(noted) - set(chain.heads):
            raise InputError(
                f"privacy journal {self._folder / DEBITS}: {len(lost)} debit(s) that the egress ledger knows of are missing, "
                f"such as the one with digest {min(lost)[:12]}. Nothing is trained on what is left: put the journal back from a "
                "backup"
            )
        return chain

    def _held(self, asked: Asked) -> Stream | None:
        """Return the key that is kept for just this round; None if it is another's, lost or damaged."""
        value = _key_file(self._folder / KEY)
        return value["stream"] if value is not None and value["binding"] == asked.binding else None

    def _write_key(self, plan: Plan) -> None:
        value = {
            "binding": plan.asked.binding,
            "round": plan.asked.round,
            "id": plan.stream.id,
            "key": plan.stream.key.hex(),
        }
        write_atomically(self._folder / KEY, canonical_json(value), OWNER_ONLY)


def read(state: Path, noted: str = "", *, missing_ok: bool = False) -> Chain:
    """Return the journal of a state folder. `noted`: a digest that was the last line's once.

    Raises InputError if there is none, or as `shared.journal.verify`.
    """
    path = state / PRIVACY / DEBITS
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        if missing_ok:
            return Chain((), ())
        raise InputError(
            f"nothing was ever released with differential privacy from {state}: there is no {path}"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read the privacy journal {path}: {error.strerror}") from error
    try:
        if not lines:
            raise InputError("it is empty, as no agent leaves it")
        return journal.verify(lines, noted)
    except InputError as error:
        raise InputError(
            f"privacy journal {path}: {error}. Nothing is trained as long as it is not known what was spent: keep the file as "
            "evidence, and put the journal back from a backup"
        ) from error


def release_of(facts: Mapping[str, Any]) -> Release:
    """Return the release that a line of the journal is about."""
    return Release(q=facts["q"], sigma=facts["sigma"], steps=facts["steps"])


def _facts(plan: Plan) -> dict[str, Any]:
    asked = plan.asked
    return {
        "federation": asked.federation,
        "contract": asked.contract,
        "round": asked.round,
        "received": asked.received,
        "made_from": asked.made_from,
        "patients": asked.patients,
        **asdict(asked.release),
        "clip": asked.clip,
        "delta": asked.delta,
        "budget": asked.budget,
        "epsilon": plan.after.pld,
        "epsilon_rdp": plan.after.rdp,
        "key": plan.stream.id,
        "binding": asked.binding,
    }


def _key_file(path: Path) -> dict[str, Any] | None:
    """Return what a key's file says, the key as a stream; None for one that is not there or not as it was written."""
    try:
        value = json.loads(path.read_bytes())
        stream = Stream(bytes.fromhex(value["key"]))
        found = {"binding": str(value["binding"]), "round": int(value["round"]), "stream": stream}
        return found if value["id"] == stream.id else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None

"""The agent's state folder: who it is, its private local adapter, and what it has not yet sent.

agent.json              random id of this agent
lock                    held while an agent runs
contract.json           what the site has agreed to
offered.json            another contract that the aggregator offers; accepted.json: that a person has agreed to it
rounds/0003/            one finished local round (site_agent/round_files.py): local adapter, outbox, residual
training/               checkpoints of the round being trained (site_agent/training/checkpoint.py)
global.safetensors      the newest global adapter the site has
initial.safetensors     version 0 of it
history.jsonl           one line per evaluated version
report.json             what the site's own report is made of, with report-cases.csv: every arm's score of every case
releases/               what a person said of updates that wait for one (site_agent/releases.py)
egress.jsonl            the egress ledger (site_agent/ledger.py): what left the site, hash-chained
privacy/                what was spent of the patients' privacy, and the key of the round at hand (site_agent/privacy/debits.py)
damaged-*               what could not be read, wherever it lay: set aside, never deleted

contract.json is the site's consent: damaged, it stops the agent with advice. Everything else falls back to the last good thing.
Every file is readable by its owner only.
"""

import fcntl
import json
import math
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from shared.adapter import Adapter
from shared.canonical import canonical_json, sync_folder, write_atomically
from shared.contract import Contract
from shared.errors import InputError, InvalidAdapter
from site_agent import consent, lineage, people, round_files
from site_agent.consent import ConsentWithheld
from site_agent.damage import Damaged, Infirmary
from site_agent.ledger import LEDGER
from site_agent.local_rounds import LocalRounds
from site_agent.round_files import ROUNDS

log = structlog.get_logger()
CONTRACT, OFFERED, ACCEPTED = "contract.json", "offered.json", "accepted.json"
MOST_NAMED = 5
GLOBAL = "global.safetensors"
INITIAL = "initial.safetensors"
HISTORY = "history.jsonl"
AGENT = "agent.json"
TRAINING = "training"
PRIVACY, DEBITS = "privacy", "debits.jsonl"
TAKEOVER_S = 120.0
"""How long a new id may wait for the aggregator to let go of the damaged one; it does a minute after that one's last call."""
PRIVATE = 0o600
FETCHED_AGAIN = "it is fetched again"
UNKNOWN = "unknown"


class State:
    """One agent's folder. Only one process may hold it; the second gets an InputError.

    `warn` takes one sentence for a person about anything damaged, and about a folder that other users can look into.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = lambda text: None) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.fdopen(os.open(folder / "lock", os.O_WRONLY | os.O_CREAT, PRIVATE), "w")
        except OSError as error:
            raise InputError(
                f"cannot keep state in {folder}: {error.strerror}; give another --state folder{_with_journals(folder)}"
            ) from error
        self.folder = folder
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(
                f"another agent runs on state folder {folder}; stop it, or give this one its own --state"
            ) from None
        _warn_of_onlookers(folder, warn)
        self._clear_half_written()
        self.infirmary = Infirmary(folder, warn)
        self.rounds = LocalRounds(folder / ROUNDS, self.infirmary)
        self.agent_id, self._made_at = self._identity()

    def close(self) -> None:
        """Let another agent have the folder."""
        self._lock.close()

    @property
    def takeover_s(self) -> float:
        """Seconds for which the aggregator may still hold this site's certificate for another id: that of a state folder that was
        lost or replaced, or of an agent.json that was damaged."""
        return max(0.0, min(TAKEOVER_S, self._made_at + TAKEOVER_S - time.time()))

    def bind(self, contract: Contract) -> None:
        """Tie the folder to one contract: local adapters of two do not mix.

        Another one than before is taken when a person has accepted it (`site-agent accept`); what belongs to the one before is then
        moved aside. So are finished rounds of which no contract is left to say whose they are: nothing of them may be offered under
        this one. Raises ConsentWithheld naming what differs until then.
        """
        path = self.folder / CONTRACT
        if path.exists() and (held := read_contract(self.folder)) != contract:
            write_atomically(self.folder / OFFERED, contract.to_bytes(), PRIVATE)
            if not _is_accepted(self.folder, contract):
                differing = "; ".join(consent.differences(held, contract)[:MOST_NAMED])
                raise ConsentWithheld(
                    f"the contract has changed. {differing}. If this hospital agrees: site-agent accept --state {self.folder}"
                )
            self._put_aside(held.sha256[:12], CONTRACT)
            log.warning("contract_accepted", before=held.sha256, contract=contract.sha256)
        if not path.exists():
            if round_files.numbers(self.folder / ROUNDS):
                self._put_unknown_aside()
            write_atomically(path, contract.to_bytes(), PRIVATE)
        for name in (OFFERED, ACCEPTED):
            (self.folder / name).unlink(missing_ok=True)

    def _put_unknown_aside(self) -> None:
        aside = self._put_aside(UNKNOWN, ROUNDS)
        log.warning("contract_missing", kept_as=aside.name)
        self.infirmary.warn(
            f"{CONTRACT} is missing, so that nobody can say under which contract the rounds here were trained: they are kept in "
            f"{aside.name}, and this site begins with a new local adapter"
        )

    def _put_aside(self, whose: str, last: str) -> Path:
        """Move what belongs to a contract into a folder of its own, and return that. `last` is moved at the end: a kill in between
        goes on from there."""
        aside = self.folder / f"contract-{whose}"
        for number in range(2, 1000):
            if not (aside / last).exists():
                break  # a kill left it half done, or it is new
            aside = self.folder / f"contract-{whose}-{number}"
        aside.mkdir(mode=0o700, exist_ok=True)
        for name in (TRAINING, GLOBAL, INITIAL, HISTORY, ROUNDS, CONTRACT):
            if (self.folder / name).exists():
                (self.folder / name).rename(aside / name)
        sync_folder(self.folder)
        return aside

    def store_global(self, adapter: Adapter) -> None:
        """Keep the newest global adapter."""
        write_atomically(self.folder / GLOBAL, adapter.to_bytes(), PRIVATE)
        if adapter.version == 0:
            self.store_initial(adapter)

    def store_initial(self, adapter: Adapter) -> None:
        """Keep version 0, from which the arms that were never federated start."""
        write_atomically(self.folder / INITIAL, adapter.to_bytes(), PRIVATE)

    def global_adapter(self) -> Adapter | None:
        """Return the newest global adapter the site has, if any."""
        return self._adapter(GLOBAL)

    def initial_adapter(self) -> Adapter | None:
        """Return version 0 as the contract names it; None at a site that joined when there were later ones."""
        held = self._adapter(INITIAL)
        if held is None or not (self.folder / CONTRACT).exists():
            return held
        if held.digest == read_contract(self.folder).adapter_digest:
            return held
        damage = Damaged(self.folder / INITIAL, "its digest differs from the one in the contract")
        self.infirmary.set_aside(damage, FETCHED_AGAIN)
        return None

    def append_history(self, entry: dict[str, Any]) -> None:
        """Add one line; a version evaluated again after a restart replaces its line."""
        entries = [e for e in self.history() if e["version"] != entry["version"]]
        lines = [canonical_json(e) for e in [*entries, entry]]
        write_atomically(self.folder / HISTORY, b"\n".join(lines) + b"\n", PRIVATE)

    def history(self) -> list[dict[str, Any]]:
        """Return what `append_history` stored, oldest first."""
        path = self.folder / HISTORY
        if not path.exists():
            return []
        try:
            entries = [json.loads(line) for line in path.read_bytes().splitlines()]
            if all(isinstance(entry, dict) and "version" in entry for entry in entries):
                return entries
            reason = "a line is no entry"
        except (OSError, ValueError, RecursionError) as error:
            reason = f"{type(error).__name__}"
        self.infirmary.set_aside(Damaged(path, reason), "the curve begins anew")
        return []

    def _adapter(self, name: str) -> Adapter | None:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return Adapter.read(path)
        except (InputError, InvalidAdapter) as error:
            reason = f"{type(error).__name__}" if str(path) in str(error) else str(error)
            self.infirmary.set_aside(Damaged(path, reason), FETCHED_AGAIN)
            return None

    def _identity(self) -> tuple[str, float]:
        """Return the agent's id, and when it was made (seconds since 1970)."""
        path = self.folder / AGENT
        if path.exists():
            try:
                return _read_identity(path.read_bytes())
            except OSError as error:
                reason = f"it cannot be read: {error.strerror}"
            except (ValueError, RecursionError) as error:
                reason = f"it is no agent's identity: {error}"
            self.infirmary.set_aside(Damaged(path, reason), "this agent has a new id from here on")
        agent_id, made_at = uuid.uuid4().hex, time.time()
        write_atomically(path, canonical_json({"agent_id": agent_id, "made_at": made_at}), PRIVATE)
        return agent_id, made_at

    def _clear_half_written(self) -> None:
        """Remove what a kill left in the middle of being written; nothing of it was ever in force."""
        for leftover in (self.folder / ROUNDS).glob(".*"):
            shutil.rmtree(leftover)
        for place in (".", TRAINING, PRIVACY, f"{ROUNDS}/[0-9]*"):
            for leftover in self.folder.glob(f"{place}/.*.[0-9]*-[0-9]*.tmp"):
                leftover.unlink()


def _read_identity(data: bytes) -> tuple[str, float]:
    """Return the agent's id and when it was made. Raises ValueError or RecursionError."""
    value = json.loads(data)
    if not isinstance(value, dict) or value.keys() != {"agent_id", "made_at"}:
        raise ValueError("not an agent_id and made_at")
    agent_id, made_at = value["agent_id"], value["made_at"]
    if not isinstance(agent_id, str) or not re.fullmatch("[0-9a-f]{32}", agent_id):
        raise ValueError("agent_id is not 32 hexadecimal digits")
    if not isinstance(made_at, float) or not math.isfinite(made_at):
        raise ValueError("made_at is no time")
    return agent_id, made_at


def _warn_of_onlookers(folder: Path, warn: Callable[[str], None]) -> None:
    """Say so if the folder is open to other users; the agent's files in it are readable by their owner only all the same.

    It is not closed here: an agent that did not make a folder cannot know what else lies in it and who else needs it (given
    /tmp or a shared volume by mistake, it would lock everybody out).
    """
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        log.warning("state_folder_open_to_others", mode=f"{mode:04o}")
        warn(
            f"state folder {folder} is open to other users of this machine (mode {mode:04o}), and it is private: if it is the "
            f"agent's alone, close it with `chmod -R go= {folder}`, else use another --state folder{_with_journals(folder)}"
        )


def _with_journals(folder: Path) -> str:
    """What to say beside the advice to use another state folder where differential privacy was paid for in this one."""
    try:
        paid = (folder / PRIVACY / DEBITS).exists()
    except OSError:  # a folder that may not be looked into, most likely the very reason for the advice
        paid = False
    words = f"; move {PRIVACY}/ and {LEDGER} along: what was spent of these patients' privacy counts there too"
    return words if paid else ""


def accept(folder: Path, by: str, *, decided: bool = True) -> list[str]:
    """Agree to the contract that is offered to a state folder's agent; return what differs from the one before.

    Not `decided`: only look.

    Raises InputError if nothing else is offered than what was agreed to.
    """
    try:
        offered = Contract.from_bytes((folder / OFFERED).read_bytes())
    except OSError as error:
        raise InputError(f"no changed contract is offered to the agent of {folder}; it says when one is") from error
    differing = consent.differences(read_contract(folder), offered)
    if not decided:
        return differing
    write_atomically(
        folder / ACCEPTED, canonical_json({"contract": offered.sha256, "by": by, "at": time.time()}), PRIVATE
    )
    people.hand_over(folder / ACCEPTED, folder)
    return differing


def _is_accepted(folder: Path, contract: Contract) -> bool:
    try:
        return bool(json.loads((folder / ACCEPTED).read_bytes())["contract"] == contract.sha256)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_contract(folder: Path) -> Contract:
    """Return the contract of a state folder, without holding its lock. Raises InputError if it never joined, or is damaged."""
    path = folder / CONTRACT
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder} holds no agent's state ({error.strerror}); name the --state folder of an agent"
        ) from error
    try:
        return Contract.from_bytes(data)
    except InputError as error:
        raise InputError(
            f"{path} is damaged ({error}): it says what this site agreed to, so it is not made anew silently; if the site "
            "still takes part in the same federation, put it back from a backup, or remove the file and start the agent, which "
            f"then moves finished rounds aside; else use another --state folder{_with_journals(folder)}"
        ) from error


def read_local_adapter(folder: Path) -> round_files.Tensors | None:
    """Return the private tensors that go with a state folder's newest global adapter, without holding its lock.

    None if the site had none yet at that version. Raises InputError if they cannot be read.
    """
    adapter, rounds = Adapter.read(folder / GLOBAL), folder / ROUNDS
    try:
        folders = {number: round_files.folder_of(rounds, number) for number in round_files.numbers(rounds)}
        records = {number: round_files.read_record(folder) for number, folder in folders.items()}
        finished = [record.finished for record in records.values()]
        number = lineage.start(finished, adapter.version, adapter.parent_digest, adapter.digest).local
        if number not in records:
            return round_files.read_first_local(rounds)
        return round_files.read_tensors(folders[number], records[number], round_files.LOCAL)
    except Damaged as damage:
        raise InputError(
            f"{damage.path} is damaged ({damage.reason}); start the agent, which sets it aside and falls back to what is good"
        ) from damage

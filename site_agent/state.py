"""The agent's state folder: who it is, its private local adapter, and what it has not yet sent.

agent.json              random id of this agent
lock                    held while an agent runs
rounds/0003/            one finished local round, renamed into place whole:
    local.safetensors   the local adapter (and private head) after it - never leaves this folder
    delta.bin           the sealed update (the outbox)
    round.json          facts of the update, training metrics, accepted or not
global.safetensors      the newest global adapter the site has
initial.safetensors     version 0 of it
history.jsonl           one line per evaluated version
"""

import fcntl
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from shared.adapter import Adapter
from shared.canonical import canonical_json, sha256_hex, sync_folder, write_atomically
from shared.contract import Contract
from shared.errors import InputError
from shared.layout import Layout
from site_agent.egress import Update, UpdateFacts

CONTRACT = "contract.json"
GLOBAL = "global.safetensors"
INITIAL = "initial.safetensors"


@dataclass(frozen=True)
class LocalRound:
    """A finished local round as it lies on disk."""

    number: int
    update: Update
    accepted: bool


class State:
    """One agent's folder. Only one process may hold it; the second gets an InputError."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (folder / "lock").open("w")
        except OSError as error:
            raise InputError(f"cannot keep state in {folder}: {error.strerror}; give another --state folder") from error
        self.folder = folder
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(
                f"another agent runs on state folder {folder}; stop it, or give this one its own --state"
            ) from None
        for leftover in (folder / "rounds").glob(".*"):
            shutil.rmtree(leftover)
        self.agent_id = self._agent_id()

    def close(self) -> None:
        """Let another agent have the folder."""
        self._lock.close()

    def bind(self, contract: Contract) -> None:
        """Tie the folder to one contract. Raises InputError if it belongs to another: local adapters do not mix."""
        path = self.folder / CONTRACT
        if path.exists() and (held := read_contract(self.folder)) != contract:
            raise InputError(
                f"state folder {self.folder} belongs to contract {held.sha256[:12]} of federation '{held.federation}', the "
                f"aggregator offers {contract.sha256[:12]} of '{contract.federation}'; use another --state folder for it"
            )
        write_atomically(path, contract.to_bytes())

    def commit(self, update: Update, local: Mapping[str, np.ndarray]) -> None:
        """Store a finished round, local adapter and outbox together: all of it or nothing."""
        final = self._round_folder(update.facts.round)
        building = final.with_name(f".{final.name}")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True, mode=0o700)
        write_atomically(building / "local.safetensors", save(dict(local)), 0o600)
        write_atomically(building / "delta.bin", update.payload, 0o600)
        write_atomically(building / "round.json", self._facts(update, accepted=False))
        if final.exists():
            shutil.rmtree(final)
        building.rename(final)
        sync_folder(final.parent)

    def mark_accepted(self, update: Update) -> None:
        """Note that the aggregator has given its receipt."""
        write_atomically(self._round_folder(update.facts.round) / "round.json", self._facts(update, accepted=True))

    def finished_round(self, number: int) -> LocalRound | None:
        """Return the stored round, or None."""
        folder = self._round_folder(number)
        if not folder.exists():
            return None
        facts = _read_json(folder / "round.json", "remove its folder to train the round again")
        payload = (folder / "delta.bin").read_bytes()
        if sha256_hex(payload) != facts["digest"]:
            raise InputError(
                f"{folder}/delta.bin is damaged (its digest differs); remove the folder to train the round again"
            )
        layout = Layout.from_jsonable(facts["layout"])
        return LocalRound(number, Update(UpdateFacts(**facts["facts"]), layout, payload), facts["accepted"])

    def local_adapter(self, before_round: int) -> dict[str, np.ndarray] | None:
        """Return the private tensors as of the last round finished before `before_round`; None if there is none."""
        return read_local_adapter(self.folder, before_round)

    def store_global(self, adapter: Adapter) -> None:
        """Keep the newest global adapter."""
        adapter.write(self.folder / GLOBAL)
        if adapter.version == 0:
            self.store_initial(adapter)

    def store_initial(self, adapter: Adapter) -> None:
        """Keep version 0, from which the arms that were never federated start."""
        adapter.write(self.folder / INITIAL)

    def global_adapter(self) -> Adapter | None:
        """Return the newest global adapter the site has, if any."""
        path = self.folder / GLOBAL
        return Adapter.read(path) if path.exists() else None

    def initial_adapter(self) -> Adapter | None:
        """Return version 0; None at a site that joined when there were later ones."""
        path = self.folder / INITIAL
        return Adapter.read(path) if path.exists() else None

    def append_history(self, entry: dict[str, Any]) -> None:
        """Add one line; a version evaluated again after a restart replaces its line."""
        entries = [e for e in self.history() if e["version"] != entry["version"]]
        lines = [canonical_json(e) for e in [*entries, entry]]
        write_atomically(self.folder / "history.jsonl", b"\n".join(lines) + b"\n")

    def history(self) -> list[dict[str, Any]]:
        """Return what `append_history` stored, oldest first."""
        path = self.folder / "history.jsonl"
        if not path.exists():
            return []
        text = "[" + ",".join(path.read_text(encoding="utf-8", errors="replace").splitlines()) + "]"
        entries: list[dict[str, Any]] = _parse(text, path, "remove it; only the curve of earlier rounds is lost")
        return entries

    def _facts(self, update: Update, *, accepted: bool) -> bytes:
        return canonical_json(
            {
                "facts": asdict(update.facts),
                "digest": update.digest,
                "layout": update.layout.to_jsonable(),
                "accepted": accepted,
            }
        )

    def _agent_id(self) -> str:
        path = self.folder / "agent.json"
        if not path.exists():
            write_atomically(path, canonical_json({"agent_id": uuid.uuid4().hex}))
        advice = "remove it; a new id is made, and the aggregator takes it a minute after the old one's last call"
        agent_id = _read_json(path, advice).get("agent_id")
        if not isinstance(agent_id, str):
            raise InputError(f"{path} names no agent_id; {advice}")
        return agent_id

    def _round_folder(self, number: int) -> Path:
        return self.folder / "rounds" / f"{number:04d}"


def read_contract(folder: Path) -> Contract:
    """Return the contract of a state folder, without holding its lock. Raises InputError if it never joined."""
    try:
        return Contract.from_bytes((folder / CONTRACT).read_bytes())
    except OSError as error:
        raise InputError(
            f"{folder} holds no agent's state ({error.strerror}); name the --state folder of an agent"
        ) from error


def read_local_adapter(folder: Path, before_round: int = 1 << 30) -> dict[str, np.ndarray] | None:
    """Return the private tensors of a state folder as of the last round finished before `before_round`."""
    numbers = sorted(int(p.name) for p in (folder / "rounds").glob("[0-9]*") if int(p.name) < before_round)
    if not numbers:
        return None
    path = folder / "rounds" / f"{numbers[-1]:04d}" / "local.safetensors"
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove its folder to go back one round") from error


def _read_json(path: Path, advice: str) -> dict[str, Any]:
    """Return the object in a file of ours. Raises InputError with `advice` if it is damaged."""
    try:
        value = _parse(path.read_text(encoding="utf-8", errors="replace"), path, advice)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: expected an object; {advice}")
    return value


def _parse(text: str, path: Path, advice: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); {advice}") from error

"""What must be true when a federation is over, whatever happened to it on the way; read from what it left on disk."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from aggregator import verify
from aggregator.manifest import RoundManifest
from aggregator.store import engine, federations
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from aggregator.store.rounds import RoundRecord
from shared.errors import InputError, MedDualLoRAError
from site_agent import round_files, state
from site_agent.damage import Damaged
from tests.chaos import events, materials
from tests.integration.federation import NAME, SITES


@dataclass(kw_only=True)
class Findings:
    """What was found. Counts are of updates over all sites and rounds."""

    phase: str = ""
    digest: str = ""
    """Of the last global version."""
    local: dict[str, str] = field(default_factory=dict)
    """Digest of each site's private tensors, which never leave it."""
    counted: int = 0
    """Updates that rounds were made of."""
    accepted: int = 0
    """Updates that an agent holds a receipt for."""
    lost: int = 0
    """Those of them that their round was not made of."""
    forgotten: int = 0
    """Updates that an aggregator took again after it had accepted them; in the end they are there."""
    twice: int = 0
    """Updates that a round was made of more than once, or two of one site."""
    resumed: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """By site: round and step of every checkpoint that training went on from."""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reference:
    """What the undisturbed run ended with."""

    digest: str
    local: dict[str, str]


def find(store: str, folder: Path) -> Findings:
    """Read a federation's store, its agents' folders and all logs. What cannot be read is a problem among the others."""
    found = Findings()
    _read_logs(folder, found)
    try:
        opened = engine.open_store(store)
        try:
            _read_rounds(opened, folder, found)
            _read_sites(folder, found)
        finally:
            opened.close()
    except (MedDualLoRAError, Damaged) as error:
        found.problems.append(f"what is left behind cannot be read: {error}")
    return found


def differences(found: Findings, reference: Reference) -> list[str]:
    """Return in what the end differs from that of the undisturbed run."""
    problems = []
    if found.digest != reference.digest:
        problems.append(f"the last version has digest {found.digest[:12]}, undisturbed {reference.digest[:12]}")
    for site, digest in reference.local.items():
        if found.local.get(site) != digest:
            problems.append(
                f"the local adapter of {site} has digest {found.local.get(site, '')[:12]}, undisturbed {digest[:12]}"
            )
    return problems


def _read_logs(folder: Path, found: Findings) -> None:
    logs = {path.stem: events.read(path) for path in sorted(folder.glob("*.jsonl"))}
    agents = {site: logs.pop(site, []) for site in SITES}
    found.resumed = {site: events.resumed(log) for site, log in agents.items()}
    again = {(site, number) for site, log in agents.items() for number in events.sent_again(log)}
    again |= events.accepted_again(logs.values())
    found.forgotten = len(again)
    found.problems += [
        f"round {number} forgot the accepted update of {site}, and took it again" for site, number in sorted(again)
    ]


def _read_rounds(opened: Store, folder: Path, found: Findings) -> None:
    state_now = opened.read(federations.state, NAME)
    found.phase = state_now.phase
    if (state_now.phase, state_now.version) != ("finished", materials.ROUNDS):
        found.problems.append(f"the federation is {state_now.phase} at version {state_now.version}")
    found.digest = opened.read(federations.adapter, NAME, state_now.version).digest
    records = {record.state.number: record for record in opened.read(round_rows.records, NAME)}
    entries = {number: _entries(record) for number, record in records.items()}
    _check_closed({n: named for n, named in entries.items() if records[n].state.phase == "closed"}, found)
    _check_receipts(entries, folder, found)
    if missing := found.counted - found.accepted - found.lost:
        found.problems.append(f"{missing} updates were counted without their sites having noted a receipt")
    for check in verify.verify(opened, NAME):
        if check.difference:
            found.problems.append(f"verify, round {check.round}: {check.difference}")


def _entries(record: RoundRecord) -> list[tuple[str, str]]:
    """Sites and digests of the updates a round was made of; of those it has so far, if it is not closed."""
    if record.state.phase != "closed":
        return [(site, update.digest) for site, update in record.state.accepted.items()]
    return [(entry.site, entry.digest) for entry in RoundManifest.from_bytes(record.manifest).entries]


def _check_closed(entries: dict[int, list[tuple[str, str]]], found: Findings) -> None:
    for number, named in entries.items():
        found.counted += len(named)
        sites = sorted(site for site, _ in named)
        if extra := len(sites) - len(set(sites)):
            found.twice += extra
            found.problems.append(f"round {number} counts a site twice: {', '.join(sites)}")
        if sites != sorted(SITES):
            found.problems.append(f"round {number} was made of {', '.join(sites)}")


def _check_receipts(entries: dict[int, list[tuple[str, str]]], folder: Path, found: Findings) -> None:
    for site in SITES:
        rounds = materials.state(folder, site) / state.ROUNDS
        for number in round_files.numbers(rounds):
            record = round_files.read_record(round_files.folder_of(rounds, number))
            if record.fate == "accepted":
                found.accepted += 1
                if entries.get(number, []).count((site, record.files[round_files.DELTA])) != 1:
                    found.lost += 1
                    found.problems.append(f"round {number} lost the update of {site} that it gave a receipt for")


def _read_sites(folder: Path, found: Findings) -> None:
    for site in SITES:
        try:
            tensors = state.read_local_adapter(materials.state(folder, site)) or {}
        except InputError as error:
            found.problems.append(f"the local adapter of {site}: {error}")
            continue
        hashed = hashlib.sha256()
        for name in sorted(tensors):
            hashed.update(name.encode() + tensors[name].tobytes())
        found.local[site] = hashed.hexdigest()

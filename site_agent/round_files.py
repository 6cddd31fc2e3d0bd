"""One finished round as files. All of it is written before the folder gets its name, so it is there whole or not at all.

local.safetensors       the local adapter (and private head) after the round - never leaves the state folder
delta.bin               the sealed update (the outbox)
residual.safetensors    what the codec has kept back so far, float64; absent where nothing is ever lost
round.json              facts of the update, what the round began with, digests of the files and of itself, the update's fate
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.canonical import canonical_json, make_folder, sha256_hex, sync_folder, write_atomically
from shared.errors import InvalidAdapter
from shared.layout import Layout
from site_agent.damage import Damaged
from site_agent.egress import Update, UpdateFacts
from site_agent.lineage import Finished, Start

ROUNDS = "rounds"
LOCAL, DELTA, RESIDUAL, RECORD = "local.safetensors", "delta.bin", "residual.safetensors", "round.json"

Fate = Literal["unsent", "accepted", "refused"]
"""unsent: no answer has come, the aggregator may have it. accepted: its receipt came. refused: it will never count."""
Tensors = dict[str, np.ndarray]

RECORD_TYPES = {"facts": dict, "layout": list, "files": dict, "start": dict, "fate": str, "sha256": str}
FACTS_TYPES = {"round": int, "base_version": int, "training_patients": int, "metrics": dict, "codec": str}
START_TYPES = {"local": int, "residual": int, "received": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """round.json. `files` holds the SHA-256 of every other file by name."""

    facts: UpdateFacts
    layout: Layout
    files: Mapping[str, str]
    start: Start
    fate: Fate = "unsent"

    @property
    def finished(self) -> Finished:
        """What a lineage needs to know of the round."""
        return Finished(
            number=self.facts.round,
            base_version=self.facts.base_version,
            accepted=self.fate == "accepted",
            start=self.start,
        )

    def to_bytes(self) -> bytes:
        """Return the canonical JSON, with the SHA-256 of the canonical JSON of all the rest in it."""
        value = {
            "facts": asdict(self.facts),
            "layout": self.layout.to_jsonable(),
            "files": dict(self.files),
            "start": asdict(self.start),
            "fate": self.fate,
        }
        return canonical_json({**value, "sha256": sha256_hex(canonical_json(value))})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Record":
        """Read what `to_bytes` made. Raises ValueError, InvalidAdapter or RecursionError for anything else."""
        value = _exactly(json.loads(data), RECORD_TYPES)
        facts = _exactly(value["facts"], FACTS_TYPES)
        if any(type(metric) not in (int, float) for metric in facts["metrics"].values()):
            raise ValueError("a metric is no number")
        _exactly(value["files"], dict.fromkeys({LOCAL, DELTA} | (value["files"].keys() & {RESIDUAL}), str))
        if value["fate"] not in get_args(Fate):
            raise ValueError(f"unknown fate {value['fate']!r}")
        record = cls(
            facts=UpdateFacts(**facts),
            layout=Layout.from_jsonable(value["layout"]),
            files=value["files"],
            start=Start(**_exactly(value["start"], START_TYPES)),
            fate=value["fate"],
        )
        if record.to_bytes() != data:
            raise ValueError("its digest differs from the one it was written with")
        return record


def _exactly(value: Any, types: Mapping[str, type]) -> dict[str, Any]:
    """Return a JSON object with just these names, and values of just these types. Raises ValueError naming what differs."""
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} stands where an object should")
    for name in sorted(value.keys() ^ types.keys()):
        raise ValueError(f"'{name[:80]}' is missing" if name in types else f"'{name[:80]}' does not belong there")
    for name, expected in types.items():
        if type(value[name]) is not expected:  # a bool is an int to isinstance
            raise ValueError(f"'{name}' is a {type(value[name]).__name__}, expected {expected.__name__}")
    return value


def folder_of(rounds: Path, number: int) -> Path:
    """Return where a round lies."""
    return rounds / f"{number:04d}"


def numbers(rounds: Path) -> list[int]:
    """Return the rounds there are, ascending. 0 is none: it may hold a local adapter to begin with."""
    named = (
        int(path.name)
        for path in rounds.glob("[0-9]*")
        if path.name.isdecimal() and path == folder_of(rounds, int(path.name))
    )
    return sorted(number for number in named if number)


def write(rounds: Path, update: Update, local: Mapping[str, np.ndarray], start: Start, residual: Tensors) -> None:
    """Store a round under its number, in place of one that may be there. Raises OSError, and leaves nothing then."""
    final = folder_of(rounds, update.facts.round)
    building, replaced = final.with_name(f".{final.name}"), final.with_name(f".{final.name}-replaced")
    shutil.rmtree(building, ignore_errors=True)
    make_folder(rounds, 0o700)
    files = {LOCAL: save(dict(local)), DELTA: update.payload} | ({RESIDUAL: save(residual)} if residual else {})
    digests = {name: sha256_hex(data) for name, data in files.items()}
    record = Record(facts=update.facts, layout=update.layout, files=digests, start=start)
    try:
        building.mkdir(mode=0o700)
        for name, data in files.items():
            write_atomically(building / name, data, 0o600)
        write_atomically(building / RECORD, record.to_bytes(), 0o600)
    except OSError:
        shutil.rmtree(building, ignore_errors=True)  # on a full disk, what is half written is in the way
        raise
    if final.exists():
        final.rename(replaced)
    building.rename(final)
    sync_folder(rounds)
    shutil.rmtree(replaced, ignore_errors=True)


def read_record(folder: Path) -> Record:
    """Return a round's record. Raises Damaged, also if it is the record of another round than its folder's name says."""
    try:
        record = Record.from_bytes(_bytes(folder / RECORD))
    except (ValueError, RecursionError, InvalidAdapter) as error:
        raise Damaged(folder / RECORD, f"it is not a round's record: {error}") from error
    if folder != folder_of(folder.parent, record.facts.round):
        raise Damaged(folder / RECORD, f"it is the record of round {record.facts.round}")
    return record


def mark(folder: Path, fate: Fate) -> None:
    """Note what became of a round's update. Raises Damaged, OSError."""
    write_atomically(folder / RECORD, replace(read_record(folder), fate=fate).to_bytes(), 0o600)


def read_file(folder: Path, record: Record, name: str) -> bytes:
    """Return one of a round's files. Raises Damaged unless its bytes are those that were written."""
    data = _bytes(folder / name)
    if sha256_hex(data) != record.files.get(name):
        raise Damaged(folder / name, "its digest differs from the one noted when it was written")
    return data


def read_tensors(folder: Path, record: Record, name: str) -> Tensors:
    """Return a round's local adapter or residual. Raises Damaged."""
    return _tensors(folder / name, read_file(folder, record, name))


def read_first_local(rounds: Path) -> Tensors | None:
    """Return the local adapter that the first round begins with, if one was laid here. Raises Damaged."""
    path = folder_of(rounds, 0) / LOCAL
    return _tensors(path, _bytes(path)) if path.exists() else None


def _tensors(path: Path, data: bytes) -> Tensors:
    try:
        tensors = dict(load(data))
    except SafetensorError as error:
        raise Damaged(path, f"it is no safetensors file ({error})") from error
    for name, value in sorted(tensors.items()):
        if not np.isfinite(value).all():
            raise Damaged(path, f"tensor {name} is not finite")
    return tensors


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Damaged(path, f"it cannot be read: {error.strerror}") from error

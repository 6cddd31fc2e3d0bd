"""One finished round as files. All of it is written before the folder gets its name, so it is there whole or not at all.

local.safetensors       the local adapter (and private head) after the round - never leaves the state folder
delta.bin               the sealed update (the outbox)
residual.safetensors    what the codec has kept back so far, float64; absent where nothing is ever lost
round.json              facts of the update, what the round began with, digests of the files, what became of the update
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

LOCAL, DELTA, RESIDUAL, RECORD = "local.safetensors", "delta.bin", "residual.safetensors", "round.json"

Fate = Literal["unsent", "accepted", "refused"]
"""unsent: no answer has come, the aggregator may have it. accepted: its receipt came. refused: it will never count."""
Tensors = dict[str, np.ndarray]


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
        """Return the canonical JSON."""
        value = {
            "facts": asdict(self.facts),
            "layout": self.layout.to_jsonable(),
            "files": dict(self.files),
            "start": asdict(self.start),
            "fate": self.fate,
        }
        return canonical_json(value)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Record":
        """Read what `to_bytes` made. Raises ValueError, KeyError, TypeError or InvalidAdapter for anything else."""
        value: dict[str, Any] = json.loads(data)
        if value["fate"] not in get_args(Fate):
            raise ValueError(f"unknown fate {value['fate']!r}")
        return cls(
            facts=UpdateFacts(**value["facts"]),
            layout=Layout.from_jsonable(value["layout"]),
            files={str(name): str(digest) for name, digest in value["files"].items()},
            start=Start(**value["start"]),
            fate=value["fate"],
        )


def folder_of(rounds: Path, number: int) -> Path:
    """Return where a round lies."""
    return rounds / f"{number:04d}"


def numbers(rounds: Path) -> list[int]:
    """Return the rounds there are, ascending. 0 is none: it may hold a local adapter to begin with."""
    return sorted(int(path.name) for path in rounds.glob("[0-9]*") if path.name.isdecimal() and int(path.name) > 0)


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
    """Return a round's record. Raises Damaged."""
    try:
        return Record.from_bytes(_bytes(folder / RECORD))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidAdapter) as error:
        raise Damaged(folder / RECORD, f"it does not hold a round's facts ({type(error).__name__})") from error


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
        return dict(load(data))
    except SafetensorError as error:
        raise Damaged(path, f"it is no safetensors file ({error})") from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Damaged(path, f"it cannot be read: {error.strerror}") from error

"""Checkpoints of a round that is being trained: enough to go on with the same bytes as if nothing had happened.

A file is one line with the SHA-256 of the rest, then what `torch.save` made of (binding, progress); it is read without
unpickling anything but tensors and plain values. Of the round at hand the last two are kept, so that one damaged file costs a few
seconds of training. They hold private tensors: mode 0600, and they never leave the state folder.

A checkpoint that cannot be written is no reason to stop training: it is said, and tried again later.
"""

import errno
import io
import math
import pickle
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch

from shared.canonical import make_folder, sha256_hex, write_atomically
from site_agent.damage import Damaged, Infirmary

log = structlog.get_logger()
FORMAT = 1
KEPT = 2
NAME = re.compile(r"checkpoint-[0-9]{8}")
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a checkpoint is of. One that differs in anything is of no use and left alone.

    contract, received, local, cases: SHA-256 of the contract, of the global and the local adapter that the round started
    from, and of the list of training cases.
    """

    contract: str
    round: int
    base_version: int
    received: str
    local: str
    cases: str
    seed: int
    key: str = ""
    """Name of the key that the round's noise is drawn from; empty without differential privacy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training stands before optimiser step `step`: batches are a pure function of (seed, round, epoch, step).

    global_tensors, local_tensors: all trainable parameters by name. losses: of the last epoch's steps so far.
    """

    step: int
    losses: list[float]
    global_tensors: dict[str, torch.Tensor]
    local_tensors: dict[str, torch.Tensor]
    optimiser: dict[str, Any]
    generators: dict[str, torch.Tensor]

    @property
    def not_finite(self) -> str:
        """The first tensor with a value that is not finite; empty if all are."""
        tensors = self.global_tensors | self.local_tensors
        return next((name for name in sorted(tensors) if not bool(tensors[name].isfinite().all())), "")


def generators(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of torch's random generators that training on `device` could use."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Set what `generators` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def write(path: Path, binding: Binding, progress: Progress) -> int:
    """Write one checkpoint and return its bytes. Raises OSError."""
    buffer = io.BytesIO()
    values = {name: getattr(progress, name) for name in Progress.__slots__}
    torch.save({"format": FORMAT, "binding": asdict(binding), "progress": values}, buffer)
    payload = buffer.getvalue()
    write_atomically(path, sha256_hex(payload).encode() + b"\n" + payload, 0o600)
    return len(payload)


def read(path: Path) -> tuple[Binding, Progress] | None:
    """Return what a checkpoint holds; None if its bytes are sound but another release, of ours or of torch, wrote them.

    Raises Damaged.
    """
    try:
        digest, _, payload = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise Damaged(path, f"it cannot be read: {error.strerror}") from error
    if digest != sha256_hex(payload).encode():
        raise Damaged(path, "its digest differs from the one it was written with")
    try:
        value = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        if value["format"] != FORMAT:
            return None
        return Binding(**value["binding"]), Progress(**value["progress"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError):
        return None


@dataclass(frozen=True)
class Checkpoints:
    """The folder training/ of one agent's state. `every_s`: seconds of training between two checkpoints."""

    folder: Path
    every_s: float
    infirmary: Infirmary
    warn: Callable[[str], None] = lambda text: None

    def keeper(self, binding: Binding) -> "Keeper":
        """Return what keeps the checkpoints of one round."""
        return Keeper(self, binding)

    def clear(self) -> None:
        """Remove all checkpoints: their round is committed, or over."""
        for path in self.paths():
            path.unlink()

    def paths(self) -> list[Path]:
        """Return the checkpoints there are, oldest first; files of any other name are none."""
        found = (path for path in self.folder.glob("checkpoint-*") if NAME.fullmatch(path.name) and path.is_file())
        return sorted(found, key=_sequence)


@dataclass
class Keeper:
    """Finds and writes the checkpoints of one round."""

    _of: Checkpoints
    _binding: Binding
    _pause_s: float = field(init=False)
    _due_at: float = field(init=False)
    _failed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._pause_s = self._of.every_s
        self._due_at = time.monotonic() + self._pause_s

    def newest(self) -> Progress | None:
        """Return where training stood last, as far as it can be read; None to begin at the start of the round."""
        for path in reversed(self._of.paths()):
            try:
                held = read(path)
            except Damaged as damage:
                self._of.infirmary.set_aside(
                    damage, "training goes on from the checkpoint before, or the round's start"
                )
                continue
            difference = _difference(held, self._binding)
            if held is not None and not difference:
                log.info("training_resumed", round=self._binding.round, step=held[1].step)
                return held[1]
            log.info("checkpoint_ignored", path=path.name, differs=difference)
        return None

    @property
    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        return time.monotonic() >= self._due_at

    def save(self, progress: Progress) -> None:
        """Write a checkpoint and drop those before the last one; a failure is only said. None is written of tensors that are not
        finite: nothing could go on from it."""
        if name := progress.not_finite:
            log.warning("checkpoint_not_finite", step=progress.step, reason=f"tensor {name} is not finite")
            self._due_at = math.inf  # it does not become finite again
            return
        paths = self._of.paths()
        sequence = _sequence(paths[-1]) + 1 if paths else 1
        try:
            make_folder(self._of.folder, 0o700)
            size = write(self._of.folder / f"checkpoint-{sequence:08d}", self._binding, progress)
            for path in paths[: 1 - KEPT]:
                path.unlink()
        except OSError as error:
            self._fail(error)
        else:
            self._pause_s = self._of.every_s
            if self._failed:
                log.info("checkpoint_written_again", step=progress.step, bytes=size)
            self._failed = False
        self._due_at = time.monotonic() + self._pause_s

    def _fail(self, error: OSError) -> None:
        self._pause_s = min(LONGEST_PAUSE_S, max(2 * self._pause_s, 1.0))
        log.warning("checkpoint_failed", error=error.strerror, retry_in_s=self._pause_s)
        if not self._failed:
            advice = "; make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            self._of.warn(
                f"a checkpoint cannot be written in {self._of.folder}: {error.strerror}{advice}. Training goes on; if the "
                "agent were stopped now, this round would begin again from the last checkpoint there is"
            )
        self._failed = True


def _sequence(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _difference(held: tuple[Binding, Progress] | None, binding: Binding) -> str:
    """Name the first thing in which a checkpoint is not one of this round to go on from; empty if it is."""
    if held is None:
        return "format"
    mine, its = asdict(binding), asdict(held[0])
    return next((name for name in mine if mine[name] != its[name]), "") or held[1].not_finite

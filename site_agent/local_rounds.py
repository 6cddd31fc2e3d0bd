"""The rounds a site has finished: its outbox, and its local adapter and residual as of each of them.

A round that is damaged is set aside, and what it was needed for falls back to the last good thing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shared.adapter import Adapter
from site_agent import lineage, round_files
from site_agent.damage import Damaged, Infirmary
from site_agent.egress import Update
from site_agent.lineage import Start
from site_agent.round_files import LOCAL, RESIDUAL, Fate, Record, Tensors

NO_START = Start()


@dataclass(frozen=True)
class LocalRound:
    """A finished local round as it lies on disk."""

    number: int
    update: Update
    fate: Fate
    start: Start

    @property
    def accepted(self) -> bool:
        """Whether the aggregator has given its receipt."""
        return self.fate == "accepted"


class LocalRounds:
    """The folder rounds/ of one agent's state."""

    def __init__(self, folder: Path, infirmary: Infirmary) -> None:
        self._folder, self._infirmary = folder, infirmary

    def commit(
        self,
        update: Update,
        local: Mapping[str, np.ndarray],
        start: Start = NO_START,
        residual: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Store a finished round - outbox, local adapter, residual, what it began with: all of it or nothing."""
        round_files.write(self._folder, update, local, start, dict(residual or {}))

    def mark(self, number: int, fate: Fate) -> None:
        """Note what became of a round's update. Nothing to note if the round has been set aside."""
        if number in round_files.numbers(self._folder):
            try:
                round_files.mark(self._path(number), fate)
            except Damaged as damage:
                self._set_round_aside(number, damage)

    def find(self, number: int) -> LocalRound | None:
        """Return a round with all its files as they were written; None if it is not there or had to be set aside."""
        folder = self._path(number)
        if not folder.exists():
            return None
        try:
            record = round_files.read_record(folder)
            payload = {name: round_files.read_file(folder, record, name) for name in record.files}[round_files.DELTA]
        except Damaged as damage:
            self._set_round_aside(number, damage)
            return None
        return LocalRound(number, Update(record.facts, record.layout, payload), record.fate, record.start)

    def unsettled(self, before_round: int) -> list[LocalRound]:
        """Return earlier rounds of which it is not known whether the aggregator has them."""
        unsent = [n for n, record in self._records(before_round).items() if record.fate == "unsent"]
        return [found for number in unsent if (found := self.find(number)) is not None]

    def start(self, before_round: int, received: Adapter) -> Start:
        """Return what a round begins with that is given this version, as far as it can be read."""
        records = self._records(before_round)
        finished = [record.finished for record in records.values()]
        start = lineage.start(finished, received.version, received.parent_digest, received.digest)
        return replace(start, local=self._sound_local(records, start.local), residual=self._sound_residual(start))

    def local(self, number: int) -> Tensors | None:
        """Return the private tensors as of a round; None for 0 unless some were laid there to begin with."""
        if number:
            folder = self._path(number)
            return round_files.read_tensors(folder, round_files.read_record(folder), LOCAL)
        try:
            return round_files.read_first_local(self._folder)
        except Damaged as damage:
            self._infirmary.set_aside(damage, "the site begins from the local adapter its seed gives")
            return None

    def residual(self, number: int) -> Tensors:
        """Return the residual as of a round; empty for 0 and where the codec loses nothing."""
        folder = self._path(number)
        if not number or RESIDUAL not in (record := round_files.read_record(folder)).files:
            return {}
        return round_files.read_tensors(folder, record, RESIDUAL)

    def _records(self, before_round: int) -> dict[int, Record]:
        found = {}
        for number in round_files.numbers(self._folder):
            if number < before_round:
                try:
                    found[number] = round_files.read_record(self._path(number))
                except Damaged as damage:
                    self._set_round_aside(number, damage)
        return found

    def _sound_local(self, records: Mapping[int, Record], number: int) -> int:
        """Return `number`, or the nearest round before it whose local adapter can be read."""
        while number:
            before = max((n for n in records if n < number), default=0)
            if number not in records:
                number = before  # set aside, and told then
                continue
            try:
                self.local(number)
            except Damaged as damage:
                number = min(records[number].start.local, before)
                if damage.path.exists():
                    whence = f"of round {number}" if number else "before the first round"
                    self._infirmary.set_aside(damage, f"the local adapter {whence} is taken")
                continue
            return number
        return 0

    def _sound_residual(self, start: Start) -> int:
        """Return the round whose residual is in force, or 0 if it cannot be read: what it held back is then lost."""
        try:
            self.residual(start.residual)
        except Damaged as damage:
            if damage.path.exists():
                self._infirmary.set_aside(damage, "what the codec had kept back is not made up for")
            return 0
        return start.residual

    def _set_round_aside(self, number: int, damage: Damaged) -> None:
        fallback = f"round {number} is trained again if it is still open, else what was before it is taken"
        self._infirmary.set_aside(damage, fallback, whole=self._path(number))

    def _path(self, number: int) -> Path:
        return round_files.folder_of(self._folder, number)

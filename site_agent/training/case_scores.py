"""How every arm scores every case of a site: what the site's own report is computed from. It names patients and never leaves."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

import numpy as np

from shared.errors import InputError
from site_agent.training import metrics

CaseSet = Literal["validation", "test"]
SETS: tuple[CaseSet, ...] = get_args(CaseSet)
OWN = ("case", "set", "label")
MARGIN = "margin_"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseScores:
    """Margins of n cases under each arm, by arm: logit(disease) - logit(normal), float64 (n,). labels: (n,), 1 is disease."""

    keys: tuple[str, ...] = ()
    sets: tuple[CaseSet, ...] = ()
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    margins: Mapping[str, np.ndarray] = field(default_factory=dict)

    def of(self, wanted: CaseSet) -> Self:
        """Return the cases of one set."""
        kept = np.array([one == wanted for one in self.sets], dtype=bool)
        return type(self)(
            keys=tuple(np.array(self.keys, dtype=object)[kept]),
            sets=(wanted,) * int(kept.sum()),
            labels=self.labels[kept],
            margins={arm: values[kept] for arm, values in self.margins.items()},
        )

    def __len__(self) -> int:
        return len(self.keys)

    def to_csv(self) -> bytes:
        """Return the table; a margin is written so that reading it gives the same number."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*OWN, *(MARGIN + arm for arm in self.margins)])
        writer.writerows(self._rows())
        return text.getvalue().encode()

    def _rows(self) -> Iterator[list[object]]:
        for at, (key, name, label) in enumerate(zip(self.keys, self.sets, self.labels, strict=True)):
            yield [key, name, int(label), *(repr(float(values[at])) for values in self.margins.values())]

    @classmethod
    def from_csv(cls, data: bytes) -> Self:
        """Read what `to_csv` made. Raises InputError if it is something else."""
        try:
            head, *rows = csv.reader(io.StringIO(data.decode()))
            arms = [name.removeprefix(MARGIN) for name in head[len(OWN) :]]
            if head != [*OWN, *(MARGIN + arm for arm in arms)]:
                raise ValueError(f"its columns are {', '.join(head)}")
            if unknown := {row[1] for row in rows} - set(SETS):
                raise ValueError(f"'{min(unknown)}' is no set of cases")
            numbers = [list(map(float, row[len(OWN) :])) for row in rows]
            table = np.array(numbers, dtype=np.float64).reshape(len(rows), len(arms))
            return cls(
                keys=tuple(row[0] for row in rows),
                sets=tuple(SETS[SETS.index(row[1])] for row in rows),
                labels=np.array([("0", "1").index(row[2]) for row in rows], dtype=np.int64),
                margins={arm: table[:, at] for at, arm in enumerate(arms)},
            )
        except (ValueError, IndexError, csv.Error) as error:
            raise InputError(f"it is no table of case scores: {error}") from error


def threshold(validation: CaseScores, arm: str) -> float | None:
    """Return the margin from which on the site calls disease under an arm; None without validation cases."""
    return metrics.shrunk_threshold(validation.margins[arm], validation.labels) if len(validation) else None


def joined(parts: Sequence[CaseScores]) -> CaseScores:
    """Return the cases of several tables of the same arms, one after the other."""
    full = [part for part in parts if len(part)]
    if not full:
        return CaseScores()
    return CaseScores(
        keys=tuple(key for part in full for key in part.keys),
        sets=tuple(name for part in full for name in part.sets),
        labels=np.concatenate([part.labels for part in full]),
        margins={arm: np.concatenate([part.margins[arm] for part in full]) for arm in full[0].margins},
    )

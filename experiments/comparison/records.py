"""What a finished cell leaves: predictions of every held-out case, and what its rounds were like. One CSV and one JSON a cell.

A cell is one method in one scenario on one run. A run is a fresh cohort (phantom), or one fold of one shuffle (real data).
"""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shared.canonical import write_atomically
from shared.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One held-out case. `margin`: logit(disease) - logit(normal), probability 0.5 at 0. `threshold`: the margin from which on
    its site calls disease, chosen on validation cases alone. label: 0 normal, 1 disease."""

    run: int
    fold: int
    site: str
    case: str
    label: int
    margin: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """What one round was like. Norms and cosines are of the adapted layers' products s B A, all layers together."""

    number: int
    train_loss: float
    aggregation_error: float | None = None
    """|| the sites' mean product - what the rule makes of it || / || the former ||, before a server optimiser; None if nothing is
    aggregated."""
    factor_error: float | None = None
    """The same if the factors had been averaged: what a rule on products removes."""
    norm_ratio: dict[str, float] = field(default_factory=dict)
    """|| local || / || global ||, by site; empty for methods without a local part."""
    cosine: dict[str, float] = field(default_factory=dict)
    """Between the local and the global product, by site."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is known of a finished cell besides its predictions."""

    scenario: str
    method: str
    run: int
    seconds: float
    """Wall clock of training and evaluation on one thread; without making the cohort."""
    steps: int
    """Optimiser steps, all sites and rounds together."""
    bytes_up: int
    """Payload of all updates, all sites and rounds together."""
    bytes_down: int
    digest: str
    """Of the last global version; empty where there is none."""
    rounds: tuple[RoundRecord, ...]
    blocks: tuple[int, ...] = ()
    """Transformer blocks that were adapted; of several federations those of the first."""
    code: str = ""
    """The commit that the cell was computed by, with "+" if files differed from it; empty outside of a checkout, and of cells of
    releases that did not note it."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of Python and packages that computed it; empty of cells of releases that noted the folder's alone."""


def write(folder: Path, cell: Cell, predictions: Iterable[Prediction]) -> None:
    """Write both files; the JSON last: a cell is finished when it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_predictions(folder / f"{stem(cell.method, cell.run)}.csv", predictions)
    text = json.dumps(asdict(cell), indent=1)
    write_atomically(folder / f"{stem(cell.method, cell.run)}.json", text.encode())


def stem(method: str, run: int) -> str:
    """Return the name of a cell's files without their endings."""
    return f"{method}-run{run}"


def read(path: Path) -> Cell:
    """Read a cell's JSON. Raises InputError naming the file."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rounds = tuple(RoundRecord(**one) for one in values.pop("rounds"))
        return Cell(rounds=rounds, blocks=tuple(values.pop("blocks", ())), **values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no finished cell ({error}); remove it, and run the same command again") from error


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write a CSV that reads back to the same numbers."""
    names = [one.name for one in fields(Prediction)]
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for one in predictions:
            values = (getattr(one, name) for name in names)
            writer.writerow([repr(value) if isinstance(value, float) else value for value in values])
    part.replace(path)


def read_predictions(path: Path) -> Sequence[Prediction]:
    """Read what `write_predictions` wrote. Raises InputError naming the file."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Prediction(
                    run=int(row["run"]),
                    fold=int(row["fold"]),
                    site=row["site"],
                    case=row["case"],
                    label=int(row["label"]),
                    margin=float(row["margin"]),
                    threshold=float(row["threshold"]),
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} holds no predictions ({error}); remove it with its .json, and run the same command again"
        ) from error

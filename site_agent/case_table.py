"""Tables of cases to judge, and of what was found: one row in, one row out. Both are private."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.canonical import write_atomically
from shared.errors import InputError
from site_agent.data.layouts import FrameFile, cine_frames
from site_agent.data.layouts.records import read_table, require_columns, whole_number
from site_agent.evaluation import Evaluation
from site_agent.predict import DISEASE, Model, Prediction
from site_agent.state import PRIVATE

FOUND = (
    "probability",
    "logit_margin",
    "threshold",
    "threshold_from",
    "call",
    "call_at_half",
    "calibrated",
    "images",
    "error",
)


@dataclass(frozen=True, slots=True)
class Judged:
    """One row: what it was, what was found, and how its images were read; or why nothing was."""

    cells: Mapping[str, str]
    prediction: Prediction | None
    images: str
    error: str


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a table with the columns case, ed, es (two volumes), or case, image, ed, es (a cine, and its frames from 0).

    Raises InputError naming what is missing.
    """
    if not path.is_file():
        raise InputError(f"there is no table {path}; write one with the columns case, ed, es")
    rows = read_table(path)
    require_columns(rows, ("case", "ed", "es"), path)
    if clash := sorted(rows[0].keys() & set(FOUND)):
        raise InputError(
            f"{path} has the column(s) {', '.join(clash)}, which the result is to have; rename or remove them"
        )
    return rows


def judge(
    model: Model,
    rows: Sequence[Mapping[str, str]],
    folder: Path,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Judged]:
    """Judge rows one after the other; one that cannot be used says why, and the others go on. Paths are relative to `folder`."""
    judged: list[Judged] = []
    for row in rows:
        try:
            prediction, images = model.read_and_judge(*frames_of(row, folder))
            judged.append(Judged(row, prediction, images, ""))
        except InputError as error:
            judged.append(Judged(row, None, "", " ".join(str(error).split())))
        on_progress(len(judged), len(rows))
    return judged


def frames_of(row: Mapping[str, str], folder: Path) -> tuple[FrameFile, FrameFile]:
    """ED and ES of a row. Raises InputError."""
    for name in ("ed", "es"):
        if not row[name]:
            raise InputError(f"the column {name} is empty")
    if not row.get("image"):
        return FrameFile(folder / row["ed"]), FrameFile(folder / row["es"])
    ed, es = whole_number(row["ed"], "ed"), whole_number(row["es"], "es")
    return cine_frames(folder / row["image"], ed, es, row.get("series", ""))


def found(model: Model, judged: Judged) -> dict[str, str]:
    """The cells that are added to a row, by `FOUND`."""
    threshold, prediction = model.threshold, judged.prediction
    if prediction is None:
        return {**dict.fromkeys(FOUND, ""), "error": judged.error}
    two = threshold is not None
    return {
        "probability": repr(float(prediction.probabilities[DISEASE]))
        if two
        else repr(float(prediction.probabilities.max())),
        "logit_margin": repr(prediction.margin) if two else "",
        "threshold": repr(threshold.probability) if threshold else "",
        "threshold_from": threshold.kind if threshold else "",
        "call": prediction.called(threshold),
        "call_at_half": prediction.called(None),
        "calibrated": "no",
        "images": judged.images,
        "error": "",
    }


def predictions_csv(model: Model, judged: Sequence[Judged]) -> str:
    """Every row with what was found of it."""
    return _csv([{**one.cells, **found(model, one)} for one in judged])


def evaluation_csv(evaluations: Sequence[Evaluation]) -> str:
    """Every case once: its label, and its probability and margin under each part."""
    rows: list[dict[str, Any]] = []
    for at, case in enumerate(evaluations[0].cases):
        row: dict[str, Any] = {"case": case.key, "split": case.split, "label": case.label}
        for one in evaluations:
            prediction = one.predictions[at]
            row[f"probability_{one.model.part}"] = repr(float(prediction.probabilities[DISEASE]))
            row[f"logit_margin_{one.model.part}"] = repr(prediction.margin)
            row[f"call_{one.model.part}"] = prediction.called(one.model.threshold)
        rows.append(row)
    return _csv(rows)


def write(path: Path, text: str) -> None:
    """Write a table that its owner alone can read. Raises InputError."""
    try:
        write_atomically(path, text.encode(), PRIVATE)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

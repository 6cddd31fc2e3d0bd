"""A table of findings, how a person reads its figures, and its texts as Markdown and CSV; the latter has all digits."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from experiments.comparison.statistics import Interval

Kind = Literal["text", "words", "share", "signed", "seconds", "bytes", "p", "count"]
"""text: a name. words: a sentence, which may break. share: in [0, 1]. signed: a difference of shares. count: a whole number."""

NOTHING = "-"
DEPENDENT = "DEPENDENT"


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean over runs and standard deviation between them, None of one run."""

    mean: float
    sd: float | None


@dataclass(frozen=True, slots=True)
class Adjusted:
    """A p value, and what Holm's adjustment makes of it."""

    p: float
    holm: float


Value = str | int | float | Spread | Interval | Adjusted | None


@dataclass(frozen=True, slots=True)
class Column:
    """`group`: a heading over neighbouring columns that share it. `machine`: whether it is in the CSV alone."""

    key: str
    title: str
    kind: Kind = "share"
    group: str = ""
    machine: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows by column key; an empty cell has no key. `dependent`: its p values are of folds of one cohort, and say so."""

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Value]]
    note: str = ""
    dependent: bool = False

    @property
    def visible(self) -> Sequence[Column]:
        return [column for column in self.columns if not column.machine]


def shown(table: Table, column: Column, row: Mapping[str, Value]) -> str:
    """Return a cell as a person reads it; NOTHING if there is nothing or it is NaN."""
    value = row.get(column.key)
    text = _text(value, column.kind)
    tested = text != NOTHING and (column.kind == "p" or isinstance(value, Adjusted))
    return f"{text} {DEPENDENT}" if tested and table.dependent else text


def _text(value: Value, kind: Kind) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, str):
        return value
    if isinstance(value, Adjusted):
        return f"{probability(value.p)} (Holm {probability(value.holm)})"
    if isinstance(value, Spread):
        mean = _text(value.mean, kind)
        return mean if value.sd is None or mean == NOTHING else f"{mean} ± {_number(value.sd, kind)}"
    if isinstance(value, Interval):
        mean = _text(value.value, kind)
        return mean if mean == NOTHING else f"{mean} [{_text(value.low, kind)}, {_text(value.high, kind)}]"
    return _number(value, kind)


def _number(value: float, kind: Kind) -> str:
    if kind == "p":
        return probability(value)
    if kind == "bytes":
        return size(value)
    if isinstance(value, int) or kind == "count":
        return f"{value:,.0f}"
    if kind == "seconds":
        return f"{value:,.1f}"
    text = f"{value:+.3f}" if kind == "signed" else f"{value:.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text


def probability(p: float) -> str:
    """Return a p value with two digits that say something; three decimals from 0.01 on."""
    if p < 0.0001:
        return "<0.0001"
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def size(count: float) -> str:
    """Return bytes as a person can hold on to."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count:.0f} B"


def heading(column: Column) -> str:
    """Return a column's title with its group before it, for tables of one heading."""
    return f"{column.group}: {column.title}" if column.group else column.title


def groups(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    """Return neighbouring columns together that have the same group."""
    return [(group, list(members)) for group, members in groupby(columns, key=lambda column: column.group)]


def left(column: Column) -> bool:
    """Return whether a column is of text, which begins at the left."""
    return column.kind in ("text", "words")


def markdown(table: Table) -> str:
    """Return the table for GitHub: caption, table, note."""
    lines = [
        f"**{_marked(table.caption)}**",
        "",
        _line(_marked(heading(column)) for column in table.visible),
        _line(":--" if left(column) else "--:" for column in table.visible),
        *(_line(_marked(shown(table, column, row)) for column in table.visible) for row in table.rows),
    ]
    return "\n".join([*lines, *(["", _marked(table.note)] if table.note else [])]) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _marked(text: str) -> str:
    for sign, written in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("*", "\\*"), ("~", "\\~")):
        text = text.replace(sign, written)
    return text


def comma_separated(table: Table) -> str:
    """Return the table for machines: all digits, a column for each part of an interval, empty where there is nothing."""
    rows = flat(table)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else [one.key for one in table.columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def flat(table: Table) -> list[dict[str, str | int | float | None]]:
    """Return the rows as plain values, all with the same keys; an interval is `x`, `x_low` and `x_high`. NaN is None."""
    rows = [
        {name: v for column in table.columns for name, v in _parts(column.key, row.get(column.key))}
        for row in table.rows
    ]
    names = [
        name
        for column in table.columns
        for name in dict.fromkeys(name for row in table.rows for name, _ in _parts(column.key, row.get(column.key)))
    ]
    return [{name: _finite(row.get(name)) for name in names} for row in rows]


def _parts(key: str, value: Value) -> list[tuple[str, str | int | float | None]]:
    if isinstance(value, Spread):
        return [(key, value.mean), (f"{key}_sd", value.sd)]
    if isinstance(value, Interval):
        return [(key, value.value), (f"{key}_low", value.low), (f"{key}_high", value.high)]
    if isinstance(value, Adjusted):
        return [(key, value.p), (f"{key}_holm", value.holm)]
    return [(key, value)]


def _finite(value: str | int | float | None) -> str | int | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value

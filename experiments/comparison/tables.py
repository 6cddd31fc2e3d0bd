"""A table of findings as Markdown, LaTeX and CSV. A figure is written the same way in all but the CSV, which has all digits."""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.comparison.statistics import Interval
from shared.canonical import write_atomically

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


def write(folder: Path, tables: Sequence[Table]) -> None:
    """Write each table three times: .md, .tex, .csv."""
    folder.mkdir(exist_ok=True)
    for table in tables:
        for suffix, text in ((".md", markdown(table)), (".tex", latex(table)), (".csv", comma_separated(table))):
            write_atomically(folder / f"{table.name}{suffix}", text.encode())


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
    return f"{value:+.3f}" if kind == "signed" else f"{value:.3f}"


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


LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "→": r"$\to$",
    "−": "$-$",
    "Δ": r"$\Delta$",
    "–": "--",
}


def escaped(text: str) -> str:
    """Return a text that LaTeX sets as it is written here."""
    return "".join(LATEX.get(sign, sign) for sign in text)


def latex(table: Table) -> str:
    """Return the table as a float; it needs the package booktabs. Columns of words have a width and break."""
    columns = "".join(
        "p{0.22\\linewidth}" if one.kind == "words" else "l" if left(one) else "r" for one in table.visible
    )
    caption = f"{table.caption}. {table.note}" if table.note else table.caption
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{escaped(caption)}}}",
            f"\\label{{tab:comparison-{table.name.replace('_', '-')}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _tex_line(heading(column) for column in table.visible),
            r"\midrule",
            *(_tex_line(shown(table, column, row) for column in table.visible) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex_line(cells: Iterable[str]) -> str:
    return f"{' & '.join(_tex_cell(cell) for cell in cells)} \\\\"


def _tex_cell(text: str) -> str:
    return re.sub(r"(^|[\[ ])-(?=\d)", r"\1$-$", escaped(text))


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

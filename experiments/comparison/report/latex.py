"""Tables as LaTeX floats, of the packages booktabs and graphicx. No sign of a text is taken for markup."""

import re
from collections.abc import Iterable

from experiments.comparison.report import tables
from experiments.comparison.report.tables import Table

WIDE = 7
"""Columns from which on a table is scaled to the width of the page."""
WORDS = 0.75
"""Share of the width for columns of words, all together."""
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
    """Return the table. One of many columns is scaled to the page's width; columns of words have a width, and break."""
    columns = table.visible
    words = sum(column.kind == "words" for column in columns)
    width = f"p{{{WORDS / max(1, words):.3f}\\linewidth}}"
    layout = "".join(width if one.kind == "words" else "l" if tables.left(one) else "r" for one in columns)
    before, after = (
        (r"\resizebox{\linewidth}{!}{%", "}") if len(columns) > WIDE and not words else ("{\\scriptsize", "}")
    )
    lines = [
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{escaped(f'{table.caption}. {table.note}' if table.note else table.caption)}}}",
        f"\\label{{tab:comparison-{table.name.replace('_', '-')}}}",
        before,
        f"\\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        *_heading(table),
        r"\midrule",
        *(_line(_cell(tables.shown(table, column, row)) for column in columns) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        after,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _heading(table: Table) -> list[str]:
    below = _line(escaped(column.title) for column in table.visible)
    if not any(column.group for column in table.visible):
        return [below]
    spans = (
        f"\\multicolumn{{{len(members)}}}{{c}}{{{escaped(group)}}}" if group else "& " * (len(members) - 1)
        for group, members in tables.groups(table.visible)
    )
    return [_line(span.strip() for span in spans), below]


def _line(cells: Iterable[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _cell(text: str) -> str:
    return re.sub(r"(^|[\[ ])-(?=\d)", r"\1$-$", escaped(text))

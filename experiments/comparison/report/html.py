"""Parts of the page: tables that scroll in their own box, plots with their captions, tiles, and what is folded away."""

from collections.abc import Mapping, Sequence
from html import escape

from experiments.comparison.report import primary, tables
from experiments.comparison.report.plots import Plot
from experiments.comparison.report.tables import Column, Table, Value

TALL = 26
"""Rows from which on a table scrolls in its box instead of pushing the rest of the page away."""


def table(of: Table) -> str:
    """Return a table with its caption above and its note below."""
    head = _head(of.visible)
    body = "\n".join(_row(of, row) for row in of.rows)
    box = "scroll tall" if len(of.rows) > TALL else "scroll"
    note = f'\n<p class="quiet">{escape(of.note.strip())}</p>' if of.note else ""
    return (
        f'<div class="table"><h3 id="table-{of.name}">{escape(of.caption)}</h3>\n'
        f'<div class="{box}" role="region" aria-labelledby="table-{of.name}" tabindex="0">'
        f'<table aria-labelledby="table-{of.name}">\n<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>'
        f"</div>{note}</div>"
    )


def _head(columns: Sequence[Column]) -> str:
    if not any(column.group for column in columns):
        return f"<tr>{''.join(_heading(column, 'col') for column in columns)}</tr>"
    above, below = "", ""
    for group, members in tables.groups(columns):
        if group:
            above += f'<th class="over" colspan="{len(members)}" scope="colgroup">{escape(group)}</th>'
            below += "".join(_heading(column, "col") for column in members)
        else:
            above += "".join(_heading(column, "col", rows=2) for column in members)
    return f"<tr>{above}</tr>\n<tr>{below}</tr>"


def _heading(column: Column, scope: str, rows: int = 1) -> str:
    span = f' rowspan="{rows}"' if rows > 1 else ""
    return f'<th scope="{scope}"{span}{_class(column)}>{escape(column.title)}</th>'


def _row(of: Table, row: Mapping[str, Value]) -> str:
    first, *rest = of.visible
    cells = "".join(f"<td{_class(column)}>{escape(tables.shown(of, column, row))}</td>" for column in rest)
    marked = ' class="ours"' if primary.OURS in (row.get("key"), row.get("method")) else ""
    return f'<tr{marked}><th scope="row"{_class(first)}>{escape(tables.shown(of, first, row))}</th>{cells}</tr>'


def _class(column: Column) -> str:
    return f' class="{column.kind}"' if tables.left(column) else ""


def figure(plot: Plot, svg: str) -> str:
    """Return a plot with its title above and what it shows below."""
    return (
        f'<figure><h3 id="plot-{plot.name}">{escape(plot.title)}</h3>\n'
        f'<div class="scroll plot" role="region" aria-labelledby="plot-{plot.name}" tabindex="0">{svg}</div>\n'
        f'<figcaption class="quiet">{escape(plot.about)}</figcaption></figure>'
    )


def tiles(shown: Sequence[tuple[str, str]]) -> str:
    """Return numbers with what they are, beside each other."""
    inside = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in shown
    )
    return f'<div class="tiles">{inside}</div>'


def folded(summary: str, inside: Sequence[str]) -> str:
    """Return what is shown on demand; nothing if there is nothing."""
    if not any(inside):
        return ""
    return f"<details><summary>{escape(summary)}</summary>\n{chr(10).join(inside)}\n</details>"


def bullets(lines: Sequence[str]) -> str:
    """Return a list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def section(title: str, *inside: str) -> str:
    """Return a section; nothing if there is nothing in it."""
    shown = [part for part in inside if part]
    return f"<section>\n<h2>{escape(title)}</h2>\n{chr(10).join(shown)}\n</section>" if shown else ""

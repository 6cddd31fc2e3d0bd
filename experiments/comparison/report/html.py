"""Parts of this page beside those of every page: tables with groups of columns, plots with their captions, sections."""

from collections.abc import Mapping, Sequence
from html import escape

from experiments.comparison.report import primary, tables
from experiments.comparison.report.plots import Plot
from experiments.comparison.report.tables import Column, Table, Value
from shared.page import parts


def table(of: Table) -> str:
    """Return a table with its caption above and its note below."""
    head = _head(of.visible)
    body = "\n".join(_row(of, row) for row in of.rows)
    inside = f"<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n"
    shown = f'<table class="lined" aria-labelledby="table-{of.name}">\n{inside}</table>'
    note = parts.quiet(of.note.strip()) if of.note else ""
    return (
        f'<div class="table"><h3 id="table-{of.name}">{escape(of.caption)}</h3>\n'
        f"{parts.box(shown, len(of.rows), f'table-{of.name}')}\n{note}</div>"
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
        f"{parts.box(svg, label=f'plot-{plot.name}', kind='plot')}\n"
        f'<figcaption class="quiet">{escape(plot.about)}</figcaption></figure>'
    )


def folded(summary: str, inside: Sequence[str]) -> str:
    """Return what is shown on demand; nothing if there is nothing."""
    return parts.folded(summary, "\n".join(inside)) if any(inside) else ""


def section(title: str, *inside: str) -> str:
    """Return a section; nothing if there is nothing in it."""
    shown = [part for part in inside if part]
    return f"<section>\n<h2>{escape(title)}</h2>\n{chr(10).join(shown)}\n</section>" if shown else ""

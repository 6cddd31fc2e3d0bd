"""What pages are put together from. Text is escaped here; only what is named `html` is taken as it is."""

from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

COLOURS = Path(__file__).with_name("colours.css")
"""Of every page, the status page among them: by name, light and dark."""
STYLE = Path(__file__).with_name("page.css")
TALL = 26
"""Rows from which on a table scrolls in its box instead of pushing the rest of the page away."""


class Marked(NamedTuple):
    """Text of a cell that is set apart, by a class of the style sheet."""

    text: str
    kind: str


def document(title: str, sections: Sequence[str], *own: Path) -> str:
    """Return the whole page; what is empty of its sections is left out. own: style sheets of what only this page has."""
    style = "".join(sheet.read_text(encoding="utf-8") for sheet in (COLOURS, STYLE, *own))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def stamp(text: str, kind: str = "mark") -> str:
    """Return a word at the top of the page that must not be missed. kind: mark or private."""
    return f'<p class="stamp {kind}">{escape(text)}</p>'


def tiles(shown: Sequence[tuple[str, str]]) -> str:
    """Return numbers with what they are, beside each other."""
    inside = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in shown
    )
    return f'<div class="tiles">{inside}</div>'


def panel(name: str, about: str, html: str) -> str:
    """Return a framed chart, or whatever else, under its name."""
    return f'<div class="panel"><h3>{escape(name)} <span class="quiet">{escape(about)}</span></h3>{html}</div>'


def panels(html: Sequence[str], kind: str = "") -> str:
    """Return panels beside each other, as many as fit. kind: curves (narrow), pair (wide)."""
    return f'<div class="panels {kind}">{"".join(html)}</div>' if html else ""


def keys(meaning: Mapping[str, str]) -> str:
    """Return what each colour stands for."""
    inside = "".join(
        f'<li><i class="{name}"></i><b>{escape(name)}</b> {escape(text)}</li>' for name, text in meaning.items()
    )
    return f'<ul class="keys">{inside}</ul>'


def row(cells: Sequence[object], style: str = "", text: Collection[int] = ()) -> str:
    """Return a row of a table; the columns whose numbers are in `text` are to the left, as the first is."""
    inside = _cells("td", cells, text)
    return f'<tr class="{style}">{inside}</tr>' if style else f"<tr>{inside}</tr>"


def table(
    columns: Sequence[str], rows: Sequence[str], above: str = "", style: str = "plain", text: Collection[int] = ()
) -> str:
    """Return a table of rows that `row` made, in a box of its own that scrolls. above: html of a row over the head.

    style: plain; lined (a line under every row, for many columns of numbers); arms; stacked.
    """
    head = _cells("th", columns, text)
    body = f"<thead>{above}<tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return box(f'<table class="{style}">{body}</table>', len(rows))


def _cells(tag: str, cells: Sequence[object], text: Collection[int]) -> str:
    classes = [' class="text"' if at in text else "" for at in range(len(cells))]
    return "".join(f"<{tag}{style}>{_inside(cell)}</{tag}>" for style, cell in zip(classes, cells, strict=True))


def _inside(cell: object) -> str:
    if isinstance(cell, Marked):
        return f'<span class="{cell.kind}">{escape(cell.text)}</span>'
    return escape(str(cell))


def box(html: str, rows: int = 0, label: str = "", kind: str = "") -> str:
    """Return what scrolls in a box of its own where it is too wide or has too many rows. label: the id of what names it."""
    style = " ".join(filter(None, ("scroll", "tall" if rows > TALL else "", kind)))
    named = f' role="region" aria-labelledby="{label}"' if label else ""
    return f'<div class="{style}"{named} tabindex="0">{html}</div>'


def facts(shown: Sequence[tuple[str, str]]) -> str:
    """Return names and what they are."""
    inside = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in shown)
    return f"<dl>{inside}</dl>"


def bullets(lines: Sequence[str]) -> str:
    """Return a list; nothing of nothing."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def quiet(text: str) -> str:
    """Return a remark."""
    return f'<p class="quiet">{escape(text)}</p>'


def folded(summary: str, html: str) -> str:
    """Return what is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"

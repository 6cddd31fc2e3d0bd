"""Shapes that charts are made of, as SVG. What they look like is said by classes of the page's style sheet. Text is escaped."""

from collections.abc import Sequence
from html import escape


def svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """An image that scales with its column; `title` is what a screen reader says."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, said: str, style: str) -> str:
    """Return text that begins, or by its style ends or has its middle, at a point."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{escape(said)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def box(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> str:
    """Return a filled rectangle; `title` is shown where the pointer rests on it."""
    inside = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5" class="{colour}">{inside}</rect>'


def whisker(x1: float, x2: float, y: float) -> list[str]:
    """Return a level line with an end at each side: an interval."""
    ends = [rule(x, y - 3, x, y + 3, "whisker") for x in (x1, x2)]
    return [rule(x1, y, x2, y, "whisker"), *ends]


def polyline(points: Sequence[tuple[float, float]], style: str) -> str:
    """Return straight lines from point to point."""
    shown = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{style}" points="{shown}"/>'


def dot(x: float, y: float, radius: float, style: str) -> str:
    """Return a filled circle."""
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def named(title: str, parts: Sequence[str]) -> str:
    """Return shapes that belong together; `title` is shown where the pointer rests on them."""
    return f"<g><title>{escape(title)}</title>{''.join(parts)}</g>"

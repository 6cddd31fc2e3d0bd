"""Curves as inline SVG. Colours come from the page's style sheet by class, so that they follow light and dark."""

import math
from collections.abc import Callable, Sequence

from aggregator.web.markup import Markup, join, tag

Points = Sequence[Sequence[float]]
Scale = Callable[[float], float]
WIDTH, HEIGHT = 320.0, 170.0
LEFT, RIGHT, TOP, BOTTOM = 34.0, 10.0, 8.0, 24.0
COLOURS = 8
"""Colours in the style sheet; so many sites have a line of their own, more are drawn alike."""


def curves(sites: Sequence[tuple[str, Points]], mean: Points, title: str, over: str) -> Markup:
    """Return a chart of (x, y) points: a thin line for each site, a thick one for their mean. `over`: what x counts."""
    all_points = [point for _, points in sites for point in points] + list(mean)
    first, last = min(p[0] for p in all_points), max(p[0] for p in all_points)
    low, high = _range([p[1] for p in all_points])

    def x(value: float) -> float:
        return LEFT + (value - first) / max(last - first, 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in (low, (low + high) / 2, high):
        parts.append(_rule(LEFT, y(tick), WIDTH - RIGHT, y(tick)))
        parts.append(tag("text", f"{tick:.2f}", x=LEFT - 4, y=f"{y(tick) + 3.5:.1f}", class_="tick end"))
    for tick in sorted({first, last}):
        parts.append(tag("text", f"{tick:g}", x=f"{x(tick):.1f}", y=HEIGHT - 12, class_="tick middle"))
    parts.append(tag("text", over, x=f"{(LEFT + WIDTH - RIGHT) / 2:.1f}", y=HEIGHT - 2, class_="tick middle"))
    for number, (name, points) in enumerate(sites):
        parts.append(_line(points, x, y, colour(number), name))
    parts.append(_line([p[:2] for p in mean], x, y, "mean", "mean of the sites"))
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=title)


def colour(number: int) -> str:
    """Return the class of the site with this place in the list."""
    return f"site-{number}" if number < COLOURS else "site-more"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return where the axis begins and ends: round numbers around the values, a tenth apart at least."""
    low, high = min(values), max(values)
    step = 10.0 ** math.floor(math.log10(max(high - low, 0.1)))
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return (low, high) if high > low else (low, low + step)


def _rule(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return tag("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_="grid")


def _line(points: Points, x: Scale, y: Scale, class_: str, name: str) -> Markup:
    at = [(x(p[0]), y(p[1])) for p in points]
    drawn = tag("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in at), class_=f"line {class_}")
    end = tag("circle", cx=f"{at[-1][0]:.1f}", cy=f"{at[-1][1]:.1f}", r=2.5, class_=f"dot {class_}") if at else None
    return join(tag("g", tag("title", name), drawn, end))

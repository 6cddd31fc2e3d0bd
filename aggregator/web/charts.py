"""The chart of the status page: a line for each site and their mean. Colours are classes of the page's style sheet."""

import math
from collections.abc import Sequence

from aggregator.web.markup import Markup
from shared.page import shapes

Points = Sequence[Sequence[float]]
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

    def line(points: Points, style: str, name: str) -> str:
        at = [(x(point[0]), y(point[1])) for point in points]
        ends = [shapes.dot(*at[-1], 2.5, f"dot {style}")] if at else []
        return shapes.named(name, [shapes.polyline(at, f"line {style}"), *ends])

    parts = []
    for tick in (low, (low + high) / 2, high):
        parts.append(shapes.rule(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid"))
        parts.append(shapes.text(LEFT - 4, y(tick) + 3.5, f"{tick:.2f}", "tick end"))
    parts += [shapes.text(x(tick), HEIGHT - 12, f"{tick:g}", "tick middle") for tick in sorted({first, last})]
    parts.append(shapes.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 2, over, "tick middle"))
    parts += [line(points, colour(number), name) for number, (name, points) in enumerate(sites)]
    parts.append(line(mean, "mean", "mean of the sites"))
    return Markup(shapes.svg(WIDTH, HEIGHT, parts, title))


def colour(number: int) -> str:
    """Return the class of the site with this place in the list."""
    return f"site-{number}" if number < COLOURS else "site-more"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return where the axis begins and ends: round numbers around the values, a tenth apart at least."""
    low, high = min(values), max(values)
    step = 10.0 ** math.floor(math.log10(max(high - low, 0.1)))
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return (low, high) if high > low else (low, low + step)

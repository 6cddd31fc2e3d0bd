"""Small charts as inline SVG. Colours and fonts come from the page's style sheet, by class, so that they follow light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.page import shapes

CHANCE = 0.5
CHARACTER = 6.6
"""Width of a letter of the charts' 11 px text, roughly."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A labelled value with an interval (low, high), if there is one, in the colour of a class."""

    label: str
    value: float | None
    colour: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """Values at x = 1, 2, ...; None leaves a gap."""

    label: str
    values: Sequence[float | None]
    colour: str


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` to `start + length` on a row."""

    start: float
    length: float
    colour: str
    title: str


def score_bars(groups: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    """Groups of horizontal bars of scores in [0, 1], drawn from chance (0.5); whiskers are the intervals."""
    width, left, right, row, head = 330.0, 52.0, 46.0, 17.0, 23.0
    low = _floor([bar.value for _, bars in groups for bar in bars])
    height = sum(head + row * len(bars) for _, bars in groups) + 22

    def x(value: float) -> float:
        return left + (min(max(value, low), 1.0) - low) / (1.0 - low) * (width - left - right)

    ticks = [tick / 10 for tick in range(round(low * 10), 11)]
    parts = [shapes.rule(x(tick), 4, x(tick), height - 18, "axis" if tick == CHANCE else "grid") for tick in ticks]
    parts += [shapes.text(x(tick), height - 5, f"{tick:.1f}", "tick middle") for tick in ticks]
    y = 0.0
    for name, bars in groups:
        parts.append(shapes.text(left, y + 16, name, "head"))
        y += head
        for bar in bars:
            parts.append(shapes.text(left - 6, y + 12, bar.label, "label end"))
            if bar.value is None:
                parts.append(shapes.text(width - right + 6, y + 12, "-", "label"))
            else:
                a, b = sorted((x(CHANCE), x(bar.value)))
                parts.append(shapes.box(a, y + 3, max(b - a, 1), row - 5, bar.colour))
                if bar.interval:
                    parts += shapes.whisker(x(bar.interval[0]), x(bar.interval[1]), y + 3 + (row - 5) / 2)
                parts.append(shapes.text(width - right + 6, y + 12, f"{bar.value:.3f}", "label"))
            y += row
    return shapes.svg(width, height, parts, title)


def estimates(groups: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    """Groups of scores in [0, 1] as points with their intervals; the line is chance (0.5)."""
    ends = [end for _, bars in groups for bar in bars for end in bar.interval or (bar.value,)]
    low = round(_floor(ends) * 10)
    ticks = [tick / 10 for tick in (range(low, 11) if low >= 5 else range(low // 2 * 2, 11, 2))]
    return _points(groups, title, 280.0, ticks, CHANCE, "{:.3f}", "{:.1f}")


def differences(groups: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    """Groups of differences of scores as points with their intervals; the line is 0, and the axis is as wide as it must be."""
    furthest = max((abs(end) for _, bars in groups for bar in bars for end in bar.interval or ()), default=0)
    reach = next((step for step in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8) if furthest <= step), 1.0)
    ticks = [reach * share for share in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    return _points(groups, title, 400.0, ticks, 0.0, "{:+.3f}", "{:+.3g}")


def _points(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    title: str,
    width: float,
    ticks: Sequence[float],
    line: float,
    shown: str,
    tick_text: str,
) -> str:
    """Points from the first tick to the last; what is beyond stands at the edge."""
    right, row = 50.0, 19.0
    left = 16 + CHARACTER * max((len(bar.label) for _, bars in groups for bar in bars), default=0)
    height = sum(23.0 * bool(name) + row * len(bars) for name, bars in groups) + 28

    def x(value: float) -> float:
        share = (min(max(value, ticks[0]), ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0])
        return left + share * (width - left - right)

    parts = [shapes.rule(x(tick), 4, x(tick), height - 20, "grid") for tick in ticks]
    parts.append(shapes.rule(x(line), 4, x(line), height - 20, "axis"))
    parts += [
        shapes.text(x(tick), height - 7, tick_text.format(tick) if tick else "0", "tick middle") for tick in ticks
    ]
    y = 4.0
    for name, bars in groups:
        if name:
            parts.append(shapes.text(4, y + 14, name, "head"))
            y += 23.0
        for bar in bars:
            parts.append(shapes.text(left - 8, y + 13, bar.label, "label end"))
            if bar.value is not None:
                if bar.interval:
                    parts += shapes.whisker(x(bar.interval[0]), x(bar.interval[1]), y + 9)
                parts.append(shapes.dot(x(bar.value), y + 9, 4.5, bar.colour))
            text = "-" if bar.value is None else shown.format(bar.value)
            parts.append(shapes.text(width - right + 8, y + 13, text, "label"))
            y += row
    return shapes.svg(width, height, parts, title)


def curves(lines: Sequence[Line], title: str, x_label: str) -> str:
    """Scores in [0, 1] over x = 1, 2, ..., with a legend."""
    width, height, left, right, top, bottom = 270.0, 190.0, 30.0, 10.0, 26.0, 34.0
    count = max((len(line.values) for line in lines), default=0)
    low = _floor([value for line in lines for value in line.values])

    def x(index: int) -> float:
        return left + (width - left - right) * (index / (count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return top + (1.0 - value) / (1.0 - low) * (height - top - bottom)

    parts = []
    for tick in (t / 10 for t in range(round(low * 10), 11)):
        parts.append(shapes.rule(left, y(tick), width - right, y(tick), "axis" if tick == CHANCE else "grid"))
        parts.append(shapes.text(left - 6, y(tick) + 4, f"{tick:.1f}", "tick end"))
    parts += [shapes.text(x(i), height - bottom + 15, str(i + 1), "tick middle") for i in _shown(count)]
    parts.append(shapes.text((left + width - right) / 2, height - 4, x_label, "tick middle"))
    at = left
    for line in lines:
        parts.append(shapes.rule(at, 11, at + 16, 11, f"line {line.colour}"))
        parts.append(shapes.text(at + 21, 15, line.label, "label"))
        at += 21 + CHARACTER * len(line.label) + 16
        for run in _runs(line.values):
            at_points = [(x(i), y(value)) for i, value in run]
            parts.append(shapes.polyline(at_points, f"line {line.colour}"))
            parts += [shapes.dot(*point, 2.6, line.colour) for point in at_points]
    return shapes.svg(width, height, parts, title)


def length_bars(bars: Sequence[tuple[str, float, str, str]], title: str) -> str:
    """Horizontal bars from zero on a linear scale: (label, value, text beside it, colour)."""
    width, left, right, row = 400.0, 124.0, 56.0, 24.0
    longest = max((value for _, value, _, _ in bars), default=0) or 1.0
    parts = []
    for index, (label, value, text, colour) in enumerate(bars):
        y = index * row + 4
        length = max(value / longest * (width - left - right), 1)
        parts.append(shapes.text(left - 8, y + 14, label, "label end"))
        parts.append(shapes.box(left, y + 3, length, row - 11, colour))
        parts.append(shapes.text(left + length + 8, y + 14, text, "label"))
    return shapes.svg(width, len(bars) * row + 8, parts, title)


def timeline(rows: Sequence[tuple[str, Sequence[Span], str]], title: str) -> str:
    """Rows of spans over seconds: (label, spans, text at the right)."""
    width, left, right, row = 400.0, 66.0, 88.0, 21.0
    end = max((span.start + span.length for _, spans, _ in rows for span in spans), default=0) or 1.0
    height = len(rows) * row + 24

    def x(seconds: float) -> float:
        return left + seconds / end * (width - left - right)

    step = next(s for s in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 1 << 30) if end / s <= 6)
    ticks = [number * step for number in range(int(end / step) + 1)]
    parts = [shapes.rule(x(tick), 0, x(tick), height - 20, "grid") for tick in ticks]
    parts += [shapes.text(x(tick), height - 6, f"{tick} s", "tick middle") for tick in ticks]
    for index, (label, spans, text) in enumerate(rows):
        y = index * row
        parts.append(shapes.text(left - 6, y + 14, label, "label end"))
        parts += [
            shapes.box(
                x(span.start),
                y + 4,
                max(x(span.start + span.length) - x(span.start), 1),
                row - 8,
                span.colour,
                span.title,
            )
            for span in spans
        ]
        parts.append(shapes.text(width - right + 6, y + 14, text, "label"))
    return shapes.svg(width, height, parts, title)


def _floor(values: Sequence[float | None]) -> float:
    """Lower end of an axis of scores: chance, or the tenth below the lowest."""
    lowest = min((value for value in values if value is not None), default=CHANCE)
    return min(CHANCE, int(lowest * 10) / 10)


def _shown(count: int) -> list[int]:
    """Indices whose numbers fit under an axis; the last one always."""
    step = max(1, -(-count // 10))
    return sorted({*range(step - 1, count, step), count - 1} - {-1})


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Stretches without a gap."""
    runs: list[list[tuple[int, float]]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((index, value))
    return [run for run in runs if run]

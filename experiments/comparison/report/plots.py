"""Plots as files, SVG and PNG, and as inline SVG that follows the page's light or dark colours."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.canonical import write_atomically
from shared.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, EDGE, CARD = "#1b1f24", "#58616d", "#dcdfe4", "#ffffff"
OURS, REFERENCE, OTHER = "#0a7d76", "#3f78b5", "#98a1ad"
SERIES = (OURS, "#c5851a", REFERENCE, "#b5495b", "#7a5bb0", OTHER)
NAMES = {
    INK: "ink",
    QUIET: "quiet",
    EDGE: "edge",
    CARD: "card",
    OURS: "dual",
    REFERENCE: "reference",
    OTHER: "probe",
    "#c5851a": "alone",
    "#b5495b": "full",
    "#7a5bb0": "fifth",
}
"""What the style sheets of the page call these colours, which are theirs in light."""
STYLES = ("-", "--", ":", "-.")
PX_PER_INCH, DPI = 96, 150
LABEL_INCHES = 0.19
"""Height of a line of labels."""
READABLE = 0.8
"""Of its own width, the least that an inline plot is shown at; on narrower screens it scrolls in its box."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A drawn figure. `about`: what it shows, for the page and for those who cannot see it."""

    name: str
    title: str
    about: str
    figure: Any


@contextmanager
def style() -> Iterator[None]:
    """Draw and save within this. Raises InputError without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError(f"the plots need {error.name}: pip install 'med-duallora[comparison]'") from error
    quiet = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), QUIET)
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK)
    ground = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), CARD)
    settings: dict[Any, Any] = {
        **quiet,
        **ink,
        **ground,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "legend.edgecolor": EDGE,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": EDGE,
        "grid.linewidth": 0.7,
        "svg.fonttype": "none",
        "svg.hashsalt": "comparison",
    }
    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> "Figure":
    """Return a figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(folder: Path, plot: Plot) -> str:
    """Write NAME.svg and NAME.png, and return the plot for the page."""
    folder.mkdir(exist_ok=True)
    picture, text = io.BytesIO(), io.StringIO()
    plot.figure.savefig(picture, format="png", dpi=DPI)
    plot.figure.savefig(text, format="svg", metadata={"Date": None})
    write_atomically(folder / f"{plot.name}.png", picture.getvalue())
    write_atomically(folder / f"{plot.name}.svg", text.getvalue().encode())
    return inline(plot, text.getvalue())


def inline(plot: Plot, svg: str) -> str:
    """Return matplotlib's SVG as part of a page: identifiers of its own, colours by name, and no address of anything."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body).replace("xlink:href", "href")
    body = re.sub(r'\b(id|href)="(#?)([^"]+)"', rf'\1="\2{plot.name}-\3"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{plot.name}-\1)", body)
    for colour, name in NAMES.items():
        body = re.sub(rf"{colour}\b", f"var(--{name})", body, flags=re.IGNORECASE)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", body)
    width = plot.figure.get_figwidth() * PX_PER_INCH
    label = escape(f"{plot.title}. {plot.about}", quote=True)
    box = re.search(r'viewBox="[^"]+"', body)
    head = (
        f'<svg role="img" aria-label="{label}" {box.group() if box else ""} '
        f'style="min-width:{READABLE * width:.0f}px;max-width:{1.25 * width:.0f}px"'
    )
    return re.sub(r"<svg[^>]*", head.replace("\\", r"\\"), body, count=1)


def spaced(values: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Return places for labels beside these values: in their order, `gap` apart or more, within low and high if there is room."""
    groups = [[i] for i in sorted(range(len(values)), key=lambda i: values[i])]

    def lowest(group: list[int]) -> float:
        reach = gap * (len(group) - 1)
        middle = sum(values[i] for i in group) / len(group)
        return max(low, min(middle - reach / 2, high - reach))

    k = 1
    while k < len(groups):
        if lowest(groups[k]) - lowest(groups[k - 1]) < gap * (len(groups[k - 1]) - 1e-6):
            groups[k - 1 : k + 1] = [groups[k - 1] + groups[k]]
            k = max(1, k - 1)
        else:
            k += 1
    places = {i: lowest(group) + gap * rank for group in groups for rank, i in enumerate(group)}
    return [places[i] for i in range(len(values))]


def label_beside(axes: "Axes", points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write labels in a column right of the axes, each with a thin line to its point: x, y, text, colour. Set y limits before."""
    low, high = axes.get_ylim()
    gap = (high - low) * LABEL_INCHES / (axes.figure.bbox.height / axes.figure.dpi - 0.6)
    places = spaced([y for _, y, _, _ in points], low, high, min(gap, (high - low) / max(1, len(points) - 1)))
    line = {"arrowstyle": "-", "lw": 0.6, "alpha": 0.7, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)}
    for (x, y, text, colour), place in zip(points, places, strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.05, place),
            textcoords=("axes fraction", "data"),
            va="center",
            color=INK,
            annotation_clip=False,
            arrowprops={**line, "color": colour},
        )

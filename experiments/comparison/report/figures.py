"""What the plots show: figures by site, bytes against accuracy, reliability, local parts and aggregation errors by round."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.comparison import calibration, metrics
from experiments.comparison.records import RoundRecord
from experiments.comparison.report import plots, primary, resampling, tables
from experiments.comparison.report.finished import Comparison, Result
from experiments.comparison.report.main_tables import bytes_both_ways
from experiments.comparison.report.plots import OTHER, OURS, QUIET, REFERENCE, SERIES, STYLES, Plot
from experiments.comparison.report.resampling import MEAN, WORST, Draws
from experiments.comparison.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RoundFigure = Callable[[RoundRecord], float | None]

ACROSS = 4
"""Reliability diagrams beside each other."""


def drawn(comparison: Comparison, draws: Draws) -> Iterator[Plot]:
    """Yield all plots that there is something to show in; call within `plots.style`."""
    for scenario in comparison.scenarios:
        if held := list(comparison.within(scenario).values()):
            yield by_site(comparison, draws, scenario, held)
            yield from reliability(scenario, [one for one in held if one.contender.group == "core"])
            yield from local_parts(scenario, [one for one in held if not one.contender.doubled])
    held = list(comparison.within(comparison.home).values())
    yield from bytes_against_accuracy(comparison, draws, held)
    yield from aggregation_errors(comparison.home, [one for one in held if not one.contender.doubled])


def colour(one: Result) -> str:
    """Return a method's colour: our recipe, its two references, and all others."""
    return OURS if one.method == primary.OURS else REFERENCE if one.method in primary.REFERENCES else OTHER


def by_site(comparison: Comparison, draws: Draws, scenario: str, held: Sequence[Result]) -> Plot:
    """Balanced accuracy of each method at each site, and the mean and the worst of the sites."""
    sites = sorted({site for one in held for site in one.sites})
    panels = {site: resampling.at_site(site) for site in sites} | {"mean over sites": MEAN, "worst site": WORST}
    figure = plots.new_figure(2.6 + 1.35 * len(panels), 0.9 + 0.23 * len(held))
    row = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, name) in zip(row, panels.items(), strict=True):
        for place, one in enumerate(held):
            if title in (*one.sites, "mean over sites", "worst site"):
                _whisker(axes, place, draws.interval(one, name), colour(one))
        axes.set_title(title, fontweight="bold" if name in (MEAN, WORST) else "normal")
        axes.grid(axis="y", visible=False)
        axes.axvline(0.5, color=QUIET, lw=0.8)
        axes.tick_params(axis="y", length=0)
    row[0].set_yticks(range(len(held)), [one.contender.title for one in held])
    row[0].set_ylim(len(held) - 0.4, -0.6)
    figure.supxlabel("balanced accuracy at the validation threshold", fontsize=9)
    return Plot(
        name=f"sites-{scenario}",
        title=f"Balanced accuracy by site: {scenario} ({comparison.scenarios[scenario]})",
        about="Mean over runs at the validation thresholds, with 95 % intervals over resampled patients. The worst site is lower "
        "in resamples than in the cohort, so its interval lies low. Teal: our recipe; blue: its references.",
        figure=figure,
    )


def _whisker(axes: "Axes", place: int, found: Interval, shade: str) -> None:
    if not math.isnan(found.value):
        axes.plot([found.low, found.high], [place, place], color=shade, lw=1.4)
        axes.plot([found.value], [place], "o", color=shade, ms=4.5)


def bytes_against_accuracy(comparison: Comparison, draws: Draws, held: Sequence[Result]) -> Iterator[Plot]:
    """What a site sends and gets in a round against the mean over sites; what sends nothing is a line across."""
    sending = [one for one in held if bytes_both_ways([one]) > 0]
    if not sending:
        return
    figure = plots.new_figure(9.2, max(3.6, 0.9 + 0.2 * len(held)))
    axes, found = figure.subplots(), {one.method: draws.interval(one, MEAN) for one in held}
    right = 2 * max(bytes_both_ways([one]) for one in sending)
    points = []
    for one in held:
        value, sent = found[one.method], bytes_both_ways([one])
        if one in sending:
            axes.plot([sent, sent], [value.low, value.high], color=colour(one), lw=1, alpha=0.5)
            axes.plot([sent], [value.value], "o", color=colour(one), ms=6)
        else:
            axes.axhline(value.value, color=colour(one), lw=1, ls="--")
        points.append((sent or right, value.value, f"{one.contender.title}: {value.value:.3f}", colour(one)))
    axes.set_xscale("log")
    axes.set_xlim(right=right)
    axes.xaxis.set_major_formatter(lambda sent, _: tables.size(sent).replace(".00", ""))
    plots.label_beside(axes, [one for one in points if not math.isnan(one[1])])
    axes.set_xlabel("bytes up and down, a site and round (log scale)")
    axes.set_ylabel("balanced accuracy, mean over sites")
    yield Plot(
        name="bytes",
        title=f"Bytes against balanced accuracy: {comparison.home}",
        about="Payload of an update and of what comes down for it, against the mean over sites at the validation thresholds, with "
        "95 % intervals over resampled patients. Dashed: what sends nothing. Methods differ in their number of runs; paired "
        "differences are in the tables.",
        figure=figure,
    )


def reliability(scenario: str, held: Sequence[Result]) -> Iterator[Plot]:
    """Share of diseased against predicted probability, by method."""
    if not held:
        return
    rows = -(-len(held) // ACROSS)
    figure = plots.new_figure(9.2, 0.3 + 2.4 * rows)
    grid = figure.subplots(rows, ACROSS, sharex=True, sharey=True, squeeze=False)
    for axes, one in zip(grid.flat, held, strict=False):
        found = calibration.of(one.every())
        full = [bin for bin in found.bins if bin.n]
        axes.plot([0, 1], [0, 1], color=QUIET, lw=0.8)
        axes.plot([bin.probability for bin in full], [bin.diseased for bin in full], color=colour(one), lw=1.2)
        for bin in full:
            size = max(2.0, 12 * (bin.n / found.n) ** 0.5)
            axes.plot([bin.probability], [bin.diseased], "o", ms=size, color=colour(one), clip_on=False)
        axes.set_title(f"{one.contender.title}\nECE {found.ece:.3f}, n {found.n:,}")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    for place, axes in enumerate(grid.flat):
        axes.tick_params(labelbottom=place + ACROSS >= len(held))
        axes.set_visible(place < len(held))
    figure.supxlabel("predicted probability of disease", fontsize=9)
    figure.supylabel("share diseased", fontsize=9)
    yield Plot(
        name=f"reliability-{scenario}",
        title=f"Reliability: {scenario}",
        about=f"Core methods, cases of all runs in {metrics.BINS} bins; the larger a point, the more cases. On the diagonal "
        "predicted probabilities are those observed. ECE is the mean of the runs' own.",
        figure=figure,
    )


def local_parts(scenario: str, held: Sequence[Result]) -> Iterator[Plot]:
    """How large the local part is beside the global one, and whether it points the same way."""
    held = [one for one in held if any(record.norm_ratio for cell in one.cells.values() for record in cell.rounds)]
    if not held:
        return
    figure = plots.new_figure(1.2 + 1.75 * max(len(held), 3), 4.2)
    grid = figure.subplots(2, len(held), sharex=True, sharey="row", squeeze=False)
    sites = sorted({site for one in held for site in one.sites})
    for column, one in enumerate(held):
        for axes, name in zip(grid[:, column], ("norm_ratio", "cosine"), strict=True):
            for number, site in enumerate(sites):
                x, y = by_round(one, lambda record, name=name, site=site: getattr(record, name).get(site))  # type: ignore[misc]
                axes.plot(
                    x, y, color=SERIES[number % len(SERIES)], ls=STYLES[number // len(SERIES) % 4], lw=1.4, label=site
                )
        grid[0, column].set_title(one.contender.title)
        grid[1, column].locator_params(axis="x", integer=True)
        grid[1, column].axhline(0, color=QUIET, lw=0.8)
    grid[0, 0].set_ylabel("|local| / |global|")
    grid[1, 0].set_ylabel("cosine")
    figure.supxlabel("round", fontsize=9)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    yield Plot(
        name=f"local-part-{scenario}",
        title=f"Local against global part: {scenario}",
        about="Ratio of the norms of the low-rank products, and the cosine between them, all adapted layers together, by round and "
        "site; mean over runs.",
        figure=figure,
    )


def aggregation_errors(scenario: str, held: Sequence[Result]) -> Iterator[Plot]:
    """What a rule's version misses of the mean of the sites' products; beside it what rules on products leave."""
    errors = {one: by_round(one, lambda record: record.aggregation_error) for one in held}
    without = {one: by_round(one, lambda record: record.factor_error) for one in held}
    factors = {one: line for one, line in errors.items() if line[1] and not without[one][1]}
    exact = {one: line for one, line in errors.items() if line[1] and without[one][1]}
    if not factors and not exact:
        return
    figure = plots.new_figure(9.6, max(3.2, 0.8 + 0.2 * len(factors)))
    left, right = figure.subplots(1, 2, sharey=True)
    _lines(left, factors)
    _lines(right, exact)
    for number, one in enumerate(exact):
        right.plot(*without[one], color=SERIES[number % len(SERIES)], ls="--", lw=1.2)
    top = max(max(line[1]) for line in (*factors.values(), *exact.values(), *(without[one] for one in exact)))
    left.set_ylim(-0.04 * top, 1.12 * top or 1.0)
    for axes, lines, title in (
        (left, factors, "factors averaged"),
        (right, exact, "products: left (solid), removed (dashed)"),
    ):
        axes.set_title(title)
        axes.set_xlabel("round")
        axes.locator_params(axis="x", integer=True)
        ends = [(x[-1], y[-1], one.contender.title, QUIET) for one, (x, y) in lines.items()]
        plots.label_beside(axes, ends)
    left.set_ylabel("relative error")
    yield Plot(
        name=f"aggregation-error-{scenario}",
        title=f"Aggregation error by round: {scenario}",
        about="Norm of the sites' weighted mean product less what the version has, relative to the former; mean over runs. "
        "Right: rules on products, with what averaging the factors would have missed dashed.",
        figure=figure,
    )


def _lines(axes: "Axes", lines: Mapping[Result, tuple[list[int], list[float]]]) -> None:
    for number, line in enumerate(lines.values()):
        axes.plot(*line, color=SERIES[number % len(SERIES)], ls=STYLES[number // len(SERIES) % 4], lw=1.4)


def by_round(one: Result, of: RoundFigure) -> tuple[list[int], list[float]]:
    """Return round numbers and the mean over runs of a figure there, without rounds that lack it in all runs."""
    found: dict[int, list[float]] = {}
    for cell in one.cells.values():
        for record in cell.rounds:
            if (value := of(record)) is not None:
                found.setdefault(record.number, []).append(value)
    return sorted(found), [float(np.mean(found[number])) for number in sorted(found)]

"""The page stands on its own, says it is synthetic, and shows the figures of the summary."""

import math
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from experiments.demo import charts, report, summaries, terminal
from experiments.demo.charts import Bar, Line, Span
from tests.support import demo_findings as made

VOID = {"meta", "br", "img", "link", "input", "hr"}


@pytest.fixture
def summary() -> dict[str, Any]:
    reference = {site: made.figures(0.9) for site in made.SITES}
    return summaries.build(made.findings(reference=reference), made.seconds())


class Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong place; collects text and what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [
            f"{name}={value}" for name, value in attrs if name in ("src", "href", "data", "srcset", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_page_is_whole_and_loads_nothing(summary: dict[str, Any]) -> None:
    page = report.page(summary)
    found = parsed(page)
    assert found.loads == []
    assert not found.tags & {"script", "link", "img", "iframe", "object"}
    assert "@import" not in page
    assert "url(" not in page


def test_page_says_synthetic_and_shows_figures_curves_and_bytes(summary: dict[str, Any]) -> None:
    text = " ".join(parsed(report.page(summary)).words)
    assert "SYNTHETIC DATA" in text
    assert "no patient was scanned" in text
    assert "0.850" in text  # dual's mean AUC
    assert made.DIGEST in text
    assert "45.0 kB" in text
    assert "57 ×" in text  # 2 * 3,000,000 / 105,000
    for site in made.SITES:
        assert site in text
    assert "prefers-color-scheme: dark" in report.page(summary)


def test_text_from_outside_cannot_become_markup(summary: dict[str, Any]) -> None:
    summary["versions"]["torch"] = "<script>alert(1)</script>"
    summary["contract"]["federation"] = 'x" onload="y'
    page = report.page(summary)
    assert "<script" not in page
    assert "script" not in parsed(page).tags


def test_page_with_missing_figures_shows_dashes() -> None:
    reports = {site: made.site_report(index, 3) for index, site in enumerate(made.SITES)}
    for site in reports.values():
        site["history"][1]["validation"]["auc"] = None
        site["arms"]["dual"]["test"]["auc"] = None
    page = report.page(summaries.build(made.findings(reports=reports), made.seconds()))
    assert "None" not in parsed(page).words
    assert "nan" not in page


def test_intervals_are_as_wide_as_repeated_test_sets_say() -> None:
    """Hanley and McNeil's variance is exact for exponential scores: P(Exp(mean 1/r) > Exp(mean 1)) = 1 / (1 + r)."""
    auc, diseased, healthy, repeats = 0.85, 50, 20, 4000
    rng = np.random.default_rng(1)
    high = rng.exponential(auc / (1 - auc), (repeats, diseased, 1))
    low = rng.exponential(1.0, (repeats, 1, healthy))
    spread = (high > low).mean(axis=(1, 2)).std()
    found = report.intervals({**made.figures(auc)}, diseased, healthy)
    assert (auc - found["auc"][0]) / 1.96 == pytest.approx(spread, rel=0.04)
    accuracy = found["balanced_accuracy"]
    expected = math.sqrt((0.65 * 0.35 / diseased + 0.85 * 0.15 / healthy) / 4)
    assert (accuracy[1] - accuracy[0]) / 2 / 1.96 == pytest.approx(expected)


def test_intervals_of_missing_figures_are_missing() -> None:
    assert report.intervals(made.figures(None), 50, 50) == {}


def test_charts_are_well_formed_and_stay_inside() -> None:
    bars = [("AUC", [Bar("dual", 0.9, "dual", (0.85, 1.0)), Bar("probe", 0.31, "probe"), Bar("alone", None, "alone")])]
    shown = [
        charts.score_bars(bars, "a <title>"),
        charts.curves([Line("AUC", [0.6, None, 0.8, 0.9], "dual"), Line("none", [], "alone")], "t", "version"),
        charts.curves([Line("AUC", [0.7], "dual")], "one point", "version"),
        charts.curves([], "empty", "version"),
        charts.length_bars([("up", 45_000, "45 kB", "dual"), ("full", 3e6, "3 MB", "full")], "bytes"),
        charts.timeline([("phantom", [Span(0, 4000, "dual", "x & y")], "4000 s")], "time"),
        charts.timeline([], "empty"),
    ]
    for chart in shown:
        root = ElementTree.fromstring(chart)
        width = float(root.attrib["viewBox"].split()[2])
        for box in root.iter("{http://www.w3.org/2000/svg}rect"):
            assert 0 <= float(box.attrib["x"]) <= float(box.attrib["x"]) + float(box.attrib["width"]) <= width


def test_a_gap_splits_a_curve() -> None:
    chart = charts.curves([Line("AUC", [0.6, 0.7, None, 0.9], "dual")], "t", "version")
    assert len(re.findall("<polyline", chart)) == 2
    assert len(re.findall("<circle", chart)) == 3


def test_terminal_table_fits_a_hundred_columns_and_has_every_arm(summary: dict[str, Any]) -> None:
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        terminal.show(summary, console)
    text = captured.get()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "SYNTHETIC" in text
    assert sum("dual" in line.split()[:2] for line in lines if line.strip()) >= 6
    assert "57 times as much" in text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (44_544, "44.5 kB"), (350_000_000, "350 MB"), (3.1e9, "3.1 GB")]
)
def test_sizes_are_decimal(count: float, text: str) -> None:
    assert terminal.size(count) == text

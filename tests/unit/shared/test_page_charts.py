"""Charts are well-formed pictures that stay inside their frame."""

import re
from xml.etree import ElementTree

import pytest

from shared.page import charts
from shared.page.charts import Bar, Line, Span

SVG = "{http://www.w3.org/2000/svg}"


def test_charts_are_well_formed_and_stay_inside() -> None:
    bars = [("AUC", [Bar("dual", 0.9, "dual", (0.85, 1.0)), Bar("probe", 0.31, "probe"), Bar("alone", None, "alone")])]
    shown = [
        charts.score_bars(bars, "a <title>"),
        charts.estimates(bars, "scores"),
        charts.estimates([], "none"),
        charts.differences([("dual − alone", [Bar("AUC", 0.9, "dual", (0.7, 1.1)), Bar("BA", None, "dual")])], "more"),
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
        for box in root.iter(f"{SVG}rect"):
            assert 0 <= float(box.attrib["x"]) <= float(box.attrib["x"]) + float(box.attrib["width"]) <= width
        for name in ("cx", "x1", "x2"):
            for shape in (shape for shape in root.iter() if name in shape.attrib):
                assert 0 <= float(shape.attrib[name]) <= width


def test_a_gap_splits_a_curve() -> None:
    chart = charts.curves([Line("AUC", [0.6, 0.7, None, 0.9], "dual")], "t", "version")
    assert len(re.findall("<polyline", chart)) == 2
    assert len(re.findall("<circle", chart)) == 3


@pytest.mark.parametrize(("end", "reach"), [(0.02, "+0.05"), (0.3, "+0.4"), (0.9, "+1")])
def test_the_axis_of_differences_is_as_wide_as_the_widest_interval(end: float, reach: str) -> None:
    chart = charts.differences([("", [Bar("AUC", 0.0, "dual", (-end, 0.01))])], "t")
    ticks = [text.text for text in ElementTree.fromstring(chart).iter(f"{SVG}text") if "tick" in text.attrib["class"]]
    assert ticks[-1] == reach
    assert ticks[0] == reach.replace("+", "-")
    assert "0" in ticks


def test_low_scores_widen_the_axis_and_it_still_ends_at_one() -> None:
    chart = charts.estimates([("", [Bar("dual", 0.3, "dual", (0.17, 0.48))])], "t")
    ticks = [text.text for text in ElementTree.fromstring(chart).iter(f"{SVG}text") if "tick" in text.attrib["class"]]
    assert (ticks[0], ticks[-1]) == ("0", "1.0")

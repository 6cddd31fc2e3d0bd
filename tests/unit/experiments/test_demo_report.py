"""The page stands on its own, says it is synthetic, and shows the figures of the summary."""

import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from experiments.demo import report, summaries, terminal
from tests.support import demo_findings as made
from tests.support.pages import parsed


@pytest.fixture
def summary() -> dict[str, Any]:
    reference = {site: made.figures(0.9) for site in made.SITES}
    return summaries.build(made.findings(reference=reference), made.seconds())


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


def test_bytes_are_told_by_purpose_and_a_purpose_without_a_name_of_its_own_comes_last(summary: dict[str, Any]) -> None:
    names = ("probe", "control", "heartbeat", "delta_up", "adapter_down")
    summary["communication"]["by_purpose"] = {n: {"bytes_up": i, "bytes_down": 70} for i, n in enumerate(names)}
    said = "adapter to the sites 4 70 change to the aggregator 3 70 waiting, heartbeats 2 70 joining 1 70 probe 0 70 Exact sizes"
    assert said in parsed(report.page(summary)).text


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

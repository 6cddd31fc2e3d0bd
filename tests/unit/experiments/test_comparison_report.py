"""The report is of whatever is finished, stands on its own, and can be computed again from the CSVs it leaves."""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import ttest_rel
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from experiments.comparison import metrics, records, statistics
from experiments.comparison.metrics import FIGURES
from experiments.comparison.report import plots, writing
from experiments.comparison.report.resampling import DRAWS, SEED
from shared.errors import InputError
from tests.support import comparison_folder as made
from tests.support.bootstrap import paired_bootstrap
from tests.support.comparison_page import Page, summary, table

OTHERS = ("fedex", "flexlora", "ditto", "med-duallora+gate", "med-duallora+exact", "fedit-r16+capped")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core in two scenarios with three runs, some others and extensions with two, and vendors that were left out."""
    cells: list[tuple[str, str, Any]] = [
        (scenario, method, range(3)) for scenario in ("homogeneous", "shifted") for method in made.CORE
    ]
    cells += [("shifted", method, range(2)) for method in OTHERS]
    cells += [("unseen", f"ours@{shots}", [0]) for shots in (0, 4, 8, 16)]
    out = made.make(tmp_path_factory.mktemp("whole"), cells)
    assert writing.write(out) == out / "report.html"
    return out


@pytest.fixture(scope="module")
def page(whole: Path) -> Page:
    return Page(whole / "report.html")


def test_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "video", "base"}
    assert not re.search(r"https?:|//\w+\.|@import|javascript:", page.text)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "srcset", "data", "action", "xlink:href"):
            assert (value or "").startswith("#")
    assert set(re.findall(r"url\((.)", page.text)) <= {"#"}


def test_what_inline_plots_point_to_is_there_once(page: Page) -> None:
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    pointed = {(value or "")[1:] for _, name, value in page.attributes if name == "href"}
    pointed |= set(re.findall(r"url\(#([^)]+)\)", page.text))
    assert pointed
    assert pointed <= set(ids)
    labels = {value for _, name, value in page.attributes if name == "aria-labelledby"}
    assert labels <= set(ids)


def test_inline_plots_follow_light_and_dark(page: Page) -> None:
    drawn = re.findall(r"<svg.*?</svg>", page.text, flags=re.DOTALL)
    assert len(drawn) >= 7
    for svg in drawn:
        assert "var(--ink)" in svg
        assert {colour.lower() for colour in re.findall(r"#[0-9a-fA-F]{6}\b", svg)} <= {"#000000"}
        assert 'role="img"' in svg
    named = set(re.findall(r"var\(--([\w-]+)\)", page.text))
    assert named <= set(re.findall(r"--([\w-]+):", page.text))


def test_plots_have_the_colours_of_the_page_in_light(page: Page) -> None:
    light = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*\s*\}", "", page.text)
    named = dict(re.findall(r"--([\w-]+): (#\w+);", light))
    assert {name: named[name] for name in plots.NAMES.values()} == {
        name: colour for colour, name in plots.NAMES.items()
    }


def test_page_says_at_once_that_it_is_synthetic_and_what_was_found(page: Page, whole: Path) -> None:
    head = page.said[: page.said.index("Primary family")]
    assert "SYNTHETIC DATA" in head
    assert "no patient was scanned" in head
    assert "10 methods and 3 variants with one switch each in 2 scenarios" in head
    said = summary(whole)["primary"]["words"]
    assert "Preliminary: 8 of the 12 primary tests are not run yet." in said
    assert any("Where sites differ in size alone" in line for line in said)
    assert all(line in head for line in said)
    assert "80 held-out cases a run" in head
    assert "480 held-out cases of all runs" in head


def test_page_says_what_is_missing(page: Page, whole: Path) -> None:
    assert "Not finished" in page.said
    missing = summary(whole)["missing"]
    assert missing == [
        "shifted: 6 of 30 cells of the other methods are finished",
        "shifted: 6 of 78 cells of the extensions are finished",
        "convention: 0 of 21 cells of the core methods are finished",
        "wall-bias: 0 of 21 cells of the core methods are finished",
        "unseen: 1 of 6 cells of the left-out vendors are finished: FedIT, r 16 (rank-matched), 16 shots (0 of 2); "
        "Med-DualLoRA, 2 blocks, 16 shots (0 of 2); Med-DualLoRA, our recipe, 16 shots (1 of 2)",
    ]
    assert "Not begun" not in page.said


def test_tables_have_headings_for_readers_that_cannot_see(page: Page) -> None:
    scopes = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
    assert {"col", "row", "colgroup"} == set(scopes)
    headings = len(re.findall(r"<th[ >]", page.text))
    assert headings == len(scopes)
    boxes = re.findall(r'<div class="scroll[^"]*"[^>]*>', page.text)
    assert len(boxes) >= page.text.count("<table")
    assert all('tabindex="0"' in box and 'role="region"' in box for box in boxes)


def test_every_table_is_written_three_times_and_has_a_place_in_the_summary(whole: Path) -> None:
    names = {path.stem for path in (whole / "tables").glob("*.csv")}
    assert {"primary", "no-loss", "cost", "methods", "tuning", "extensions", "exploratory-shifted", "unseen"} <= names
    assert {"main-shifted-validation", "main-shifted-half", "main-shifted-ranking", "sites-shifted"} <= names
    for suffix in ("md", "tex"):
        assert {path.stem for path in (whole / "tables").glob(f"*.{suffix}")} == names
    assert summary(whole)["tables"].keys() == names


def test_every_plot_is_written_as_svg_and_png(whole: Path) -> None:
    names = {path.stem for path in (whole / "plots").glob("*.svg")}
    both = {
        f"{name}-{scenario}"
        for name in ("sites", "reliability", "local-part")
        for scenario in ("homogeneous", "shifted")
    }
    assert names == {*both, "bytes", "aggregation-error-shifted"}
    for name in names:
        ElementTree.parse(whole / "plots" / f"{name}.svg")
        assert (whole / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_predictions_of_every_case_are_in_one_csv_for_each_method_and_scenario(whole: Path) -> None:
    held = {path.stem for path in (whole / "predictions").iterdir()}
    assert held == {
        *(f"{scenario}-{method}" for scenario in ("homogeneous", "shifted") for method in made.CORE),
        *(f"shifted-{method}" for method in OTHERS),
        *(f"unseen-ours@{shots}" for shots in (0, 4, 8, 16)),
    }
    assert len(records.read_predictions(whole / "predictions" / "shifted-ours.csv")) == 3 * 80


@pytest.mark.parametrize("method", ["ours", "fedit-r16", "ditto"])
def test_main_table_can_be_computed_again_from_the_predictions(whole: Path, method: str) -> None:
    predictions = records.read_predictions(whole / "predictions" / f"shifted-{method}.csv")
    expected = {name: metrics.over_runs(predictions, figure) for name, figure in FIGURES.items()}
    found: dict[str, str] = {}
    for name in ("validation", "half", "ranking"):
        found |= next(row for row in table(whole, f"main-shifted-{name}") if row["key"] == method)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(value, abs=1e-12)
    for name in ("auc", "balanced_accuracy_half_worst_site"):
        by_run = list(metrics.by_run(predictions, FIGURES[name]).values())
        assert float(found[f"{name}_sd"]) == pytest.approx(np.std(by_run, ddof=1))


def test_main_table_can_be_computed_again_without_any_of_our_code(whole: Path) -> None:
    with (whole / "predictions" / "shifted-ours.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    means, worst, areas = [], [], []
    for run in "012":
        here = [row for row in rows if row["run"] == run]
        sites = [[row for row in here if row["site"] == site] for site in made.SITES]
        scores = [
            balanced_accuracy_score(
                [int(row["label"]) for row in site], [float(row["margin"]) >= float(row["threshold"]) for row in site]
            )
            for site in sites
        ]
        means.append(np.mean(scores))
        worst.append(min(scores))
        areas.append(roc_auc_score([int(row["label"]) for row in here], [float(row["margin"]) for row in here]))
    found = next(row for row in table(whole, "main-shifted-validation") if row["key"] == "ours")
    ranking = next(row for row in table(whole, "main-shifted-ranking") if row["key"] == "ours")
    assert float(found["balanced_accuracy_validation_site_mean"]) == pytest.approx(np.mean(means))
    assert float(found["balanced_accuracy_validation_worst_site"]) == pytest.approx(np.mean(worst))
    assert float(ranking["auc"]) == pytest.approx(np.mean(areas))


def test_sites_table_can_be_computed_again_from_the_predictions(whole: Path) -> None:
    predictions = records.read_predictions(whole / "predictions" / "shifted-ours.csv")
    row = next(row for row in table(whole, "sites-shifted") if row["key"] == "ours")
    for site in made.SITES:
        here = [one for one in predictions if one.site == site]
        for name in ("balanced_accuracy_validation", "sensitivity_validation", "specificity_validation", "auc"):
            by_run = list(metrics.by_run(here, FIGURES[name]).values())
            assert float(row[f"{site}_{name}"]) == pytest.approx(np.mean(by_run))
            assert float(row[f"{site}_{name}_sd"]) == pytest.approx(np.std(by_run, ddof=1))


def test_primary_table_can_be_computed_again_from_the_predictions(whole: Path) -> None:
    ours, theirs = (
        records.read_predictions(whole / "predictions" / f"shifted-{one}.csv") for one in ("ours", "med-duallora")
    )
    row = next(
        row
        for row in table(whole, "primary")
        if (row["scenario"], row["reference"], row["sites"]) == ("shifted", "med-duallora", "worst")
    )
    figure = FIGURES["balanced_accuracy_validation_worst_site"]
    expected = paired_bootstrap(ours, theirs, figure, draws=DRAWS, seed=SEED)
    assert [float(row[f"patients{part}"]) for part in ("", "_low", "_high")] == pytest.approx(
        [expected.value, expected.low, expected.high]
    )
    mine, other = metrics.by_run(ours, figure), metrics.by_run(theirs, figure)
    differences = [mine[run] - other[run] for run in mine]
    assert float(row["p"]) == pytest.approx(statistics.wilcoxon(differences).p)
    whole_runs = ttest_rel(list(mine.values()), list(other.values())).confidence_interval()
    assert [float(row[f"over_runs_{end}"]) for end in ("low", "high")] == pytest.approx(list(whole_runs))


def test_exploratory_table_can_be_computed_again_from_the_predictions(whole: Path) -> None:
    mine, theirs = (
        [one for one in records.read_predictions(whole / "predictions" / f"shifted-{name}.csv") if one.run < 2]
        for name in ("ditto", "fedit-r16")
    )
    row = next(
        row
        for row in table(whole, "exploratory-shifted")
        if (row["method"], row["reference"]) == ("ditto", "fedit-r16")
    )
    found = statistics.mcnemar(mine, theirs, 0, "validation")
    assert row["runs"] == "2"
    assert row["specificity_counts"] == f"{found.only_first} : {found.only_second}"
    assert float(row["specificity"]) == pytest.approx(found.p)
    held = [metrics.over_runs(one, FIGURES["auc_site_mean"]) for one in (mine, theirs)]
    assert float(row["auc"]) == pytest.approx(held[0] - held[1])


def test_switches_are_compared_with_the_method_they_are_put_on(whole: Path) -> None:
    rows = {row["method"]: row["reference"] for row in table(whole, "extensions")}
    assert rows == {
        "med-duallora+gate": "med-duallora",
        "med-duallora+exact": "med-duallora",
        "fedit-r16+capped": "fedit-r16",
    }


def test_cost_table_divides_what_all_sites_sent_by_sites_and_rounds(whole: Path) -> None:
    rows = {row["key"]: row for row in table(whole, "cost")}
    assert float(rows["fedit-r16"]["bytes_up_per_site_and_round"]) == 16_000
    assert float(rows["fedit-r16"]["bytes_up"]) == 16_000 * 4 * 3
    assert rows["centralised"]["bytes_up"] == ""
    assert float(rows["ours"]["seconds"]) == pytest.approx(21.0)
    assert rows["ours"]["cells"] == "6"


def test_tuning_table_shows_what_was_tried_and_which_was_chosen(whole: Path) -> None:
    rows = [row for row in table(whole, "tuning") if row["key"] == "ours"]
    said = "yes; edge: shrinkage_patients lowest of 2, lr_global highest of 2"
    assert [row["chosen"] for row in rows] == ["", said, "", ""]
    assert len({row["what"] for row in rows}) == 4
    assert next(row for row in table(whole, "tuning") if row["key"] == "fedit-r8")["what"] == "lr_global 0.002"
    chosen = next(row["what"] for row in rows if row["chosen"])
    assert next(row for row in table(whole, "methods") if row["key"] == "ours")["setting"] == chosen


def test_latex_of_all_tables_has_no_bare_signs(whole: Path) -> None:
    for path in (whole / "tables").glob("*.tex"):
        inside = path.read_text(encoding="utf-8")
        for line in inside.splitlines():
            if line.endswith(r"\\") or line.startswith(r"\caption"):
                assert not re.search(r"(?<!\\)[%#_^~<>|]", line), (path.name, line)
        assert inside.isascii() or not re.search("[±×→Δ−]", inside)


def test_summary_has_the_numbers_of_the_tables(whole: Path) -> None:
    found = summary(whole)
    tests = found["primary"]["tests"]
    assert len(tests) == 12
    assert [one["verdict"] for one in tests[4:]] == ["not run yet"] * 8
    rows = table(whole, "primary")
    assert [float(row["patients"]) for row in rows[:4]] == [one["patients"]["value"] for one in tests[:4]]
    assert found["synthetic"] is True
    assert found["primary"]["words"][0].startswith("Preliminary")


def test_one_run_of_one_method_is_enough_and_shows_no_p_value(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("shifted", method, [0]) for method in ("ours", "fedit-r16")], tuned=False)
    found = Page(writing.write(out))
    assert "2 of the 12 primary tests have one run" in found.said
    assert "no p values there" in found.said
    assert {row["p"] for row in table(out, "primary")} == {""}
    assert "±" not in (out / "tables" / "main-shifted-validation.md").read_text().split("\n\n")[1]
    assert "the choice of settings (tuned.json)" in found.said


def test_a_site_without_normal_cases_leaves_gaps_and_stops_nothing(tmp_path: Path) -> None:
    out = made.make(tmp_path, [])
    for method in ("ours", "med-duallora"):
        for run in range(3):
            here = [one for one in made.drawn("shifted", method, run) if one.site != "GE" or one.label == 1]
            records.write(out / "cells" / "shifted", made.cell("shifted", method, run), here)
    writing.write(out)
    row = table(out, "main-shifted-validation")[0]
    kept = records.read_predictions(out / "predictions" / "shifted-med-duallora.csv")
    others = [one for one in kept if one.site != "GE"]
    name = "balanced_accuracy_validation_site_mean"
    assert float(row[name]) == pytest.approx(metrics.over_runs(others, FIGURES[name]))
    assert "nan" not in (out / "tables" / "primary.md").read_text()


def test_no_normal_case_at_all_leaves_figures_empty(tmp_path: Path) -> None:
    out = made.make(tmp_path, [])
    for method in ("ours", "med-duallora"):
        for run in range(2):
            diseased = [one for one in made.drawn("shifted", method, run) if one.label == 1]
            records.write(out / "cells" / "shifted", made.cell("shifted", method, run), diseased)
    writing.write(out)
    assert table(out, "main-shifted-validation")[0]["specificity_validation"] == ""
    assert summary(out)["primary"]["tests"][2]["patients"]["value"] is None


def test_on_real_patients_p_values_are_called_dependent_and_nothing_is_called_synthetic(tmp_path: Path) -> None:
    out = made.make(
        tmp_path, [("real", method, range(5)) for method in ("fedit-r16", "med-duallora", "ours")], synthetic=False
    )
    found = Page(writing.write(out))
    assert "SYNTHETIC" not in found.said
    assert "RUNS ARE DEPENDENT" in found.said
    rows = (out / "tables" / "primary.md").read_text().splitlines()
    cells = [row for row in rows if row.startswith("| real ")]
    assert len(cells) == 4
    for row in cells:
        assert row.count("DEPENDENT") == 3
    shown = re.findall(r"<td>(<?[\d.]+ \(Holm [^<]*|\d\.\d+ DEPENDENT)</td>", found.text)
    assert shown
    assert all(text.endswith("DEPENDENT") for text in shown)
    assert not list((out / "tables").glob("no-loss*"))


def test_a_switch_that_changes_nothing_is_said_to(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("shifted", "med-duallora", [0, 1])])
    for run in (0, 1):
        cell = replace(made.cell("shifted", "med-duallora", run), method="med-duallora+shared-head")
        records.write(out / "cells" / "shifted", cell, made.drawn("shifted", "med-duallora", run))
    writing.write(out)
    (row,) = table(out, "extensions")
    assert row["remark"] == "the same predictions"
    assert float(row["balanced_accuracy_validation_site_mean"]) == 0


def test_a_folder_that_is_no_comparison_or_has_no_cell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no comparison: it has no config\.json"):
        writing.write(tmp_path)
    made.make(tmp_path, [])
    with pytest.raises(InputError, match=r"no cell of .* is finished yet"):
        writing.write(tmp_path)


def test_a_cell_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("shifted", "ours", [0])])
    (out / "cells" / "shifted" / "ours-run0.json").rename(out / "cells" / "shifted" / "ours-run1.json")
    with pytest.raises(InputError, match=r"ours-run1\.json is of another cell"):
        writing.write(out)


def test_labels_keep_their_order_their_distance_and_the_room_they_have() -> None:
    places = plots.spaced([0.5, 0.5, 0.5, 0.0, 1.0], 0.0, 1.0, 0.1)
    assert places == pytest.approx([0.4, 0.5, 0.6, 0.0, 1.0])
    crowded = plots.spaced([0.0, 0.0, 0.0], 0.0, 1.0, 0.2)
    assert crowded == pytest.approx([0.0, 0.2, 0.4])
    assert plots.spaced([], 0.0, 1.0, 0.1) == []

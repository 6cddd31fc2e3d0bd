"""What the report says of a comparison that is not, or not all, finished, and of how it was made."""

import json
from dataclasses import replace
from pathlib import Path

from experiments.comparison import records
from experiments.comparison.report import finished, writing
from tests.support import comparison_folder as made
from tests.support.comparison_page import Page, summary, table


def test_runs_that_are_missing_are_counted_against_those_planned(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("homogeneous", method, range(2)) for method in made.CORE[1:]])
    made.make(out, [("homogeneous", "ours", [2])])
    assert finished.missing(finished.load(out))[0] == "homogeneous: 13 of 21 cells of the core methods are finished"
    made.make(out, [("homogeneous", method, range(3)) for method in made.CORE[1:-2]])
    assert finished.missing(finished.load(out))[0] == (
        "homogeneous: 17 of 21 cells of the core methods are finished: Local-only LoRA, r 16 (0 of 3); "
        "Med-DualLoRA, 2 blocks (2 of 3)"
    )


def test_groups_that_were_left_out_are_named_once_and_their_cells_are_not_missing(tmp_path: Path) -> None:
    places = ("homogeneous", "shifted", "convention", "wall-bias")
    out = made.make(tmp_path, [(place, method, range(3)) for place in places for method in made.CORE])
    found = Page(writing.write(out))
    assert summary(out)["missing"] == []
    assert "Not finished" not in found.said
    assert "Not begun: other methods, extensions." in found.said


def test_the_head_says_how_large_the_comparison_is_and_the_fewest_and_most_runs(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("shifted", "ours", range(3)), ("shifted", "fedit-r16", range(2))])
    found = Page(writing.write(out)).said
    head = found[: found.index("Primary family")]
    assert "8 rounds of 2 epochs; scale 1 of the phantom's training cases." in head
    assert "2 to 3 runs of a core method in a scenario" in head


def test_cells_of_several_sets_of_versions_are_told_apart(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("shifted", "ours", [0])])
    began = json.loads((out / "config.json").read_text())["versions"]
    for run, versions in ((1, began), (2, began | {"torch": "99.0"})):
        cell = replace(made.cell("shifted", "ours", run), versions=versions)
        records.write(out / "cells" / "shifted", cell, made.drawn("shifted", "ours", run))
        found = Page(writing.write(out)).said
        assert ("Cells were computed by 2 sets of versions" in found) == (run == 2)
    assert "torch 99.0" in found
    assert f"torch {began['torch']}" in found


def test_without_a_local_part_there_is_no_plot_of_it_and_the_page_says_so(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("shifted", method, [0]) for method in ("fedit-r16", "head-only", "local-only")])
    found = Page(writing.write(out))
    assert not list((out / "plots").glob("local-part*"))
    assert "No method with a local part is finished yet." in found.said


def test_a_local_part_in_another_scenario_is_not_denied(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("homogeneous", "ours", [0]), ("shifted", "fedit-r16", [0])])
    found = Page(writing.write(out))
    assert (out / "plots" / "local-part-homogeneous.svg").exists()
    assert "No method with a local part is finished in the scenario shifted yet." in found.said


def test_cells_of_a_method_that_is_gone_are_passed_over_and_named(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("shifted", "ours", [0]), ("shifted", "of-old", [0])])
    assert "cells of 'of-old', which is no method of this version" in Page(writing.write(out)).said


def test_a_report_can_be_written_again_as_cells_come_in(tmp_path: Path) -> None:
    out = made.make(tmp_path, [("shifted", "ours", [0])])
    writing.write(out)
    made.make(out, [("shifted", "ours", [1]), ("shifted", "fedit-r16", [0, 1])])
    writing.write(out)
    assert {row["key"]: row["runs"] for row in table(out, "main-shifted-validation")} == {"fedit-r16": "2", "ours": "2"}

"""The site's report: what it says of cases that can be counted by hand, what it does not claim, and that it is private."""

import csv
import json
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from shared.canonical import canonical_json
from shared.contract import ARMS
from shared.errors import InputError
from shared.recipe import Recipe
from site_agent import cli
from site_agent.report import CASES, REPORT, facts, page
from site_agent.state import HISTORY, State
from tests.support import methods, report_state
from tests.support.pages import check_stands_alone

LABELS = [1] * 30 + [0] * 30
RNG = np.random.default_rng(5)
GUESSES = RNG.normal(size=60)
"""What an arm says that has learnt nothing."""
GOOD = np.array(LABELS) * 2.0 - 1
SAME = report_state.scores(LABELS, {"alone": GUESSES, "dual": GUESSES + 0.05 * RNG.normal(size=60)})
HELPED = report_state.scores(LABELS, {"alone": GUESSES, "probe": GUESSES})
HARMED = report_state.scores(LABELS, {"dual": GUESSES})


def made(folder: Path, *arguments: Any, **changes: Any) -> dict[str, Any]:
    report_state.write(folder, *arguments, **changes)
    return facts.gather(folder)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["report", *map(str, arguments)])


# --- what it says -----------------------------------------------------------------------------------------------------


def test_figures_differences_and_changed_cases_are_those_counted_by_hand(tmp_path: Path) -> None:
    """Four diseased and three normal cases at threshold 0: alone misses two and calls one normal ill, dual misses another one."""
    alone = [0.5, 0.5, -0.5, -0.5, -0.5, -0.5, 0.5]
    dual = [0.5, -0.5, 0.5, 0.5, -0.5, -0.5, -0.5]
    found = made(tmp_path, report_state.scores([1, 1, 1, 1, 0, 0, 0], {"alone": alone, "dual": dual}))["compared"]
    assert (found["set"], found["cases"], found["diseased"], found["normal"]) == ("test", 7, 4, 3)
    point = found["arms"]["alone"]["at_threshold"]
    assert (point["sensitivity"]["right"], point["sensitivity"]["of"]) == (2, 4)
    assert point["balanced_accuracy"]["value"] == pytest.approx((2 / 4 + 2 / 3) / 2)
    assert point["threshold"] == 0.5
    assert found["arms"]["alone"]["auc"]["value"] == pytest.approx(
        (4 + (4 + 2) / 2) / 12
    )  # 4 of 12 pairs in order, 6 tied
    first = found["differences"][0]
    assert (first["first"], first["second"]) == ("dual", "alone")
    assert first["figures"]["sensitivity"]["value"] == pytest.approx(1 / 4)
    assert first["figures"]["specificity"]["value"] == pytest.approx(1 / 3)
    changes = found["changes"]
    assert [changes[name] for name in ("both_right", "now_right", "now_wrong", "both_wrong")] == [3, 3, 1, 0]
    told = {one["case"]: (one["label"], one["now"]) for one in changes["cases"]}
    assert told == {
        "mnms/T013": (1, "wrong"),
        "mnms/T014": (1, "right"),
        "mnms/T015": (1, "right"),
        "mnms/T018": (0, "right"),
    }


@pytest.mark.parametrize(
    ("scores", "verdict", "headline", "words"),
    [
        (HELPED, "better", "Yes: on your 60 cases", "the interval is above 0"),
        (HARMED, "worse", "No: on your 60 cases", "the interval is below 0"),
        (SAME, "unseen", "No difference", "the interval includes 0: no difference can be seen in 60 cases"),
    ],
)
def test_the_answer_claims_what_the_interval_shows(
    tmp_path: Path, scores: Any, verdict: str, headline: str, words: str
) -> None:
    found = made(tmp_path, scores)
    assert found["verdict"] == verdict
    assert found["headline"].startswith(headline)
    assert found["answer"].startswith("On 60 held-out cases the federated model with your local part finds ")
    assert words in found["answer"]


# --- what it does not claim -------------------------------------------------------------------------------------------


def test_one_class_alone_has_no_auc_and_no_answer(tmp_path: Path) -> None:
    found = made(tmp_path, report_state.scores([1] * 8, {}))
    assert found["verdict"] == "unknown"
    arm = found["compared"]["arms"]["dual"]
    assert arm["auc"] is arm["at_half"]["specificity"] is arm["at_half"]["balanced_accuracy"] is None
    assert arm["at_half"]["sensitivity"]["right"] == 8
    assert any("All 8 cases are with disease" in line for line in found["cautions"])
    assert "8 of 8 with disease" in check_stands_alone(page.page(found)).text


def test_without_validation_cases_rates_stand_at_one_half_and_no_threshold_is_claimed(tmp_path: Path) -> None:
    found = made(tmp_path, report_state.scores(LABELS, {"dual": GOOD * 0.1}, validation=0))
    compared = found["compared"]
    assert compared["at"] == "half"
    assert compared["arms"]["dual"]["at_threshold"] is None
    assert compared["arms"]["dual"]["at_half"]["sensitivity"]["right"] == 30
    assert any("no threshold could be chosen" in line for line in found["cautions"])
    text = check_stands_alone(page.page(found)).text
    assert "at 0.5" in text
    assert "at your threshold" not in text


def test_validation_cases_alone_are_said_to_flatter(tmp_path: Path) -> None:
    found = made(tmp_path, report_state.scores([], {}))
    assert (found["compared"]["set"], found["compared"]["cases"]) == ("validation", 12)
    assert any("flatter" in line for line in found["cautions"])


def test_few_cases_are_said_to_be_few(tmp_path: Path) -> None:
    found = made(tmp_path, report_state.scores([1] * 20 + [0] * 4, {}))
    assert any("Only 4 normal cases" in line for line in found["cautions"])


def test_no_cases_at_all_is_no_error(tmp_path: Path) -> None:
    found = made(tmp_path, report_state.scores([], {}, validation=0))
    assert found["compared"] is None
    assert "neither held-out nor validation cases" in found["missing"][0]
    check_stands_alone(page.page(found))


def test_where_the_site_uses_its_own_part_alone_dual_is_not_called_the_federated_one(tmp_path: Path) -> None:
    agreed = report_state.contract(Recipe(name="ditto-lora", rank_local=2, alpha_local=4.0))
    told = made(tmp_path, SAME, agreed)["cautions"]
    assert any("Under recipe ditto-lora dual is your own part alone" in line for line in told)


def test_under_differential_privacy_it_says_who_trained_with_noise_and_what_is_spent(tmp_path: Path) -> None:
    agreed = report_state.contract(Recipe(**methods.PRIVATE))
    found = made(tmp_path, SAME, agreed)
    assert found["privacy"]["epsilon"] is None
    assert found["privacy"]["noise"] == agreed.recipe.dp_noise
    (told,) = (line for line in found["cautions"] if "differential privacy" in line)
    assert "nothing is spent yet" in told
    assert "probe and alone without" in told
    assert [one["train_loss"] for one in found["rounds_here"]] == [None, None]


# --- what is missing --------------------------------------------------------------------------------------------------


def test_a_federation_in_progress_has_its_curve_and_says_what_comes_at_the_end(tmp_path: Path) -> None:
    report_state.write(tmp_path, None)
    found = facts.gather(tmp_path)
    assert (found["finished"], found["compared"]) == (False, None)
    assert found["missing"] == ["Not finished: the arms are compared when the federation is finished, after round 4."]
    assert [one["update"] for one in found["rounds_here"]] == ["accepted", "accepted"]
    text = check_stands_alone(page.page(found)).text
    assert "Not finished" in text
    assert "validation figures" in text
    shown = run("--state", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "2 of 4 rounds trained here, 2 updates accepted" in shown.stdout
    assert "version 2 on 12 validation cases: AUC 0.800" in shown.stdout


def test_a_report_of_an_earlier_contract_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    found = made(tmp_path, SAME, contract="ab" * 32)
    assert found["compared"] is None
    assert "of an earlier contract" in found["missing"][0]


def test_a_report_of_an_earlier_version_says_so(tmp_path: Path) -> None:
    older = {"version": 1, "digest": "cd" * 32, "parameters": 92, "bytes": 368}
    found = made(tmp_path, SAME, adapter=older)
    assert found["compared"]["cases"] == 60
    assert "The figures are of version 1; the site has version 2 since" in found["missing"][0]


def test_a_report_of_an_older_agent_has_no_scores_and_the_next_command_is_named(tmp_path: Path) -> None:
    report_state.write(tmp_path, SAME)
    (tmp_path / CASES).unlink()
    found = facts.gather(tmp_path)
    assert found["compared"] is None
    assert "start the agent again, with --once" in found["missing"][0]


def test_another_table_of_scores_is_not_taken_for_the_reports(tmp_path: Path) -> None:
    report_state.write(tmp_path, SAME)
    (tmp_path / CASES).write_bytes(HELPED.to_csv())
    assert "not the table that the report was made from" in facts.gather(tmp_path)["missing"][0]


@pytest.mark.parametrize("data", [b"{", b"[]", b"{}"])
def test_a_damaged_report_is_an_error_that_names_the_way_out(tmp_path: Path, data: bytes) -> None:
    report_state.write(tmp_path, SAME)
    (tmp_path / REPORT).write_bytes(data)
    with pytest.raises(InputError, match=r"report\.json is damaged .*start the agent again"):
        facts.gather(tmp_path)


def test_a_curve_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    report_state.write(tmp_path, None)
    (tmp_path / HISTORY).write_bytes(b"{")
    assert facts.gather(tmp_path)["history"] == []


def test_a_folder_that_is_no_agents_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no agent's state"):
        facts.gather(tmp_path)


def test_it_is_read_while_the_agent_holds_its_folder(tmp_path: Path) -> None:
    report_state.write(tmp_path, SAME)
    holding = State(tmp_path)
    assert facts.gather(tmp_path)["finished"]
    holding.close()


# --- page and command -------------------------------------------------------------------------------------------------


def test_the_page_stands_alone_says_private_first_and_escapes_keys(tmp_path: Path) -> None:
    keys = ["mnms/<script>alert(1)</script>", *HELPED.keys[1:]]
    scores = report_state.scores(LABELS, {"alone": GUESSES})
    renamed = type(scores)(
        keys=(*scores.keys[:12], keys[0], *scores.keys[13:]), sets=scores.sets, labels=scores.labels,
        margins={**scores.margins, "alone": np.where(np.arange(72) == 12, -1.0, scores.margins["alone"])},
    )  # fmt: skip
    shown = page.page(made(tmp_path, renamed))
    found = check_stands_alone(shown)
    body = shown[shown.index("<main>") :]
    assert re.match(r'<main>\s*<p class="stamp private">PRIVATE: holds keys of your cases', body)
    assert "mnms/<script>alert(1)</script>" in found.text
    assert "now right" in found.text.replace(" ", " ")
    assert all(rule in shown for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 520px"))
    assert "nan" not in shown
    assert "None" not in found.text


def test_the_command_is_short_and_marks_what_it_writes_as_private(tmp_path: Path) -> None:
    report_state.write(tmp_path / "state", SAME)
    html, table = tmp_path / "report.html", tmp_path / "cases.csv"
    shown = run("--state", tmp_path / "state", "--html", html, "--cases", table)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("PRIVATE: ")
    assert len(lines) < 30
    assert max(map(len, lines)) <= 100 or "wrote" in max(lines, key=len)
    assert f"wrote {html}. Private" in shown.stdout
    assert {stat.S_IMODE(path.stat().st_mode) for path in (html, table)} == {0o600}
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 72
    assert rows[0].keys() == {"case", "set", "label", *(f"{w}_{a}" for a in ARMS for w in ("probability", "disease"))}
    right = sum(row["label"] == row["disease_dual"] for row in rows if row["set"] == "test")
    changes = facts.gather(tmp_path / "state")["compared"]["changes"]
    assert right == changes["both_right"] + changes["now_right"]


def test_json_has_everything_and_is_strict(tmp_path: Path) -> None:
    report_state.write(tmp_path, report_state.scores([1] * 8, {}))
    shown = run("--state", tmp_path, "--json")
    assert shown.exit_code == 0, shown.output
    value = json.loads(shown.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert canonical_json(value) == canonical_json(facts.gather(tmp_path))
    assert {"arms", "adapter", "history", "compared", "differences"} <= value.keys() | value["compared"].keys()


def test_cases_are_refused_while_there_are_none(tmp_path: Path) -> None:
    report_state.write(tmp_path, None)
    shown = run("--state", tmp_path, "--cases", tmp_path / "cases.csv")
    assert isinstance(shown.exception, InputError)
    assert "no scores of cases" in str(shown.exception)
    assert not (tmp_path / "cases.csv").exists()

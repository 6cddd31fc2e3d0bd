"""The command refuses before it writes, says what there is to do, and what to do when it was stopped."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from experiments.comparison import config, engine, records, tuning
from experiments.comparison.__main__ import app
from experiments.comparison.plan import WEIGHTS, Plan, cells
from shared.errors import InputError
from tests.support import comparison_folder as made

SMALL = ("--scale", "0.02", "--rounds", "1", "--test-cases", "2", "--runs", "2", "--other-runs", "1", "--jobs", "1")


def invoke(out: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["run", "--out", str(out), *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def begin(out: Path) -> None:
    """Write a folder of SMALL with made-up cells of the core, of which one is missing."""
    plan = Plan(out=out, weights=WEIGHTS, scale=0.02, test_cases=2, rounds=1, runs=2, other_runs=1)
    config.freeze(plan)
    (out / tuning.CHOSEN).write_text(json.dumps(made.choices()))
    for one in list(cells(plan, ("core",)))[1:]:
        folder = out / "cells" / one.scenario
        records.write(
            folder, made.cell(one.scenario, one.method, one.run), made.drawn(one.scenario, one.method, one.run, 5)
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "foo"], "--only takes core, other, extension, got 'foo'"),
        (["--cell", "shifted"], "--cell takes scenario/method/run"),
        (["--cell", "shifted/ours/10"], "there are 10 runs of it"),
        (["--scale", "0"], "scale must lie above 0 and be at most 100, got 0.0"),
        (["--scale", "-1"], "got -1.0"),
        (["--scale", "nan"], "got nan"),
        (["--scale", "inf"], "got inf"),
        (["--size", "base"], "--size base says which network a bare CineMA file holds, .* leave --size out"),
        (["--data", "prepared"], "--data needs --weights"),
        (["--weights", "nowhere"], "no weights at nowhere"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        invoke(tmp_path / "new", *words)
    assert not (tmp_path / "new").exists()


def test_a_list_of_cells_writes_nothing_and_is_of_what_is_wanted(tmp_path: Path) -> None:
    lines = invoke(tmp_path / "new", "--list", "--only", "core").splitlines()
    assert lines == [
        f"tuning/{one.key}/0" for one in tuning.candidates() if one.key.partition(tuning.MARK)[0] in made.CORE
    ]
    assert len(lines) == 28
    assert not (tmp_path / "new").exists()


def test_a_list_of_cells_of_another_comparison_s_folder_is_refused(tmp_path: Path) -> None:
    begin(tmp_path)
    assert invoke(tmp_path, "--list", "--only", "core", *SMALL) == "homogeneous/local-only/0\n"
    with pytest.raises(InputError, match=r"\(rounds: 1 there, 3 here\)"):
        invoke(tmp_path, "--list", *SMALL, "--rounds", "3")


def test_what_is_finished_counts_and_what_is_left_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path)
    monkeypatch.setattr(engine, "run", lambda plan, wanted, jobs, phase: [])
    first, second, *_ = invoke(tmp_path, *SMALL, "--only", "core").splitlines()
    assert first == f"comparison in {tmp_path}: reading the plan"
    assert second.startswith(
        "56 cells of the comparison (55 finished, 1 left). What is left, 1 at a time: about 1 min."
    )


@pytest.mark.parametrize("finished", [True, False])
def test_stopped_it_says_how_a_report_is_made_of_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    def stopped(*_: object) -> list[str]:
        raise KeyboardInterrupt

    if finished:
        begin(tmp_path)
    monkeypatch.setattr(engine, "run", stopped)
    done = CliRunner().invoke(app, ["run", "--out", str(tmp_path), *SMALL, "--only", "core"])
    assert done.exit_code == 130
    when = "" if finished else ", once a cell of the comparison is finished"
    report = f"For a report of what there is{when}: python -m experiments.comparison report --out {tmp_path}"
    assert f"the same command goes on. {report}" in done.stderr


def test_sigterm_stops_it_as_an_interrupt_does_and_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(engine, "run", lambda *_: signal.raise_signal(signal.SIGTERM))
    done = CliRunner().invoke(app, ["run", "--out", str(tmp_path), *SMALL, "--only", "core"])
    assert done.exit_code == 130
    assert "comparison: stopped; what is finished stays" in done.stderr
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_versions_than_the_folder_s_are_warned_of_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path)
    monkeypatch.setattr(engine, "run", lambda plan, wanted, jobs, phase: [])
    here = dict(config.versions())
    monkeypatch.setattr(config, "versions", lambda: here | {"torch": "99.0"})
    done = CliRunner().invoke(app, ["run", "--out", str(tmp_path), *SMALL, "--only", "core"], catch_exceptions=False)
    assert done.exit_code == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"comparison: {tmp_path} was begun with other versions (torch: ")
    assert "there, 99.0 here" in line


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["report", "--help"]])
def test_help_explains_exit_codes(words: list[str]) -> None:
    said = CliRunner().invoke(app, words).output
    assert "0 done, 1 a cell failed, 2 an option cannot be read, 3 wrong input, 130 stopped" in " ".join(said.split())


def test_a_list_of_cells_needs_no_pytorch(tmp_path: Path) -> None:
    code = (
        "import sys; from experiments.comparison.__main__ import app\n"
        f"app(['run', '--list', '--out', {str(tmp_path / 'new')!r}], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_an_interrupt_ends_it_with_its_code(tmp_path: Path) -> None:
    words = ["run", "--out", str(tmp_path), *SMALL, "--only", "core"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "experiments.comparison", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert b"reading the plan" in process.stdout.readline()
    assert b"28 cells of tuning and 56 cells of the comparison" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"comparison: stopped; what is finished stays" in said

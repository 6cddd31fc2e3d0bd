"""`site-agent phantom` as a user types it."""

import json
from pathlib import Path

import matplotlib.image
import pytest
import typer
from typer.testing import CliRunner

from shared.errors import InputError
from site_agent.cli import phantom

SMALL = ["--size", "24", "24", "4", "--spacing", "5", "5", "20", "--scale", "0.02", "--test-cases", "2", "--jobs", "1"]


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    phantom.register(app)
    return app


def test_the_summary_table_counts_what_was_written(app: typer.Typer, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "raw"), *SMALL])
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line.split() for line in result.output.splitlines()}
    assert lines["siemens"][1:] == ["5", "20", "%", "2", "50", "%", "3", "4"]
    assert lines["all"][1:] == ["17", "8"]
    assert result.output.startswith("SYNTHETIC")
    assert (tmp_path / "raw/SYNTHETIC.txt").is_file()


def test_json_is_one_object_with_the_same_facts(app: typer.Typer, tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "raw"), "--vendors", "canon, GE", "--seed", "3", "--json", *SMALL]
    facts = json.loads(CliRunner().invoke(app, options).output)
    assert (facts["synthetic"], facts["seed"]) == (True, 3)
    assert facts["vendors"]["canon"] == {
        "train": 4, "train_healthy": 1, "test": 2, "test_healthy": 1, "acdc": 0, "mnms": 6,
    }  # fmt: skip
    assert list(facts["vendors"]) == ["canon", "ge"]


def test_the_figure_is_an_image_and_needs_no_cohort(app: typer.Typer, tmp_path: Path) -> None:
    figure = tmp_path / "phantom.png"
    result = CliRunner().invoke(app, ["--figure", str(figure), "--vendors", "ge", "--size", "32", "32", "4"])
    assert result.exit_code == 0, result.output
    height, width, _ = matplotlib.image.imread(figure).shape
    assert width > 800
    assert height > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --out FOLDER"),
        (["--out", "x", "--vendors", "acme"], "vendors must be some of siemens"),
        (["--out", "x", "--layout", "acdc"], "use --vendors siemens"),
        (["--out", "x", "--jobs", "0"], "jobs must be at least 1, got 0"),
        (["--figure", "no/such/folder/a.png"], "no folder no/such/folder"),
        (["--figure", "a.docx"], "cannot save the figure as a.docx"),
    ],
)
def test_a_wrong_option_is_an_input_error(
    app: typer.Typer, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, options)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert not list(tmp_path.iterdir())

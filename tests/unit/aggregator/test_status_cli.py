"""`aggregator status` on a terminal, piped, and as JSON: the same facts."""

import io
import json
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from aggregator import cli
from aggregator.cli import watching
from aggregator.facts import facts, material
from aggregator.facts.facts import Facts
from aggregator.store import agents, federations
from shared.errors import StoreUnavailable
from tests.support import closed_rounds

NOW = 1200.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    store = closed_rounds.make(folder, rounds_count=2)
    closed_rounds.run(store)
    store.close()
    return folder / "fed.db"


@pytest.fixture
def running(tmp_path: Path) -> Facts:
    """Round 2 of 3: ge trains and is half done, the others have been silent since they joined."""
    store = closed_rounds.make(tmp_path, rounds_count=3)
    closed_rounds.run(store, rounds_count=1)
    for site in closed_rounds.PATIENTS:
        store.write(federations.join, "demo", site, closed_rounds.PATIENTS[site], 5000.0)
        store.write(agents.heard, "demo", site, "agent", 1005.0, 60.0, {"progress": 0.0})
    store.write(agents.heard, "demo", "ge", "agent", 1153.0, 60.0, {"progress": 0.5})
    made = facts.make(store.read(material.read, "demo"), NOW)
    store.close()
    return made


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.build(), [str(argument) for argument in arguments])


def drawn(made: Facts, now: float, trouble: str = "") -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(watching.picture(made, now, trouble))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_watching_a_finished_federation_ends_at_once(finished: Path) -> None:
    once, watched = run("status", "--store", finished), run("status", "--store", finished, "--watch")
    assert (watched.exit_code, watched.stdout) == (0, once.stdout)
    assert watched.stdout.startswith("federation demo: finished, round 2 closed (2 of 2 closed)")


def test_watching_as_json_is_a_document_on_each_line(finished: Path) -> None:
    (line,) = run("status", "--store", finished, "--watch", "--json").stdout.splitlines()
    once = json.loads(run("status", "--store", finished, "--json").stdout)
    assert json.loads(line) | {"at": 0.0} == once | {"at": 0.0}


def test_the_picture_has_every_site_its_state_and_the_countdown(running: Facts) -> None:
    text = drawn(running, NOW)
    assert "round 2 open (1 of 3 closed): 0 of 3 in, 3 needed; 56 min left" in text
    (ge,) = (line for line in text.splitlines() if line.startswith("ge "))
    assert "training" in ge
    assert "47 s ago" in ge
    assert "in 1 min 43 s" in ge, "half of it took from 1003 to 1153 s"
    (canon,) = (line for line in text.splitlines() if line.startswith("canon "))
    assert "silent" in canon
    assert "400 B" in canon
    assert "round 1 closed with canon, ge, siemens: version 1" in text


def test_the_picture_goes_on_between_two_readings_and_says_when_there_are_none(running: Facts) -> None:
    later = drawn(running, NOW + 4000.0, "the store does not answer")
    assert "past its deadline for" in later
    assert "the store does not answer; this is of 1 h 6 min ago" in later


def test_a_store_that_is_away_is_waited_for(
    running: Facts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watching, "EVERY_S", 0.0)
    answers = iter([running, StoreUnavailable("the store is away"), running, {**running, "phase": "finished"}])

    def read() -> Facts:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watching.watch(read, as_json=True)
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert captured.err == "waiting: the store is away\n"

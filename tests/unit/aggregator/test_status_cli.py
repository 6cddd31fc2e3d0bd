"""`aggregator status` on a terminal, piped, and as JSON: the same facts."""

import io
import json
import sqlite3
import time
from contextlib import closing, redirect_stdout
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from aggregator import cli
from aggregator.cli import status, watching
from aggregator.errors import NoStore
from aggregator.facts import facts, material
from aggregator.facts.facts import Facts
from aggregator.store import agents, federations
from aggregator.web import view
from shared.errors import InputError, StoreUnavailable
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
def running(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """Round 2 of 3: ge trains and is half done, the others have been silent since they joined."""
    store = closed_rounds.make(tmp_path_factory.mktemp("running"), rounds_count=3)
    closed_rounds.run(store, rounds_count=1)
    for site in closed_rounds.PATIENTS:
        store.write(federations.join, "demo", site, closed_rounds.PATIENTS[site], 5000.0)
        store.write(agents.heard, "demo", site, "agent", 1005.0, 60.0, {"progress": 0.0})
    store.write(agents.heard, "demo", "ge", "agent", 1153.0, 60.0, {"progress": 0.5})
    made = facts.make(store.read(material.read, "demo"), NOW)
    store.close()
    return made


@pytest.fixture
def ended(tmp_path: Path) -> Facts:
    """All joined, and the only round is closed."""
    store = closed_rounds.make(tmp_path, rounds_count=1)
    for site in closed_rounds.PATIENTS:
        store.write(federations.join, "demo", site, closed_rounds.PATIENTS[site], 5000.0)
    closed_rounds.run(store, rounds_count=1)
    made = facts.make(store.read(material.read, "demo"), NOW)
    store.close()
    return made


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.build(), [str(argument) for argument in arguments])


def sites_table(made: Facts) -> str:
    """The lines of the sites, blanks counted once."""
    with redirect_stdout(io.StringIO()) as out:
        status.print_sites(made["sites"])
    return "\n".join(" ".join(line.split()) for line in out.getvalue().splitlines())


def drawn(made: Facts, now: float, trouble: str = "") -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(watching.picture(made, now, trouble))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_the_picture_says_why_a_site_is_missing(running: Facts) -> None:
    picture = " ".join(drawn(running, NOW).split())
    assert running["missing"]
    for name in running["missing"]:
        assert f"missing: {name}, {running['why_missing'][name]}" in picture
    many = {
        **running,
        "missing": [f"s{n}" for n in range(11)],
        "why_missing": {f"s{n}": "never joined" for n in range(11)},
    }
    assert "and 3 more are missing" in drawn(many, NOW)


def test_watching_a_finished_federation_ends_at_once(finished: Path) -> None:
    once, watched = run("status", "--store", finished), run("status", "--store", finished, "--watch")
    assert (watched.exit_code, watched.stdout) == (0, once.stdout)
    assert watched.stdout.startswith("federation demo: finished, round 2 closed (2 of 2 closed)")


def test_a_site_is_called_the_same_in_the_table_in_the_picture_and_on_the_page(running: Facts, ended: Facts) -> None:
    assert {site["standing"] for site in running["sites"]} == {"training", "silent"}
    assert {site["standing"] for site in ended["sites"]} == {"finished"}
    for made in (running, ended):
        for site in made["sites"]:
            words = f"{site['site']} {site['standing']}"
            assert words in sites_table(made)
            assert words in " ".join(drawn(made, NOW).split())
            assert f">{site['standing']}<" in view.page(made, "")
        assert "joined" not in sites_table(made)


def test_times_are_in_utc_and_say_so(running: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert "1970-01-01 00:19:13 UTC" in sites_table(running)
        assert "1970-01-01 00:16:43 UTC round 1 closed" in " ".join(drawn(running, NOW).split())
    finally:
        monkeypatch.undo()
        time.tzset()


def test_watching_as_json_is_a_document_on_each_line(finished: Path) -> None:
    (line,) = run("status", "--store", finished, "--watch", "--json").stdout.splitlines()
    once = json.loads(run("status", "--store", finished, "--json").stdout)
    assert json.loads(line) | {"at": 0.0} == once | {"at": 0.0}


def test_facts_of_a_store_that_is_migrated_just_then_are_json_and_nothing_else(tmp_path: Path) -> None:
    dump = Path(__file__).parent / "store" / "first_release.sql"
    with closing(sqlite3.connect(tmp_path / "old.db")) as raw:
        raw.executescript(dump.read_text())
    found = json.loads(run("status", "--store", tmp_path / "old.db", "--json").stdout)
    assert found["rounds_closed"] == 2


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


def test_a_store_that_is_not_there_yet_is_waited_for_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            (tmp_path / "fed.db").touch()  # as it is for a moment while it is being made
        elif len(waits) == 4:
            (tmp_path / "fed.db").unlink()
            store = closed_rounds.make(tmp_path, rounds_count=2)
            closed_rounds.run(store)
            store.close()

    monkeypatch.setattr("aggregator.cli.watching.time.sleep", sleep)
    watched = run("status", "--store", tmp_path / "fed.db", "--watch")
    assert watched.exit_code == 0
    assert watched.stdout.startswith("federation demo: finished")
    first, second = watched.stderr.splitlines()
    assert first.startswith(f"waiting: no store at {tmp_path}/fed.db; make one with: aggregator init --store ")
    assert second.startswith(f"waiting: no store at {tmp_path}/fed.db, it is empty; make one with")
    assert waits == [watching.EVERY_S] * 4
    with pytest.raises(NoStore):
        CliRunner().invoke(cli.build(), ["status", "--store", str(tmp_path / "no.db")], catch_exceptions=False)


def test_what_is_no_store_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(
        "not a database, and longer than the header of one, so that nobody takes it for one"
    )
    with pytest.raises(InputError, match="it is not a store of this program"):
        CliRunner().invoke(
            cli.build(), ["status", "--watch", "--store", str(tmp_path / "notes.txt")], catch_exceptions=False
        )


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

"""What the commands say of rounds that ask only some of the sites, and of rounds whose update bytes are gone."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from aggregator import cli, rounds
from aggregator.store import engine, updates
from tests.support import adapters, closed_rounds, methods

SITES = tuple("abcdef")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.build(), [str(argument) for argument in arguments])


def init(folder: Path, *more: object, sites: tuple[str, ...] = SITES) -> list[object]:
    adapters.adapter().write(folder / "v0.safetensors")
    named = [part for site in sites for part in ("--site", f"{site}=10")]
    return [
        "init", "--store", folder / "fed.db", "--federation", "demo", "--adapter", folder / "v0.safetensors", *named, *more
    ]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sites, three in a round by seed 7; two rounds closed, the bytes of the first purged."""
    folder = tmp_path_factory.mktemp("made")
    store = closed_rounds.make(folder, dict.fromkeys(SITES, 10), invited=3, sampling_seed=7, rounds_count=3)
    closed_rounds.run(store, SITES, rounds_count=2)
    store.write(updates.purge, "demo", 1, 1.0e9)
    store.close()
    return folder / "fed.db"


def test_init_prints_the_seed_it_drew_and_the_same_seed_draws_the_same_sites(tmp_path: Path) -> None:
    first = run(*init(tmp_path, "--invited", 3, "--json"))
    assert first.exit_code == 0, first.output
    facts = json.loads(first.stdout)
    assert (facts["invited"], facts["quorum"]) == (3, 3)
    again = tmp_path / "again"
    again.mkdir()
    result = run(*init(again, "--invited", 3, "--sampling-seed", facts["sampling_seed"]))
    assert f"8 rounds of 3 sites each, drawn with seed {facts['sampling_seed']}, quorum 3" in result.stdout
    asked = [json.loads(run("status", "--store", f / "fed.db", "--json").stdout) for f in (tmp_path, again)]
    assert asked[0]["missing"] == asked[1]["missing"] == list(rounds.invite(SITES, 3, facts["sampling_seed"], 1))


def test_without_sampling_init_speaks_of_no_seed(tmp_path: Path) -> None:
    result = run(*init(tmp_path))
    assert "8 rounds, quorum 6" in result.stdout
    status = run("status", "--store", tmp_path / "fed.db")
    assert "drawn" not in status.stdout
    assert json.loads(run("status", "--store", tmp_path / "fed.db", "--json").stdout)["sampling"] is None


@pytest.mark.parametrize("quorum", [1, 2])
def test_a_quorum_below_three_warns_with_sampling_too(tmp_path: Path, quorum: int) -> None:
    result = run(*init(tmp_path, "--invited", 2, "--quorum", quorum))
    assert result.exit_code == 0
    assert f"warning: with a quorum of {quorum}" in result.stderr


@pytest.mark.parametrize(
    ("parameters", "warning"),
    [
        ({"dp_epsilon": 1000.0, "dp_noise": 0.01}, "dp_epsilon 1000 protects nothing: every site refuses more than 50"),
        ({"dp_delta": 0.2}, "dp_delta 0.2 would let a patient be published whole: a, b, c, d, e, f will refuse it"),
        ({"dp_epsilon": 50.0}, ""),
    ],
)
def test_a_promise_of_privacy_that_every_site_will_refuse_warns(
    tmp_path: Path, parameters: dict[str, float], warning: str
) -> None:
    recipe = {**methods.PRIVATE, **parameters}
    set_ = [part for name, value in recipe.items() if name != "name" for part in ("--set", f"{name}={value}".lower())]
    result = run(*init(tmp_path, "--recipe", recipe["name"], *set_))
    assert result.exit_code == 0, result.output
    assert (f"warning: {warning}" in result.stderr) if warning else ("dp_" not in result.stderr)


def test_status_says_who_is_asked_and_who_is_not(made: Path) -> None:
    text = run("status", "--store", made).stdout
    assert "a round asks 3 of 6 sites, drawn with seed 7; this one: b, c, d" in text  # test_rounds_sampling.ORDER
    assert text.count("0%") == 3
    facts = json.loads(run("status", "--store", made, "--json").stdout)
    assert facts["sampling"] == {"invited": 3, "sites": 6, "seed": 7}
    assert [site["site"] for site in facts["sites"] if site["invited"]] == ["b", "c", "d"]
    assert run("sites", "--store", made).stdout.count("0%") == 3


def test_rounds_show_how_many_were_asked_and_not_everybody_who_was_not(made: Path) -> None:
    header, *lines = run("rounds", "--store", made).stdout.splitlines()
    assert header.split()[:5] == ["round", "phase", "version", "invited", "updates"]
    assert [line.split()[-1] for line in lines] != []
    assert "not invited" not in "".join(lines)
    facts = json.loads(run("rounds", "--store", made, "--json").stdout)
    assert [r["purged_at"] for r in facts] == [1.0e9, None, None]
    assert sorted(facts[0]["invited"]) == sorted(facts[0]["accepted"])


def test_verify_says_of_a_purged_round_that_it_cannot_be_recomputed(made: Path) -> None:
    result = run("verify", "--store", made)
    assert result.exit_code == 0
    first, _, *last = result.stdout.splitlines()
    assert first == ("round 1: 3 updates, manifest chain ok, update bytes purged by retention: result not recomputable")
    assert last == [
        "1 of 2 closed rounds recompute to the same bytes",
        "1 cannot be recomputed, their update bytes are purged: only the manifest chain was checked",
    ]
    report = json.loads(run("verify", "--store", made, "--json").stdout)
    assert (report["ok"], report["purged"]) == (True, 1)
    assert [r["purged"] for r in report["rounds"]] == [True, False]
    assert "not recomputable" in report["rounds"][0]["finding"]


def test_verify_fails_for_a_round_that_is_gone(made: Path, tmp_path: Path) -> None:
    copy = shutil.copy(made, tmp_path / "fed.db")
    store = engine.open_store(str(copy))
    store.write(lambda connection: connection.exec_driver_sql("DELETE FROM rounds WHERE number = 2"))
    store.close()
    result = run("verify", "--store", copy)
    assert result.exit_code == 1
    assert "round 2: 0 updates, DIFFERS: round 2 is not in the store" in result.stdout

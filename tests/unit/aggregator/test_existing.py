"""`aggregator init` where there is a federation already: it says what is there, and touches nothing."""

import json
from pathlib import Path

import pytest

from aggregator import existing, setup
from aggregator.setup import FederationPlan
from tests.support import adapters, closed_rounds
from tests.support.command import Finished, run

PLAN = {"ge": None, "philips": 40, "siemens": None}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an adapter, in which commands run."""
    monkeypatch.chdir(tmp_path)
    adapters.adapter().write(tmp_path / "v0.safetensors")
    return tmp_path


def init(*more: object, **options: object) -> Finished:
    given = {"store": "fed.db", "federation": "heart", "adapter": "v0.safetensors", **options}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    sites = () if "--site" in more else ("--site", "ge", "--site", "philips=40", "--site", "siemens")
    return run("init", *words, *sites, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# a store with a federation


def test_the_second_init_says_what_is_there_and_what_to_do() -> None:
    assert init().returncode == 0
    for again in (init(), init("--quorum", 1, adapter="nowhere", federation="another"), init("--site", "canon")):
        assert again.returncode == 3
        assert again.stderr.startswith("error: store fed.db holds federation 'heart' already (made 20")
        assert again.stderr.count("\n") == 1
        assert " UTC; 0 of 8 rounds closed; sites ge, philips, siemens)" in again.stderr
        for command in ("aggregator serve --store fed.db", "aggregator status --store fed.db", "another --store"):
            assert command in again.stderr


def test_it_says_so_before_it_looks_for_certificates_and_names_them_in_the_next_command(here: Path) -> None:
    assert init("--host", "fed.example.org", "--coordinator", "anna").returncode == 0
    before = contents(here / "certs")
    again = init("--host", "fed.example.org", "--coordinator", "anna")
    assert again.returncode == 3
    assert "--tls-cert certs/aggregator.pem" in again.stderr
    assert contents(here / "certs") == before


def test_closed_rounds_are_counted_and_many_sites_are_not_all_named(tmp_path: Path) -> None:
    closed_rounds.make(tmp_path, dict.fromkeys("abcdefghij", 10)).close()
    assert "sites a, b, c, d, e, f, g, h and 2 more)" in init().stderr
    (tmp_path / "closed").mkdir()
    store = closed_rounds.make(tmp_path / "closed")
    closed_rounds.run(store, rounds_count=1)
    store.close()
    assert "1 of 2 rounds closed" in init(store="closed/fed.db").stderr


def test_a_place_without_a_federation_is_none(tmp_path: Path) -> None:
    assert existing.read("nowhere.db") is None
    (tmp_path / "empty.db").touch()
    assert existing.read("empty.db") is None


def test_what_is_no_store_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fed.db").write_text(
        "somebody's notes, longer than the header of a database would be, and kept as they are"
    )
    refused = init()
    assert refused.returncode == 3
    assert "it is not a store of this program" in refused.stderr
    assert (tmp_path / "fed.db").read_text().startswith("somebody's notes")


# --if-missing


def test_a_federation_as_asked_for_is_left_as_it_is() -> None:
    first = json.loads(init("--if-missing", "--json").stdout)
    journal = run("audit", "--store", "fed.db").stdout
    again = init("--if-missing")
    assert again.returncode == 0
    assert "holds federation 'heart' already" in again.stdout
    assert "as asked for: left as it is\nnext: aggregator serve --store fed.db" in again.stdout
    assert first.pop("made") is True
    facts = json.loads(init("--if-missing", "--json").stdout)
    assert facts.pop("made") is False
    assert facts == first
    assert run("audit", "--store", "fed.db").stdout == journal


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rounds", 9], "rounds: 8 there, 9 asked for"),
        (["--quorum", 2], "quorum: 3 there, 2 asked for"),
        (["--deadline-s", 60], "deadline_s: 3600.0 there, 60.0 asked for"),
        (["--set", "local_epochs=3"], "local_epochs: 2 there, 3 asked for"),
        (["--recipe", "ffa-lora"], "recipe: med-duallora there, ffa-lora asked for"),
        (["--site", "ge", "--site", "siemens"], "site philips: there, not asked for"),
        (["--site", "ge", "--site", "philips", "--site", "siemens", "--site", "canon"], "site canon: not there, asked for"),
        (["--site", "ge", "--site", "philips=41", "--site", "siemens"], "training patients of philips: 40 there, 41 asked for"),
        (["--site", "ge=7", "--site", "philips", "--site", "siemens"], "training patients of ge: not fixed there, 7 asked for"),
    ],
)  # fmt: skip
def test_a_setting_that_differs_is_named_with_both_values(here: Path, more: list[object], said: str) -> None:
    setup.create("fed.db", FederationPlan(name="heart", adapter=Path("v0.safetensors"), sites=PLAN), 1000.0)
    before = (here / "fed.db").read_bytes()
    refused = init("--if-missing", *more)
    assert refused.returncode == 3
    assert f"not the one asked for: {said}. It stays as it is" in refused.stderr
    assert (here / "fed.db").read_bytes() == before


def test_another_name_and_another_adapter_are_differences(here: Path) -> None:
    assert init().returncode == 0
    assert "federation: heart there, liver asked for" in init("--if-missing", federation="liver").stderr
    adapters.adapter(seed=1).write(here / "v0.safetensors")
    other = adapters.adapter(seed=1).digest[:12]
    assert f"adapter: {adapters.adapter().digest[:12]} there, {other} asked for" in init("--if-missing").stderr


def test_the_seed_of_the_draws_differs_only_where_one_is_asked_for() -> None:
    drawn = ("--if-missing", "--invited", 2, "--quorum", 2)
    assert init(*drawn, "--sampling-seed", 7).returncode == 0
    assert init(*drawn).returncode == 0
    assert init(*drawn, "--sampling-seed", 7).returncode == 0
    assert "sampling_seed: 7 there, 8 asked for" in init(*drawn, "--sampling-seed", 8).stderr


def test_after_one_that_was_killed_between_certificates_and_store_the_rest_is_made(here: Path) -> None:
    people = ("--host", "fed.example.org", "--coordinator", "anna")
    assert run("certificates", "--out", "certs", "--host", "fed.example.org").returncode == 0
    before = contents(here / "certs")
    refused = init(*people)
    assert "certs/aggregator.pem exists already: leave --host and --coordinator out" in refused.stderr
    assert not (here / "fed.db").exists()
    assert init("--if-missing", *people).returncode == 0
    after = contents(here / "certs")
    assert set(after) - set(before) == {"anna.pem", "anna.key"}
    assert {name: after[name] for name in before} == before

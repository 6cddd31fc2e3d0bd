"""A federation on several hosts, with mutual TLS, from the guides alone; and every command of the pages, run on what it leaves."""

import os
from collections.abc import Iterator

import pytest

from aggregator.store import engine, federations
from tests.docs import federation, pages, rules, shown
from tests.docs.federation import ROUNDS, SITES, Federation
from tests.docs.pages import Command
from tests.docs.shown import Ended

pytestmark = pytest.mark.integration

MOST = 3
RUN_HERE = [one for one in pages.distinct() if rules.where(one) in shown.RUN_HERE]


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation that was set up and brought to its end by the guides."""
    with federation.run(tmp_path_factory.mktemp("guided")) as found:
        yield found


@pytest.fixture(scope="module")
def ended(guided: Federation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Every command that is run here, with how it ended."""
    return shown.run_all(RUN_HERE, guided, tmp_path_factory.mktemp("shown"))


# --- a federation on several hosts ------------------------------------------------------------------------------------


def test_it_takes_three_commands_on_each_side(guided: Federation) -> None:
    assert {who: len(given) for who, given in guided.given.items()} == dict.fromkeys(("coordinator", *SITES), MOST)
    assert not [text for given in guided.given.values() for text in given if "--plain" in text]


def test_every_host_has_a_network_of_its_own(guided: Federation) -> None:
    networks = {guided.coordinator.namespace, *(machine.namespace for machine in guided.hospitals.values())}
    assert len(networks) == (1 + len(SITES) if os.geteuid() == 0 else 1)


def test_all_rounds_are_closed_with_everybody_known_by_a_certificate(guided: Federation) -> None:
    store = engine.open_store(str(guided.coordinator.folder / "fed.db"))
    try:
        state = store.read(federations.state, "heart")
    finally:
        store.close()
    assert (state.phase, state.version) == ("finished", ROUNDS)
    assert {site: state.sites[site].authenticated for site in SITES} == dict.fromkeys(SITES, True)


def test_no_key_of_a_hospital_is_at_the_coordinator(guided: Federation) -> None:
    there = b"".join(path.read_bytes() for path in guided.coordinator.folder.rglob("*") if path.is_file())
    for site, machine in guided.hospitals.items():
        key = machine.folder / f"{site}.key"
        assert key.stat().st_mode & 0o777 == 0o600
        secret = key.read_bytes().splitlines()[1]
        assert secret not in there
        assert (machine.folder / f"{site}.pem").read_bytes() in (machine.folder / f"{site}.approved.pem").read_bytes()


def test_every_hospital_has_its_report(guided: Federation) -> None:
    for machine in guided.hospitals.values():
        assert (machine.folder / "state" / "report.json").is_file()


# --- every command of the pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", RUN_HERE, ids=lambda one: one.where)
def test_it_does_what_the_page_says(command: Command, ended: dict[str, Ended]) -> None:
    found = ended[command.text]
    assert found.code == 0, f"{command.where}: {found.ran}\n{found.said[-3000:]}"

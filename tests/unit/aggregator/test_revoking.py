"""`aggregator revoke`: what it takes back, what it says of an update that was in already, and what cannot be revoked."""

import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from aggregator import audit, certificates, cli
from aggregator.store import agents
from aggregator.store.engine import Store
from shared import journal
from shared.certificates import holder_in
from shared.errors import InputError
from tests.support import adapters, closed_rounds

GE_UPDATE = adapters.delta(adapters.adapter().manifest.layout, 1)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    certificates.make(folder, ["127.0.0.1"], ["ge", "siemens"], ["anna"])
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Round 1 is open, and holds the update of ge."""
    made = closed_rounds.make(tmp_path)
    closed_rounds.send(made, "ge", GE_UPDATE)
    yield made
    made.close()


def revoke(folder: Path, *words: object) -> Result:
    return CliRunner().invoke(
        cli.build(), ["revoke", "--store", str(folder / "fed.db"), *map(str, words)], catch_exceptions=False
    )


def test_an_update_that_was_accepted_before_stays_and_that_is_said(store: Store, tmp_path: Path, certs: Path) -> None:
    said = revoke(tmp_path, "--certificate", certs / "ge.pem").output
    assert f"certificate {holder_in(certs / 'ge.pem').serial} of site ge is revoked" in said
    assert "the update of ge in round 1 was accepted before, stays in it and counts" in said
    assert "to take the site out: aggregator evict ge" in said
    said = revoke(tmp_path, "--certificate", certs / "siemens.pem").output
    assert "was accepted" not in said, "siemens has sent nothing"


def test_by_its_number_alone_a_certificate_is_known_as_the_one_that_a_site_showed_last(
    store: Store, tmp_path: Path
) -> None:
    store.write(agents.heard, "demo", "ge", "agent-ge", 1001.0, 60.0, {"serial": "abc123"})
    assert "the update of ge in round 1 was accepted before" in revoke(tmp_path, "--serial", "0xABC123").output
    assert "was accepted" not in revoke(tmp_path, "--serial", "abc124").output


def told(store: Store) -> list[journal.Entry]:
    return [one for one in journal.verify(audit.lines(store, "demo")).entries if one.event == "certificate_revoked"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("aggregator.pem", r"it is the aggregator's own, .* make another \(aggregator certificates"),
        ("ca.pem", r"is a CA: .* make another in an empty folder \(aggregator certificates"),
    ],
)
def test_what_sites_do_not_ask_about_is_not_said_to_be_revoked(
    store: Store, tmp_path: Path, certs: Path, file: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        revoke(tmp_path, "--certificate", certs / file)
    assert told(store) == []


def test_a_person_s_certificate_is_revoked_too(store: Store, tmp_path: Path, certs: Path) -> None:
    assert "of coordinator anna is revoked" in revoke(tmp_path, "--certificate", certs / "anna.pem").output


def test_who_revokes_is_the_account_and_not_what_the_environment_says(
    store: Store, tmp_path: Path, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    revoke(tmp_path, "--certificate", certs / "ge.pem")
    (line,) = told(store)
    assert line.facts["by"] == pwd.getpwuid(os.getuid()).pw_name

"""`aggregator init` with requests: CA, certificates, federation and the sites' answers in one command."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from aggregator import cli, enrolment, setup
from shared.errors import InputError
from site_agent import enrolment as sites
from tests.support import adapters

SITES = ("ge", "philips", "siemens")


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command, in a folder with three requests and an adapter."""
    monkeypatch.chdir(tmp_path)
    adapters.adapter().write(tmp_path / "v0.safetensors")
    asked = [word for site in SITES for word in ("--request", str(sites.request(tmp_path / site, site).csr))]
    given = ["init", "--store", "fed.db", "--federation", "heart", "--adapter", "v0.safetensors", *asked]
    return [*given, "--host", "fed.example.org", "--coordinator", "anna"]


def run(*words: str) -> str:
    done = CliRunner().invoke(cli.build(), words, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_one_command_makes_all_and_every_site_can_finish(words: list[str], tmp_path: Path) -> None:
    said = run(*words)
    assert {path.name for path in (tmp_path / "certs").iterdir()} == {
        f"{who}.{kind}" for who in ("ca", "aggregator", "anna") for kind in ("key", "pem")
    }
    for site in SITES:
        asked = enrolment.read_request(tmp_path / site / f"{site}.csr")
        assert f"site {site}, key {asked.fingerprint}" in said
        done = sites.finish(tmp_path / site, tmp_path / f"{site}.approved.pem")
        assert done.holder.site == site
        assert said.count(f"fingerprint of the CA, to be compared by each site: {done.ca_fingerprint}\n") == 1


def test_json_stays_json(words: list[str]) -> None:
    done = CliRunner().invoke(cli.build(), [*words, "--json"], catch_exceptions=False)
    assert done.stdout.lstrip().startswith("{")
    assert done.stdout.rstrip().endswith("}")


@pytest.mark.parametrize(
    ("words_more", "message"),
    [
        (["--rounds", "1000000"], "rounds must be at most"),
        (["--request", "ge/ge.csr"], "two requests of site 'ge'"),
        (["--request", "nowhere.csr"], "cannot read the request"),
    ],
)
def test_what_is_refused_leaves_nothing(words: list[str], words_more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(cli.build(), [*words, *words_more], catch_exceptions=False)
    assert not (tmp_path / "certs").exists()
    assert not (tmp_path / "fed.db").exists()


def test_a_person_without_the_aggregators_certificate_is_refused(words: list[str], tmp_path: Path) -> None:
    alone = [word for word in words if word not in ("--host", "fed.example.org")]
    with pytest.raises(InputError, match="give --host too"):
        CliRunner().invoke(cli.build(), alone, catch_exceptions=False)
    assert not (tmp_path / "fed.db").exists()


def test_patients_may_be_fixed_for_a_site_that_sent_a_request() -> None:
    assert setup.parse_sites(["siemens=218"], ["siemens", "ge"]) == {"siemens": 218, "ge": None}

"""The certificate files of a site, wrong in one way."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from aggregator import certificates as authority
from site_agent.doctor import certificates
from site_agent.doctor.finding import Peer
from tests.support.doctored import certified, examined
from tests.support.serving import tls_of

DAY_S = 86_400.0


def test_files_that_fit_pass_with_the_sites_name(tmp_path: Path) -> None:
    found = certificates.files(examined(tmp_path, certified(tmp_path)))
    assert (found.status, found.facts["site"]) == ("PASS", "ge")


def test_a_key_that_is_not_the_certificates_fails(tmp_path: Path) -> None:
    files = certified(tmp_path, sites=("ge", "philips"))
    found = certificates.files(examined(tmp_path, replace(files, key=tmp_path / "philips.key")))
    assert found.status == "FAIL"
    assert "is not that of certificate" in found.words


@pytest.mark.parametrize("missing", ["ca", "certificate", "key"])
def test_a_file_that_is_not_there_fails_by_name(tmp_path: Path, missing: str) -> None:
    files = certified(tmp_path)
    getattr(files, missing).unlink()
    found = certificates.files(examined(tmp_path, files))
    assert found.status == "FAIL"
    assert getattr(files, missing).name in found.words


def test_a_ca_that_is_no_certificate_fails(tmp_path: Path) -> None:
    files = certified(tmp_path)
    files.ca.write_text("from: coordinator")
    assert certificates.files(examined(tmp_path, files)).status == "FAIL"


@pytest.mark.parametrize("damaged", ["certificate", "key"])
def test_a_file_that_is_no_pem_fails_by_name(tmp_path: Path, damaged: str) -> None:
    files = certified(tmp_path)
    whole = getattr(files, damaged).read_bytes()
    getattr(files, damaged).write_bytes(whole[: len(whole) // 2])
    found = certificates.files(examined(tmp_path, files))
    assert found.status == "FAIL"
    assert f"{getattr(files, damaged)} holds no {damaged}" in found.words
    assert "site-agent join --finish NAME.approved.pem" in found.remedy


def test_a_coordinators_certificate_is_no_sites(tmp_path: Path) -> None:
    authority.make(tmp_path, ["127.0.0.1"], ["ge"], coordinators=["anna"])
    found = certificates.files(examined(tmp_path, tls_of(tmp_path, "anna")))
    assert (found.status, found.words) == ("FAIL", "anna.pem names 0 sites, expected one")


def test_a_key_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    files = certified(tmp_path)
    files.key.chmod(0o644)
    found = certificates.files(examined(tmp_path, files))
    assert (found.status, found.remedy) == ("WARN", f"chmod 600 {files.key}")


def test_a_certificate_of_another_ca_is_warned_of(tmp_path: Path) -> None:
    files, other = certified(tmp_path / "a"), certified(tmp_path / "b")
    shutil.copy(other.ca, files.ca)
    found = certificates.files(examined(tmp_path, files))
    assert found.status == "WARN"
    assert "ge.pem is not signed by the CA in ca.pem" in found.words


@pytest.mark.parametrize(
    ("days_from_now", "status", "said"),
    [
        (0, "PASS", "good for 397 days (this site's certificate ends first)"),
        (350, "WARN", "this site's certificate expires on"),
        (400, "FAIL", "this site's certificate EXPIRED on"),
        (4000, "FAIL", "the CA in ca.pem EXPIRED on"),
        (-2, "FAIL", "is not valid yet"),
    ],
)
def test_the_end_of_a_certificate_is_told_by_this_machines_clock(
    tmp_path: Path, days_from_now: int, status: str, said: str
) -> None:
    now = datetime.now(UTC)
    files = certified(tmp_path, now=now)
    clock = (now + timedelta(days=days_from_now)).timestamp
    found = certificates.expiry(examined(tmp_path, files, clock=clock))
    assert found.status == status
    assert said in found.words


@pytest.mark.parametrize(
    ("ending", "remedies"),
    [
        ({"aggregator": 30}, ["the coordinator renews it: aggregator certificates --out certs --renew"]),
        ({"aggregator": -1}, ["the coordinator renews it: aggregator certificates --out certs --renew"]),
        ({"ge": 30}, ["ask the coordinator for another: site-agent join --site ge --out HERE"]),
        (
            {"ge": -1, "aggregator": 30},
            ["site-agent join --site ge --out HERE", "aggregator certificates --out certs --renew"],
        ),
    ],
)
def test_who_renews_what_ends_is_told_and_nothing_else(
    tmp_path: Path, ending: dict[str, int], remedies: list[str]
) -> None:
    now = datetime.now(UTC)
    files = certified(tmp_path, now=now)
    for name, days in ending.items():
        authority.renew(tmp_path, sites=() if name == "aggregator" else (name,), now=now + timedelta(days=days - 397))
    shown = x509.load_pem_x509_certificate((tmp_path / "aggregator.pem").read_bytes())
    found = certificates.expiry(examined(tmp_path, files, peer=Peer(shown, "h2", "TLSv1.3")))
    assert found.status == ("FAIL" if min(ending.values()) < 0 else "WARN")
    told = found.remedy.split("; ")
    assert [one for one in remedies if not any(one.replace("HERE", str(tmp_path)) in said for said in told)] == []
    assert len(told) == len(ending)
    assert ("the aggregator's certificate" in found.words, "this site's" in found.words) == (
        "aggregator" in ending,
        "ge" in ending,
    )


def test_without_tls_there_are_no_certificates(tmp_path: Path) -> None:
    site = examined(tmp_path, None)
    assert [certificates.files(site).status, certificates.expiry(site).status] == ["SKIP", "SKIP"]

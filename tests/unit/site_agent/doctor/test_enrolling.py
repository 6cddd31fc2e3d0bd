"""The doctor before the agent's first start: the answer is tried elsewhere, and the site's folder stays as it is."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from aggregator import certificates as made
from aggregator import enrolment as approving
from shared.tls import TlsFiles
from site_agent import enrolment
from site_agent.doctor import certificates, enrolling
from site_agent.doctor.finding import Finding
from tests.support.doctored import examined
from tests.support.serving import tls_of

NAMES = ("ca.pem", "siemens.pem", "siemens.key")


def answered(folder: Path, authority: made.Authority | None = None) -> TlsFiles:
    """Ask for a certificate, and put the coordinator's answer beside the request."""
    asked = approving.read_request(enrolment.request(folder, "siemens").csr)
    signer = authority or made.Authority.make(datetime.now(UTC))
    signed = (signer.sign_site(asked.key, "siemens", datetime.now(UTC), 300), signer.certificate)
    pem = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in signed)
    (folder / "siemens.approved.pem").write_bytes(pem)
    return tls_of(folder, "siemens")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def looked_at(folder: Path, tls: TlsFiles) -> Finding:
    with enrolling.files(tls) as held:
        return certificates.files(examined(folder, held.tls, not_enrolled=held.wrong, origin=held.origin))


def test_an_answer_is_looked_at_with_the_requests_key_and_nothing_changes(tmp_path: Path) -> None:
    tls, before = answered(tmp_path), contents(tmp_path)
    with enrolling.files(tls) as held:
        files = held.tls
        assert files is not None
        assert held.wrong is None
        aside = files.certificate.parent
        assert aside.stat().st_mode & 0o777 == 0o700
        assert files.key == tmp_path / "siemens.next.key"
        assert not any(
            path.is_file() and not path.is_symlink() for path in aside.glob("*.key")
        )  # the key is not copied
        found = certificates.files(examined(tmp_path, files, origin=held.origin))
        assert (found.status, found.facts["site"]) == ("PASS", "siemens")
        assert (
            "from siemens.approved.pem, which the agent takes at its start; compare its CA's fingerprint" in found.words
        )
        assert contents(tmp_path) == before
    assert not aside.exists()
    assert contents(tmp_path) == before


def test_the_folder_is_removed_whatever_ends_the_checks(tmp_path: Path) -> None:
    asides = []

    def stopped() -> None:
        with enrolling.files(answered(tmp_path)) as held:
            assert held.tls is not None
            asides.append(held.tls.certificate.parent)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [aside.exists() for aside in asides] == [False]


def test_a_relative_site_toml_finds_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert looked_at(tmp_path, TlsFiles(*map(Path, NAMES))).status == "PASS"


def test_without_an_answer_the_files_and_the_next_step_are_named(tmp_path: Path) -> None:
    asked = enrolment.request(tmp_path, "siemens")
    found = looked_at(tmp_path, tls_of(tmp_path, "siemens"))
    assert found.status == "FAIL"
    assert f"there is no {tmp_path / 'siemens.pem'} yet" in found.words
    assert (
        f"send {asked.csr} to the coordinator, and put what comes back, siemens.approved.pem, beside it" in found.remedy
    )
    asked.csr.unlink()
    assert "site-agent join --site siemens --out" in looked_at(tmp_path, tls_of(tmp_path, "siemens")).remedy


def test_without_a_request_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    found = looked_at(tmp_path, tls_of(tmp_path, "siemens"))
    assert found.status == "FAIL"
    assert f"site-agent join --site siemens --out {tmp_path}" in found.remedy


def test_an_answer_that_the_agent_would_refuse_fails_with_its_words_and_real_names(tmp_path: Path) -> None:
    tls = answered(tmp_path)
    enrolment.request(tmp_path, "siemens")  # another key than the answer's
    found, before = looked_at(tmp_path, tls), contents(tmp_path)
    assert found.status == "FAIL"
    assert f"{tmp_path / 'siemens.approved.pem'} is for another key than {tmp_path / 'siemens.next.key'}" in found.words
    assert contents(tmp_path) == before


def test_another_ca_than_the_one_that_is_here_fails(tmp_path: Path) -> None:
    tls = answered(tmp_path)
    other = made.Authority.make(datetime.now(UTC)).certificate.public_bytes(serialization.Encoding.PEM)
    tls.ca.write_bytes(other)
    found = looked_at(tmp_path, tls)
    assert found.status == "FAIL"
    assert f"is signed by another CA than {tls.ca}" in found.words
    assert tls.ca.read_bytes() == other


def test_a_key_that_toml_names_elsewhere_fails_by_its_own_name(tmp_path: Path) -> None:
    answered(tmp_path)
    found = looked_at(tmp_path, TlsFiles(tmp_path / "ca.pem", tmp_path / "siemens.pem", tmp_path / "private.key"))
    assert found.status == "FAIL"
    assert str(tmp_path / "private.key") in found.words


def test_a_site_that_is_enrolled_or_plain_is_looked_at_as_it_is(tmp_path: Path) -> None:
    tls = answered(tmp_path)
    enrolment.take_answer(tls)
    enrolment.request(tmp_path, "siemens")  # a renewal that waits
    for given in (tls, None):
        with enrolling.files(given) as found:
            assert found == enrolling.Found(given)

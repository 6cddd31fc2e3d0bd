"""Certificates say who a caller is, and their keys are readable by their owner only."""

from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from aggregator import certificates
from shared.errors import InputError


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def names(path: Path) -> x509.SubjectAlternativeName:
    return load(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_every_party_gets_a_certificate_that_the_ca_signed(tmp_path: Path) -> None:
    written = certificates.make(tmp_path, ["127.0.0.1", "aggregator.example.org"], ["siemens", "ge"], ["anna"])
    assert sorted(p.name for p in written) == sorted(p.name for p in tmp_path.iterdir())
    ca = load(tmp_path / "ca.pem")
    for name in ("aggregator", "siemens", "ge", "anna"):
        load(tmp_path / f"{name}.pem").verify_directly_issued_by(ca)


def test_names_stand_in_the_alternative_names(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["127.0.0.1", "aggregator.example.org"], ["siemens"], ["anna"])
    server = names(tmp_path / "aggregator.pem")
    assert server.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1")]
    assert server.get_values_for_type(x509.DNSName) == ["aggregator.example.org"]
    uri = x509.UniformResourceIdentifier
    assert names(tmp_path / "siemens.pem").get_values_for_type(uri) == ["urn:med-duallora:site:siemens"]
    assert names(tmp_path / "anna.pem").get_values_for_type(uri) == ["urn:med-duallora:coordinator:anna"]


def test_a_sites_certificate_cannot_serve_or_sign(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["127.0.0.1"], ["siemens"])
    extensions = load(tmp_path / "siemens.pem").extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign is False


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["127.0.0.1"], ["siemens"])
    assert {p.stat().st_mode & 0o777 for p in tmp_path.glob("*.key")} == {0o600}
    assert {p.stat().st_mode & 0o777 for p in tmp_path.glob("*.pem")} == {0o644}


def test_certificates_are_valid_for_about_thirteen_months(tmp_path: Path) -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    certificates.make(tmp_path, [], ["siemens"], now=now)
    found = load(tmp_path / "siemens.pem")
    assert found.not_valid_before_utc < now
    assert (found.not_valid_after_utc - now).days == certificates.DAYS


def test_a_site_can_be_added_later_with_the_same_ca(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["127.0.0.1"], ["siemens"])
    before = (tmp_path / "ca.pem").read_bytes()
    assert [p.name for p in certificates.make(tmp_path, [], ["canon"])] == ["canon.pem", "canon.key"]
    assert (tmp_path / "ca.pem").read_bytes() == before
    load(tmp_path / "canon.pem").verify_directly_issued_by(load(tmp_path / "ca.pem"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    certificates.make(tmp_path, [], ["siemens"])
    with pytest.raises(InputError, match=r"siemens\.pem exists already"):
        certificates.make(tmp_path, [], ["siemens"])


@pytest.mark.parametrize("name", ["ca", "aggregator", "ge"])
def test_names_that_would_share_a_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"name '{name}' is taken"):
        certificates.make(tmp_path, [], ["ge", name])


def test_a_broken_ca_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("broken")
    with pytest.raises(InputError, match="cannot read the CA in"):
        certificates.make(tmp_path, [], ["ge"])

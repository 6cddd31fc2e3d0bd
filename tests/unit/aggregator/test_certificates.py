"""Certificates say who a caller is, and their keys are readable by their owner only."""

from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from aggregator import certificates
from shared.errors import InputError
from shared.tls import TlsFiles

SAN = ExtensionOID.SUBJECT_ALTERNATIVE_NAME


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


def test_nothing_is_overwritten_and_the_command_that_replaces_it_is_named(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["localhost"], ["siemens"], ["anna"])
    renewal = rf"aggregator certificates --out {tmp_path} --renew"
    with pytest.raises(InputError, match=rf"siemens\.pem exists already; .*{renewal} --site siemens;"):
        certificates.make(tmp_path, [], ["siemens"])
    with pytest.raises(InputError, match=rf"anna\.pem exists already; .*{renewal} --coordinator anna;"):
        certificates.make(tmp_path, [], [], ["anna"])
    with pytest.raises(InputError, match=rf"aggregator\.pem exists already; .*{renewal};"):
        certificates.make(tmp_path, ["localhost"], [])


# renewing


def pair(folder: Path, name: str) -> tuple[bytes, bytes]:
    return (folder / f"{name}.pem").read_bytes(), (folder / f"{name}.key").read_bytes()


def test_a_renewed_aggregator_keeps_its_names_its_ca_and_the_old_pair(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["127.0.0.1", "fed.example.org"], [], ["anna"], now=datetime(2026, 1, 1, tzinfo=UTC))
    before, authority, anna = pair(tmp_path, "aggregator"), pair(tmp_path, "ca"), pair(tmp_path, "anna")
    was = load(tmp_path / "aggregator.pem")
    written = certificates.renew(tmp_path, now=datetime(2026, 12, 1, tzinfo=UTC))
    assert [path.name for path in written] == ["aggregator.pem", "aggregator.key"]
    now = load(tmp_path / "aggregator.pem")
    now.verify_directly_issued_by(load(tmp_path / "ca.pem"))
    assert list(names(tmp_path / "aggregator.pem")) == list(was.extensions.get_extension_for_oid(SAN).value)
    assert now.public_key() != was.public_key()
    assert now.not_valid_after_utc > was.not_valid_after_utc
    assert list(now.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    TlsFiles(tmp_path / "ca.pem", *written).check_pair()
    assert pair(tmp_path, "aggregator.old") == before
    assert (pair(tmp_path, "ca"), pair(tmp_path, "anna")) == (authority, anna)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")} == {0o600}


def test_people_are_renewed_by_name_and_the_aggregator_may_get_other_hosts(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["127.0.0.1"], [], ["anna"], ["otto"])
    aggregator = pair(tmp_path, "aggregator")
    certificates.renew(tmp_path, coordinators=["anna"], observers=["otto"])
    assert pair(tmp_path, "aggregator") == aggregator
    uri = x509.UniformResourceIdentifier
    assert names(tmp_path / "otto.pem").get_values_for_type(uri) == ["urn:med-duallora:observer:otto"]
    certificates.renew(tmp_path, ["fed.example.org"])
    assert names(tmp_path / "aggregator.pem").get_values_for_type(x509.DNSName) == ["fed.example.org"]


def test_a_renewal_that_cannot_be_whole_changes_nothing(tmp_path: Path) -> None:
    certificates.make(tmp_path, ["127.0.0.1"], [], ["anna"])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for people, message in (
        ({"observers": ["anna"]}, r"anna\.pem is of urn:med-duallora:coordinator:anna, not of .*observer:anna"),
        ({"coordinators": ["anna", "olga"]}, r"there is no .*olga\.pem to renew; to make it, leave --renew out"),
    ):
        with pytest.raises(InputError, match=message):
            certificates.renew(tmp_path, ["127.0.0.1"], **people)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(InputError, match="cannot read the CA in"):
        certificates.renew(tmp_path / "nowhere")


def test_half_of_a_renewal_that_was_killed_does_not_replace_the_old_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.make(tmp_path, ["127.0.0.1"], [])
    before = pair(tmp_path, "aggregator")
    write = certificates.write_atomically

    def killed(path: Path, data: bytes, mode: int = 0o644) -> None:
        if path.name == "aggregator.pem":
            raise OSError(28, "No space left on device")
        write(path, data, mode)

    monkeypatch.setattr(certificates, "write_atomically", killed)
    with pytest.raises(OSError, match="No space"):
        certificates.renew(tmp_path)
    monkeypatch.undo()
    assert pair(tmp_path, "aggregator")[0] == before[0]
    written = certificates.renew(tmp_path)
    TlsFiles(tmp_path / "ca.pem", *written).check_pair()
    assert pair(tmp_path, "aggregator.old") == before


@pytest.mark.parametrize("name", ["ca", "aggregator", "ge"])
def test_names_that_would_share_a_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"name '{name}' is taken"):
        certificates.make(tmp_path, [], ["ge", name])


def test_a_broken_ca_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("broken")
    with pytest.raises(InputError, match="cannot read the CA in"):
        certificates.make(tmp_path, [], ["ge"])

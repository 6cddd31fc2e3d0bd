"""A site's key never leaves it, and an answer is taken only if it is for that key, that name and that CA."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from aggregator import certificates
from aggregator import enrolment as approving
from aggregator.enrolment import Request
from shared import certificates as held
from shared.errors import InputError
from shared.tls import TlsFiles
from site_agent import enrolment
from site_agent.cli import app

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> certificates.Authority:
    return certificates.Authority.make(NOW)


def answer(folder: Path, authority: certificates.Authority, request: Request, site: str = "", days: int = 30) -> Path:
    certificate = authority.sign_site(request.key, site or request.site, NOW, days)
    pem = [one.public_bytes(serialization.Encoding.PEM) for one in (certificate, authority.certificate)]
    path = folder / "answer.pem"
    path.write_bytes(b"".join(pem))
    return path


def test_a_request_holds_a_name_and_a_public_key_and_the_key_stays(tmp_path: Path) -> None:
    asked = enrolment.request(tmp_path, "siemens")
    read = approving.read_request(asked.csr)
    assert (read.site, read.fingerprint) == ("siemens", asked.fingerprint)
    assert asked.key.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in asked.csr.read_bytes()
    secret = serialization.load_pem_private_key(asked.key.read_bytes(), None)
    assert secret.public_key() == read.key


def test_the_answer_puts_three_files_in_place(tmp_path: Path, authority: certificates.Authority) -> None:
    asked = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    found = enrolment.finish(tmp_path, answer(tmp_path, authority, asked))
    assert (found.holder.site, found.ca, found.certificate, found.key) == (
        "siemens", tmp_path / "ca.pem", tmp_path / "siemens.pem", tmp_path / "siemens.key",
    )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"ca.pem", "siemens.pem", "siemens.key", "answer.pem"}
    assert found.key.stat().st_mode & 0o777 == 0o600


def test_renewing_leaves_what_is_in_use_until_the_answer_is_there(
    tmp_path: Path, authority: certificates.Authority
) -> None:
    first = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    enrolment.finish(tmp_path, answer(tmp_path, authority, first))
    before = {name: (tmp_path / name).read_bytes() for name in ("ca.pem", "siemens.pem", "siemens.key")}
    second = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    enrolment.finish(tmp_path, answer(tmp_path, authority, second))
    assert (tmp_path / "siemens.key").read_bytes() != before["siemens.key"]
    assert held.holder_in(tmp_path / "siemens.pem").serial != held.holder(before["siemens.pem"]).serial


def test_an_answer_to_another_request_is_refused(tmp_path: Path, authority: certificates.Authority) -> None:
    first = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    enrolment.request(tmp_path, "siemens")
    with pytest.raises(InputError, match="it answers another request"):
        enrolment.finish(tmp_path, answer(tmp_path, authority, first))
    assert not (tmp_path / "siemens.pem").exists()


def test_an_answer_without_its_request_is_refused(tmp_path: Path, authority: certificates.Authority) -> None:
    asked = approving.read_request(enrolment.request(tmp_path / "here", "siemens").csr)
    with pytest.raises(InputError, match=r"the key of the request is not at .*siemens\.next\.key"):
        enrolment.finish(tmp_path, answer(tmp_path, authority, asked))


def test_an_answer_of_another_ca_than_the_one_in_use_is_refused(
    tmp_path: Path, authority: certificates.Authority
) -> None:
    asked = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    (tmp_path / "ca.pem").write_bytes(
        certificates.Authority.make(NOW).certificate.public_bytes(serialization.Encoding.PEM)
    )
    with pytest.raises(InputError, match="signed by another CA than"):
        enrolment.finish(tmp_path, answer(tmp_path, authority, asked))


def ca_of(authority: certificates.Authority) -> str:
    return held.fingerprint(authority.certificate.public_key())


def test_both_fingerprints_are_shown_to_be_compared(tmp_path: Path, authority: certificates.Authority) -> None:
    asked = enrolment.request(tmp_path, "siemens")
    done = enrolment.finish(tmp_path, answer(tmp_path, authority, approving.read_request(asked.csr)))
    assert done.to_compare.splitlines() == [
        f"fingerprint of the CA: {ca_of(authority)}",
        f"fingerprint of the key: {asked.fingerprint}",
    ]


def test_an_answer_of_another_ca_than_the_one_that_was_read_out_puts_nothing_in_place(
    tmp_path: Path, authority: certificates.Authority
) -> None:
    """Somebody on the way may sign the request with a CA of their own: the certificate is for this key all the same."""
    asked = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    forged = answer(tmp_path, certificates.Authority.make(NOW), asked)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"it is not the coordinator's, or was misheard\. Nothing was put in place"):
        enrolment.finish(tmp_path, forged, ca_fingerprint=ca_of(authority))
    assert sorted(tmp_path.iterdir()) == before
    right = answer(tmp_path, authority, asked)
    with pytest.raises(InputError, match="Nothing was put in place"):
        enrolment.finish(tmp_path, right, ca_fingerprint=ca_of(authority)[:19])  # the whole of it, not its beginning
    assert enrolment.finish(tmp_path, right, ca_fingerprint=ca_of(authority).upper().replace(" ", ":")).ca.exists()


def test_renewing_takes_another_ca_only_if_its_fingerprint_is_told(
    tmp_path: Path, authority: certificates.Authority
) -> None:
    first = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    enrolment.finish(tmp_path, answer(tmp_path, authority, first))
    before = (tmp_path / "ca.pem").read_bytes()
    other = certificates.Authority.make(NOW)
    renewed = answer(tmp_path, other, approving.read_request(enrolment.request(tmp_path, "siemens").csr))
    with pytest.raises(InputError, match=rf"signed by another CA than .* \(that in the answer is {ca_of(other)}\)"):
        enrolment.finish(tmp_path, renewed)
    with pytest.raises(InputError, match="Nothing was put in place"):
        enrolment.finish(tmp_path, renewed, ca_fingerprint=ca_of(authority))
    assert (tmp_path / "ca.pem").read_bytes() == before
    enrolment.finish(tmp_path, renewed, ca_fingerprint=ca_of(other))
    assert (tmp_path / "ca.pem").read_bytes() == other.certificate.public_bytes(serialization.Encoding.PEM)


def test_the_command_compares_and_shows(tmp_path: Path, authority: certificates.Authority) -> None:
    def join(*words: object) -> Result:
        return CliRunner().invoke(app, ["join", *map(str, words)])

    assert "give it with --finish FILE" in str(join("--site", "siemens", "--ca-fingerprint", "5b71").exception)
    asked = enrolment.request(tmp_path, "siemens")
    finish = ("--finish", answer(tmp_path, authority, approving.read_request(asked.csr)), "--out", tmp_path)
    assert "is not the coordinator's" in str(join(*finish, "--ca-fingerprint", asked.fingerprint).exception)
    said = join(*finish, "--ca-fingerprint", ca_of(authority)).output
    assert f"fingerprint of the CA: {ca_of(authority)}" in said
    assert "compare its fingerprint" not in said
    enrolment.request(tmp_path, "ge")
    asked_too = approving.read_request(tmp_path / "ge.csr")
    assert (
        "compare its fingerprint with the coordinator by telephone"
        in join("--finish", answer(tmp_path, authority, asked_too), "--out", tmp_path).output
    )


def test_a_certificate_that_the_ca_beside_it_did_not_sign_is_refused(
    tmp_path: Path, authority: certificates.Authority
) -> None:
    asked = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    mixed = answer(tmp_path, authority, asked)
    other = certificates.Authority.make(NOW).certificate.public_bytes(serialization.Encoding.PEM)
    first = mixed.read_bytes().split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    mixed.write_bytes(first + other)
    with pytest.raises(InputError, match="not signed by the CA beside it"):
        enrolment.finish(tmp_path, mixed)


@pytest.mark.parametrize("later", [timedelta(days=40), timedelta(days=-2)])
def test_a_certificate_of_another_time_is_refused(
    tmp_path: Path, authority: certificates.Authority, later: timedelta
) -> None:
    asked = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    with pytest.raises(InputError, match="check this machine's clock"):
        enrolment.finish(tmp_path, answer(tmp_path, authority, asked), NOW + later)


@pytest.mark.parametrize("text", ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_answer_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "answer.pem").write_text(text)
    with pytest.raises(InputError, match="is not what aggregator approve writes"):
        enrolment.finish(tmp_path, tmp_path / "answer.pem")


@pytest.mark.parametrize("site", ["", "Siemens", "../etc", "a b", "x" * 64])
def test_a_name_that_cannot_be_one_is_refused(tmp_path: Path, site: str) -> None:
    with pytest.raises(InputError, match="is not usable"):
        enrolment.request(tmp_path, site)
    assert list(tmp_path.iterdir()) == []


# at the coordinator


def signed(folder: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *names: x509.GeneralName) -> Path:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    path = folder / "x.csr"
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


def uri(role: held.Role, name: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(held.PREFIXES[role] + name)


@pytest.mark.parametrize(
    "names",
    [
        (),
        (uri("coordinator", "anna"),),
        (uri("site", "ge"), uri("site", "siemens")),
        (uri("site", "ge"), uri("coordinator", "ge")),
        (uri("site", "ge"), x509.UniformResourceIdentifier("https://example.org")),
    ],
)
def test_a_request_for_anything_but_one_site_is_refused(tmp_path: Path, names: tuple[x509.GeneralName, ...]) -> None:
    with pytest.raises(InputError, match="allowed is one 'urn:med-duallora:site:NAME'"):
        approving.read_request(signed(tmp_path, ec.generate_private_key(ec.SECP256R1()), *names))


def test_a_request_for_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not usable"):
        approving.read_request(signed(tmp_path, ec.generate_private_key(ec.SECP256R1()), uri("site", "../ge")))


def test_a_request_with_a_weak_key_is_refused(tmp_path: Path) -> None:
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP192R1())):
        with pytest.raises(InputError, match="a key that is not one of site-agent join"):
            approving.read_request(signed(tmp_path, key, uri("site", "ge")))


def test_a_request_that_was_changed_on_its_way_is_refused(tmp_path: Path) -> None:
    asked = enrolment.request(tmp_path, "siemens")
    request = x509.load_pem_x509_csr(asked.csr.read_bytes())
    changed = request.public_bytes(serialization.Encoding.DER).replace(b"site:siemens", b"site:philips")
    asked.csr.write_bytes(x509.load_der_x509_csr(changed).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(InputError, match="it was changed on its way"):
        approving.read_request(asked.csr)


def test_what_is_no_request_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csr").write_text("hello")
    with pytest.raises(InputError, match="is no request for a certificate; it comes from: site-agent join"):
        approving.read_request(tmp_path / "x.csr")


# --- an agent that starts without its certificate -------------------------------------------------------------------------


def files(folder: Path) -> TlsFiles:
    return TlsFiles(folder / "ca.pem", folder / "siemens.pem", folder / "siemens.key")


def test_an_answer_beside_the_key_is_taken_at_the_start(tmp_path: Path, authority: certificates.Authority) -> None:
    asked = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    with pytest.raises(
        InputError, match=r"send .*siemens\.csr to the coordinator, put the answer, siemens\.approved\.pem"
    ):
        enrolment.take_answer(files(tmp_path))
    answer(tmp_path, authority, asked).rename(tmp_path / "siemens.approved.pem")
    taken = enrolment.take_answer(files(tmp_path))
    assert taken is not None
    assert taken.holder.site == "siemens"
    assert files(tmp_path).stamp()
    assert enrolment.take_answer(files(tmp_path)) is None


def test_a_renewal_that_waits_does_not_hold_the_agent_up(tmp_path: Path, authority: certificates.Authority) -> None:
    asked = approving.read_request(enrolment.request(tmp_path, "siemens").csr)
    old = answer(tmp_path, authority, asked).rename(tmp_path / "siemens.approved.pem")
    enrolment.finish(tmp_path, old)
    enrolment.request(tmp_path, "siemens")
    assert enrolment.take_answer(files(tmp_path)) is None


def test_an_agent_with_files_of_another_origin_finishes_nothing(tmp_path: Path) -> None:
    assert enrolment.take_answer(files(tmp_path)) is None

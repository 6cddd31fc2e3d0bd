"""TLS that is wrong in one way, by real servers on loopback."""

import ipaddress
import re
import shlex
import socket
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from aggregator.certificates import Authority
from site_agent.doctor import tls
from site_agent.doctor.finding import Examined, Finding
from tests.support import command, tls_server
from tests.support.doctored import certified, examined
from tests.support.serving import tls_of
from tests.support.tls_server import listening

NOW = datetime.now(UTC)


def server(folder: Path, **how: object) -> tls_server.Answer:
    return tls_server.tls(folder / "aggregator.pem", folder / "aggregator.key", **how)  # type: ignore[arg-type]


def looked(
    folder: Path, answer: tls_server.Answer, host: str = "127.0.0.1", **more: object
) -> tuple[Finding, Examined]:
    """What the chain's check finds of a server, with the site's files of this folder."""
    with listening(answer) as port:
        site = examined(folder, tls_of(folder, "ge"), port, host, **more)
        return tls.chain(site), site


def test_the_federations_certificate_passes_and_its_issuer_and_names_are_told(tmp_path: Path) -> None:
    certified(tmp_path)
    found, _ = looked(tmp_path, server(tmp_path))
    assert found.status == "PASS"
    assert found.facts["issuer"] == "med-duallora federation CA"
    assert found.facts["names"] == ["127.0.0.1"]


def test_a_certificate_of_an_inspecting_box_fails_and_its_issuer_is_named(tmp_path: Path) -> None:
    certified(tmp_path)
    certified(made := tmp_path / "box")
    _rename_issuer(made, "ACME TLS Inspection")
    found, _ = looked(tmp_path, server(made))
    assert found.status == "FAIL"
    assert found.words == (
        "the certificate is issued by 'ACME TLS Inspection', and this site trusts 'med-duallora federation CA' alone"
    )
    assert "inspects TLS" in found.remedy


def test_a_new_ca_of_the_same_name_fails_as_that(tmp_path: Path) -> None:
    certified(tmp_path)
    certified(tmp_path / "other")
    found, _ = looked(tmp_path, server(tmp_path / "other"))
    assert found.status == "FAIL"
    assert "a CA with the name of this site's, 'med-duallora federation CA', and another key" in found.words
    assert "ask for the new ca.pem" in found.remedy


@pytest.mark.parametrize(("hosts", "dialled"), [(("fed.example.org",), "127.0.0.1"), (("127.0.0.1",), "localhost")])
def test_another_name_than_is_dialled_fails_with_both(tmp_path: Path, hosts: tuple[str, ...], dialled: str) -> None:
    certified(tmp_path, *hosts)
    found, _ = looked(tmp_path, server(tmp_path), dialled)
    assert found.status == "FAIL"
    assert found.words == f"the certificate is for {hosts[0]}, and '{dialled}' is dialled"
    assert f"aggregator certificates --out certs --renew --host {hosts[0]} --host {dialled}" in found.remedy


def test_a_name_that_would_be_a_command_is_quoted_and_what_cannot_be_printed_left_out(tmp_path: Path) -> None:
    """Nobody has vouched yet for what a stranger shows."""
    certified(tmp_path)
    (tmp_path / "aggregator.pem").unlink()
    Authority.read(tmp_path).issue(tmp_path, "aggregator", [x509.DNSName("a;\x1b[2Jreboot")], NOW, server=True)
    found, _ = looked(tmp_path, server(tmp_path))
    assert "the certificate is for a;[2Jreboot, and" in found.words
    assert "--host 'a;[2Jreboot' --host 127.0.0.1" in found.remedy


@pytest.mark.parametrize(
    ("hosts", "aged", "dialled"), [(("fed.example.org",), 0, "127.0.0.1"), (("127.0.0.1",), 500, "127.0.0.1")]
)
def test_what_the_coordinator_is_to_do_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hosts: tuple[str, ...], aged: int, dialled: str
) -> None:
    certified(certs := tmp_path / "certs", *hosts, now=NOW - timedelta(days=aged))
    found, _ = looked(certs, server(certs), dialled)
    assert found.status == "FAIL"
    told = re.search(r"aggregator (certificates [^;]+)", found.remedy)
    assert told, found.remedy
    monkeypatch.chdir(tmp_path)
    renewed = command.run(*shlex.split(told[1]))
    assert renewed.returncode == 0, renewed.stderr
    assert looked(certs, server(certs), dialled)[0].status == "PASS"


def test_a_ca_that_has_ended_fails_and_another_is_to_be_made(tmp_path: Path) -> None:
    certified(tmp_path, now=NOW - timedelta(days=4000))
    (tmp_path / "aggregator.pem").unlink()
    address = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    Authority.read(tmp_path).issue(tmp_path, "aggregator", address, NOW, server=True)
    found, _ = looked(tmp_path, server(tmp_path))
    assert found.status == "FAIL"
    assert found.words.startswith("the CA in ca.pem has expired: ")
    assert (
        "the coordinator makes another CA in an empty folder (aggregator certificates --out NEW --host NAME)"
        in found.remedy
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [(NOW - timedelta(days=500), "has expired"), (NOW + timedelta(days=3), "is not valid yet")],
)
def test_a_certificate_outside_its_time_fails_with_its_dates(tmp_path: Path, made: datetime, said: str) -> None:
    certified(tmp_path)
    (tmp_path / "aggregator.pem").unlink()
    address = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    Authority.read(tmp_path).issue(tmp_path, "aggregator", address, made, server=True)  # by the CA, which is good
    found, _ = looked(tmp_path, server(tmp_path))
    assert found.status == "FAIL"
    assert found.words.startswith(f"the aggregator's certificate {said}: that shown is good from ")


def test_a_listener_that_does_not_answer_fails_within_patience(tmp_path: Path) -> None:
    certified(tmp_path)
    found, _ = looked(tmp_path, tls_server.silent, patience_s=0.2)
    assert (found.status, found.words) == ("FAIL", "what listens does not answer a TLS handshake within 0.2 s")


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_a_service_without_tls_fails_as_that(tmp_path: Path, says: bytes) -> None:
    certified(tmp_path)
    found, _ = looked(tmp_path, tls_server.plain(says))
    assert (found.status, found.words) == ("FAIL", "what listens does not speak TLS")


def test_a_connection_that_is_cut_in_the_handshake_fails_as_that(tmp_path: Path) -> None:
    certified(tmp_path)
    found, _ = looked(tmp_path, lambda line: line.recv(1 << 16) and None)
    assert found.status == "FAIL"
    assert found.words.startswith("the connection was cut in the TLS handshake")


@pytest.mark.parametrize(("offered", "status"), [(("h2",), "PASS"), ((), "FAIL"), (("http/1.1",), "FAIL")])
def test_without_alpn_h2_it_fails(tmp_path: Path, offered: tuple[str, ...], status: str) -> None:
    certified(tmp_path)
    _, site = looked(tmp_path, server(tmp_path, alpn=offered))
    found = tls.alpn(site)
    assert found.status == status
    if status == "FAIL":
        assert "without ALPN 'h2' (none was agreed on): gRPC refuses it" in found.words
        assert "inspects TLS" in found.remedy


def test_without_a_handshake_alpn_is_not_tried_and_stops_what_needs_it(tmp_path: Path) -> None:
    certified(tmp_path)
    _, site = looked(tmp_path, tls_server.plain(b"SSH-2.0-OpenSSH_9.2\r\n"))
    assert (tls.alpn(site).status, tls.alpn(site).blocks) == ("SKIP", True)


def test_a_certificate_for_nobody_fails_as_that(tmp_path: Path) -> None:
    certified(tmp_path)
    (tmp_path / "aggregator.pem").unlink()
    Authority.read(tmp_path).issue(tmp_path, "aggregator", [x509.RFC822Name("anna@example.org")], NOW, server=True)
    found, _ = looked(tmp_path, server(tmp_path))
    assert (found.status, found.words) == ("FAIL", "the certificate is for nobody, and '127.0.0.1' is dialled")


def test_alpn_is_looked_at_even_where_the_chain_fails(tmp_path: Path) -> None:
    certified(tmp_path)
    certified(tmp_path / "other")
    chain, site = looked(tmp_path, server(tmp_path / "other", alpn=()))
    assert (chain.status, tls.alpn(site).status) == ("FAIL", "FAIL")


def test_an_aggregator_of_another_ca_refuses_the_sites_certificate(tmp_path: Path) -> None:
    files, other = certified(tmp_path), certified(tmp_path / "other")
    site = examined(tmp_path, replace(files, certificate=other.certificate, key=other.key))
    with listening(server(tmp_path, ca=files.ca)) as port:
        refused = tls.client_certificate(examined(tmp_path, site.config.tls, port))
        taken = tls.client_certificate(examined(tmp_path, files, port))
    assert refused.status == "FAIL"
    assert "did not take this site's certificate" in refused.words
    assert refused.remedy.endswith(f"site-agent join --site ge --out {tmp_path / 'other'}")
    assert taken.status == "PASS"


def test_with_tls_1_2_the_handshake_itself_fails_with_the_other_sides_alert(tmp_path: Path) -> None:
    files, other = certified(tmp_path), certified(tmp_path / "other")
    with listening(server(tmp_path, ca=files.ca, newest=ssl.TLSVersion.TLSv1_2)) as port:
        found = tls.chain(examined(tmp_path, replace(files, certificate=other.certificate, key=other.key), port))
    assert found.status == "FAIL"
    assert found.words.startswith("the TLS handshake failed: TLSV1_ALERT_")
    assert f"site-agent join --site ge --out {tmp_path / 'other'}" in found.remedy


def test_a_connection_that_is_closed_in_place_of_http_2_fails_as_a_refusal(tmp_path: Path) -> None:
    files = certified(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "aggregator.pem", tmp_path / "aggregator.key")

    def hang_up(line: socket.socket) -> None:
        with context.wrap_socket(line, server_side=True) as wrapped:
            wrapped.recv(1 << 10)
            wrapped.unwrap()

    with listening(hang_up) as port:
        found = tls.client_certificate(examined(tmp_path, files, port))
    assert found.status == "FAIL"
    assert "did not take this site's certificate (it closed the connection)" in found.words


def test_tls_that_is_no_http_2_fails_as_that(tmp_path: Path) -> None:
    files = certified(tmp_path)
    with listening(server(tmp_path, says=b"220 mail.example.org ESMTP\r\n")) as port:
        found = tls.client_certificate(examined(tmp_path, files, port))
    assert (found.status, found.words) == ("FAIL", "what answers speaks TLS, and no HTTP/2")


def test_an_aggregator_that_falls_silent_after_the_handshake_fails_as_that(tmp_path: Path) -> None:
    files = certified(tmp_path)
    with listening(server(tmp_path, says=b"")) as port:
        found = tls.client_certificate(examined(tmp_path, files, port, patience_s=0.3))
    assert (found.status, found.words) == ("FAIL", "the aggregator shook hands and then said nothing for 0.3 s")


def test_plain_text_has_no_tls_to_look_at(tmp_path: Path) -> None:
    site = examined(tmp_path, None)
    for look in (tls.chain, tls.alpn, tls.client_certificate):
        assert (look(site).status, look(site).blocks) == ("SKIP", False)


def _rename_issuer(folder: Path, name: str) -> None:
    """The folder's server certificate signed by a CA of another name, as a box that inspects TLS makes them."""
    shown = x509.load_pem_x509_certificate((folder / "aggregator.pem").read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(shown.subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(shown.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(shown.not_valid_before_utc)
        .not_valid_after(shown.not_valid_after_utc)
        .add_extension(shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, critical=False)
    )
    (folder / "aggregator.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

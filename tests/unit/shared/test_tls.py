"""Plain text on loopback only, certificates on both ends everywhere else: with a real handshake."""

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from med_duallora.v1 import federation_pb2 as pb
from med_duallora.v1.federation_pb2_grpc import (
    FederationServiceServicer,
    FederationServiceStub,
    add_FederationServiceServicer_to_server,
)

from shared import tls
from shared.certificates import PREFIXES
from shared.errors import InputError

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
FAR_AHEAD = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)


class Authority:
    """A certificate authority of a test."""

    def __init__(self, name: str) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        extension = x509.BasicConstraints(ca=True, path_length=0)
        self.certificate = self._sign(self.name, self.key, [extension])

    def _sign(self, subject: x509.Name, key: Any, extensions: Iterable[x509.ExtensionType]) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(LONG_AGO)
            .not_valid_after(FAR_AHEAD)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, folder: Path, trusted: "Authority", *names: x509.GeneralName) -> tls.TlsFiles:
        """Write a certificate of this authority for one end that trusts `trusted`."""
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        certificate = self._sign(subject, key, [x509.SubjectAlternativeName(names)])
        pem = serialization.Encoding.PEM
        (folder / "ca.pem").write_bytes(trusted.certificate.public_bytes(pem))
        (folder / "certificate.pem").write_bytes(certificate.public_bytes(pem))
        (folder / "key.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return tls.TlsFiles(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")


class WhoCalls(FederationServiceServicer):
    """Answers with the names in the caller's certificate."""

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeResponse:
        return pb.ProbeResponse(payload=b" ".join(context.auth_context().get("x509_subject_alternative_name", [])))


async def ask(server_files: tls.TlsFiles, credentials: grpc.ChannelCredentials | None) -> bytes:
    """Return what a server with these files answers to a client with these credentials; None is a plain client."""
    server = grpc.aio.server()
    add_FederationServiceServicer_to_server(WhoCalls(), server)
    address = f"localhost:{server.add_secure_port('localhost:0', server_files.server_credentials())}"
    await server.start()
    channel = grpc.aio.secure_channel(address, credentials) if credentials else grpc.aio.insecure_channel(address)
    try:
        async with channel:
            response: pb.ProbeResponse = await FederationServiceStub(channel).Probe(pb.ProbeRequest(), timeout=5)
            return response.payload
    finally:
        await server.stop(None)


OURS, OTHERS = Authority("ours"), Authority("others")
SERVER_NAME = x509.DNSName("localhost")
SITE_URI = x509.UniformResourceIdentifier(PREFIXES["site"] + "ge")


async def test_both_ends_show_certificates_and_the_site_is_known_by_its_uri(tmp_path: Path) -> None:
    server = OURS.issue(tmp_path / "server", OURS, SERVER_NAME)
    site = OURS.issue(tmp_path / "site", OURS, SITE_URI)
    assert await ask(server, site.channel_credentials()) == b"urn:med-duallora:site:ge"


async def test_a_client_of_another_authority_is_turned_away(tmp_path: Path) -> None:
    server = OURS.issue(tmp_path / "server", OURS, SERVER_NAME)
    stranger = OTHERS.issue(tmp_path / "stranger", OURS, SITE_URI)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(server, stranger.channel_credentials())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_without_a_certificate_is_turned_away(tmp_path: Path) -> None:
    server = OURS.issue(tmp_path / "server", OURS, SERVER_NAME)
    with pytest.raises(grpc.aio.AioRpcError):
        await ask(server, grpc.ssl_channel_credentials(server.ca.read_bytes()))
    with pytest.raises(grpc.aio.AioRpcError):
        await ask(server, None)


async def test_a_site_refuses_a_server_of_another_authority_or_name(tmp_path: Path) -> None:
    site = OURS.issue(tmp_path / "site", OURS, SITE_URI)
    impostor = OTHERS.issue(tmp_path / "impostor", OURS, SERVER_NAME)
    renamed = OURS.issue(tmp_path / "renamed", OURS, x509.DNSName("aggregator.example"))
    for server in (impostor, renamed):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(server, site.channel_credentials())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("missing", ["ca", "certificate", "key"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    files = OURS.issue(tmp_path / "site", OURS, SITE_URI)
    path: Path = getattr(files, missing)
    path.unlink()
    with pytest.raises(InputError, match=rf"cannot read TLS {missing} file .*/{missing}.pem: No such file"):
        files.channel_credentials()
    with pytest.raises(InputError, match=f"cannot read TLS {missing} file"):
        files.server_credentials()


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "127.8.0.1:1", "localhost:0", "[::1]:50051"])
def test_plain_text_is_allowed_on_loopback(address: str) -> None:
    tls.check_plain(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:50051",
        "[::]:50051",
        ":50051",
        "10.0.0.7:50051",
        "aggregator.example:50051",
        "localhost.example:50051",
        "127.0.0.1.example:50051",
        "dns:///localhost:50051",
        "ipv4:10.0.0.7,127.0.0.1:50051",
        "127.0.0.1",
        "",
    ],
)
def test_plain_text_is_refused_anywhere_else(address: str) -> None:
    with pytest.raises(InputError) as caught:
        tls.check_plain(address)
    assert str(caught.value) == (
        f"plain text is allowed on loopback only, got '{address}'; give TLS files, or use 127.0.0.1"
    )

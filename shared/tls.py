"""TLS credentials from files, for both sides. TLS with certificates on both ends is the default; plain is loopback only."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc

from shared.errors import InputError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of one end's certificate material (PEM)."""

    ca: Path
    certificate: Path
    key: Path

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that demand a certificate of this CA from every client."""
        pair = (self._read("key"), self._read("certificate"))
        return grpc.ssl_server_credentials([pair], self._read("ca"), require_client_auth=True)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return credentials that check the aggregator against this CA and show the site's certificate."""
        return grpc.ssl_channel_credentials(self._read("ca"), self._read("key"), self._read("certificate"))

    def _read(self, name: str) -> bytes:
        path: Path = getattr(self, name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read TLS {name} file {path}: {error.strerror}") from error


def check_plain(address: str) -> None:
    """Raise InputError unless `host:port` is a loopback address: without TLS nothing may leave the machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise InputError(f"plain text is allowed on loopback only, got '{address}'; give TLS files, or use 127.0.0.1")


def site_in(certificate: Path) -> str:
    """Return the name of the site that a certificate (PEM) is for; empty if it is for none. Raises InputError."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise InputError(f"cannot read the certificate {certificate}: {error}") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return next((uri.removeprefix(SITE_PREFIX) for uri in uris if uri.startswith(SITE_PREFIX)), "")


SITE_PREFIX = "urn:med-duallora:site:"
COORDINATOR_PREFIX = "urn:med-duallora:coordinator:"
"""URIs in a certificate's subject alternative name: who the caller is."""

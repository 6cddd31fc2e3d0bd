"""TLS credentials from files, for both sides. TLS with certificates on both ends is the default; plain is loopback only."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from shared.errors import InputError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of one end's certificate material (PEM)."""

    ca: Path
    certificate: Path
    key: Path

    def __str__(self) -> str:
        return f"CA {self.ca}, certificate {self.certificate}, key {self.key}"

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return credentials that demand a certificate of this CA from every client.

        Files that are replaced take effect with the next connection; while they cannot be used together (one of them is not
        replaced yet) those before stay in force. Raises InputError if they cannot be read now.
        """
        held, stamp = self._server_configuration(), self.stamp()

        def newest() -> grpc.ServerCertificateConfiguration | None:
            nonlocal held, stamp
            try:
                if (now := self.stamp()) == stamp:
                    return None  # as before
                self.check_pair()
                held, stamp = self._server_configuration(), now
            except InputError as error:
                log.warning("certificate_not_replaced", error=str(error))
                return None
            log.info("certificate_replaced")
            return held

        # gRPC takes None for "as before", which its types do not say
        return grpc.dynamic_ssl_server_credentials(held, newest, require_client_authentication=True)  # type: ignore[arg-type]

    def _server_configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = (self._read("key"), self._read("certificate"))
        return grpc.ssl_server_certificate_configuration([pair], self._read("ca"))

    def stamp(self) -> tuple[int, ...]:
        """Return what changes when one of the files is replaced. Raises InputError if one is not there."""
        try:
            return tuple(path.stat().st_mtime_ns for path in (self.ca, self.certificate, self.key))
        except OSError as error:
            raise InputError(f"cannot read TLS file {error.filename}: {error.strerror}") from error

    def check_pair(self) -> None:
        """Raise InputError unless the key is the certificate's."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        try:
            key = serialization.load_pem_private_key(self._read("key"), None)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"TLS files cannot be used: {self.key} holds no key in PEM form, or one with a password"
            ) from error
        try:
            certificate = x509.load_pem_x509_certificate(self._read("certificate"))
        except ValueError as error:
            raise InputError(
                f"TLS files cannot be used: {self.certificate} holds no certificate in PEM form"
            ) from error
        if key.public_key() != certificate.public_key():
            raise InputError(f"key {self.key} is not that of certificate {self.certificate}")

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return credentials that check the aggregator against this CA and show the site's certificate."""
        return grpc.ssl_channel_credentials(self._read("ca"), self._read("key"), self._read("certificate"))

    def _read(self, name: str) -> bytes:
        path: Path = getattr(self, name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read TLS {name} file {path}: {error.strerror}") from error


NO_PROXY = ("grpc.enable_http_proxy", 0)
"""For plain channels: they are for loopback, and a proxy that the environment names is elsewhere."""


def is_loopback(host: str) -> bool:
    """Return whether a host name or address, in brackets or not, is this machine and no other."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_plain(address: str) -> None:
    """Raise InputError unless `host:port` is a loopback address: without TLS nothing may leave the machine."""
    if not is_loopback(address.rpartition(":")[0]):
        raise InputError(f"plain text is allowed on loopback only, got '{address}'; give TLS files, or use 127.0.0.1")

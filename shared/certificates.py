"""What a certificate says: who, in which role, until when. Read the same way on both sides.

The holder stands as a URI in the subject alternative name (RFC 5280, section 4.2.1.6); nothing else says who a caller is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from shared.errors import InputError

Role = Literal["site", "coordinator", "observer"]
"""site: an agent's. coordinator: a person who steers. observer: a person who reads."""
PREFIXES: Mapping[Role, str] = {role: f"urn:med-duallora:{role}:" for role in get_args(Role)}
WARN_DAYS = (60, 30, 7)
"""How many days before its end a certificate is spoken of, louder each time."""
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who a certificate is for. `names`: by role, sorted. `serial`: hex. `expires_at`: seconds since 1970."""

    names: Mapping[Role, tuple[str, ...]]
    serial: str
    expires_at: float

    @property
    def site(self) -> str:
        """The one site it is for; empty if there is none, or several."""
        return self.names["site"][0] if len(self.names["site"]) == 1 else ""


@lru_cache(maxsize=1024)
def holder(pem: bytes) -> Holder:
    """Read a certificate (PEM). Raises InputError if it is none."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise InputError(f"this is no certificate in PEM form: {error}") from error
    uris = uris_of(certificate)
    return Holder(
        names={
            role: tuple(sorted({uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix)}))
            for role, prefix in PREFIXES.items()
        },
        serial=f"{certificate.serial_number:x}",
        expires_at=certificate.not_valid_after_utc.timestamp(),
    )


def holder_in(path: Path) -> Holder:
    """Read a certificate file. Raises InputError naming it."""
    try:
        return holder(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the certificate {path}: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def uris_of(signed: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """Return the URIs among the alternative names of a certificate or request."""
    try:
        names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def is_authority(pem: bytes) -> bool:
    """Whether a certificate (PEM) may sign others. Raises ValueError if it is none."""
    extensions = x509.load_pem_x509_certificate(pem).extensions
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def fingerprint(key: CertificatePublicKeyTypes) -> str:
    """Return a public key's SHA-256 in eight groups of four digits: 128 bits, short enough to be read out on the telephone."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    digits = digest.finalize().hex()
    return " ".join(digits[k : k + 4] for k in range(0, 32, 4))


def is_fingerprint(told: str, of_key: str) -> bool:
    """Whether what somebody read out or typed is a fingerprint, the whole of it, however it is grouped."""
    return "".join(told.split()).replace(":", "").lower() == of_key.replace(" ", "")


def expiry_words(expires_at: float, now: float) -> str:
    """Say when a certificate ends, if that is within the first of WARN_DAYS or past; else nothing."""
    days = (expires_at - now) / DAY_S
    date = datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%d")
    if days < 0:
        return f"EXPIRED on {date}, {-days:.0f} days ago"
    if days <= WARN_DAYS[0]:
        return f"expires on {date}, in {days:.0f} days"
    return ""


class Expiry:
    """Says of certificates that they end: once when each of WARN_DAYS comes, and when the end has."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}

    def news(self, who: str, expires_at: float, now: float) -> str:
        """Return words if there is something to say that was not said of this holder yet; else nothing."""
        days = (expires_at - now) / DAY_S
        level = sum(days <= limit for limit in (*WARN_DAYS, 0))
        before, self._told[who] = self._told.get(who, 0), level
        return expiry_words(expires_at, now) if level > before else ""

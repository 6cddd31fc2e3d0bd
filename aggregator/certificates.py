"""A small certificate authority for one federation: one CA, one server certificate, one certificate per site or coordinator.

Keys are EC P-256 and readable by their owner only. A site's or coordinator's name stands as a URI in the subject alternative
name (RFC 5280, section 4.2.1.6); nothing else says who a caller is.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.canonical import write_atomically
from shared.certificates import PREFIXES, Role
from shared.errors import InputError
from shared.names import check_name

CA_DAYS = 3650
DAYS = 397
CLOCK_SKEW = timedelta(hours=1)
"""Certificates are valid from a little before they were made, for machines whose clocks are behind."""


@dataclass(frozen=True)
class Authority:
    """A CA that can sign."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, now: datetime) -> "Authority":
        """Return a new self-signed CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _subject("med-duallora federation CA")
        builder = _builder(name, name, key.public_key(), now, CA_DAYS).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        return cls(key, builder.add_extension(_usage(signs=True), critical=True).sign(key, hashes.SHA256()))

    @classmethod
    def read(cls, folder: Path) -> "Authority":
        """Return the CA kept in a folder. Raises InputError if its files cannot be used."""
        try:
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"cannot read the CA in {folder} (ca.pem, ca.key): {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError(f"{folder / 'ca.key'} is no EC key; choose an empty folder for a new CA")
        return cls(key, certificate)

    def write(self, folder: Path) -> None:
        """Keep the CA in a folder."""
        _write_pair(folder, "ca", self.key, self.certificate)

    def issue(
        self, folder: Path, file: str, names: Sequence[x509.GeneralName], now: datetime, *, server: bool
    ) -> list[Path]:
        """Write `<file>.pem` and `<file>.key` for these alternative names. Raises InputError if they exist."""
        if (folder / f"{file}.pem").exists():
            whose = next(
                (f" --{role} {file}" for role, prefix in PREFIXES.items() if prefix + file == names[0].value), ""
            )
            raise InputError(
                f"{folder / file}.pem exists already; to replace it and keep the CA: aggregator certificates --out {folder} "
                f"--renew{whose}; or choose another folder"
            )
        return self.reissue(folder, file, names, now, server=server)

    def reissue(
        self, folder: Path, file: str, names: Sequence[x509.GeneralName], now: datetime, *, server: bool
    ) -> list[Path]:
        """Write `<file>.pem` and `<file>.key`, a new key, in the place of what is there."""
        key = ec.generate_private_key(ec.SECP256R1())
        return _write_pair(folder, file, key, self._sign(key.public_key(), file, names, now, DAYS, server=server))

    def sign_site(self, key: ec.EllipticCurvePublicKey, site: str, now: datetime, days: int) -> x509.Certificate:
        """Return a certificate for a site whose key is elsewhere."""
        uri = x509.UniformResourceIdentifier(PREFIXES["site"] + site)
        return self._sign(key, site, [uri], now, days, server=False)

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        subject: str,
        names: Sequence[x509.GeneralName],
        now: datetime,
        days: int,
        *,
        server: bool,
    ) -> x509.Certificate:
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        return (
            _builder(_subject(subject), self.certificate.subject, key, now, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def make(
    folder: Path,
    hosts: Sequence[str],
    sites: Sequence[str],
    coordinators: Sequence[str] = (),
    observers: Sequence[str] = (),
    now: datetime | None = None,
) -> list[Path]:
    """Write certificates into `folder` and return the files made.

    A CA already there is used again, so that sites can be added later; without `hosts` no server certificate is made.
    """
    now = now or datetime.now(UTC)
    people = _people({"site": sites, "coordinator": coordinators, "observer": observers})
    if (folder / "ca.pem").exists():
        authority, written = Authority.read(folder), []
    else:
        authority = Authority.make(now)
        authority.write(folder)
        written = [folder / "ca.pem", folder / "ca.key"]
    if hosts:
        written += authority.issue(folder, "aggregator", [_host(h) for h in hosts], now, server=True)
    for name, uri in people.items():
        written += authority.issue(folder, name, [uri], now, server=False)
    return written


def renew(
    folder: Path,
    hosts: Sequence[str] = (),
    sites: Sequence[str] = (),
    coordinators: Sequence[str] = (),
    observers: Sequence[str] = (),
    now: datetime | None = None,
) -> list[Path]:
    """Put new pairs of the same CA in the place of those in `folder`; return the files made. The CA stays as it is.

    Without any name it is the aggregator's, for the hosts it has. What was there is kept beside it, as NAME.old.pem and
    NAME.old.key. An aggregator that serves from here takes the new pair once both files are there, and goes on with the old one
    until then (`shared.tls`). Raises InputError, and has changed nothing, where there is nothing to renew.
    """
    now = now or datetime.now(UTC)
    people = _people({"site": sites, "coordinator": coordinators, "observer": observers})
    authority = Authority.read(folder)
    wanted: dict[str, list[x509.GeneralName]] = {}
    if hosts or not people:
        there = _names_in(folder / "aggregator.pem")
        wanted["aggregator"] = [_host(host) for host in hosts] or there
    for name, uri in people.items():
        wanted[name] = [uri]
        if (there := _names_in(folder / f"{name}.pem")) != [uri]:
            raise InputError(
                f"{folder / name}.pem is of {', '.join(str(one.value) for one in there) or 'nobody'}, not of {uri.value}; "
                "renew it as what it is, or choose another name"
            )
    written: list[Path] = []
    for file, names in wanted.items():
        _keep(folder, file)
        written += authority.reissue(folder, file, names, now, server=file == "aggregator")
    return written


def _people(wanted: Mapping[Role, Sequence[str]]) -> dict[str, x509.UniformResourceIdentifier]:
    """Return what stands for each name in its certificate. Raises InputError if two would share a file."""
    people = [name for names in wanted.values() for name in names]
    for name in people:
        if check_name(name) in ("ca", "aggregator") or people.count(name) > 1:
            raise InputError(f"name '{name}' is taken: every certificate needs a name of its own")
    return {
        name: x509.UniformResourceIdentifier(PREFIXES[role] + name) for role, names in wanted.items() for name in names
    }


def _names_in(path: Path) -> list[x509.GeneralName]:
    """Return the alternative names of a certificate that is to be renewed. Raises InputError if there is none."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except FileNotFoundError as error:
        raise InputError(f"there is no {path} to renew; to make it, leave --renew out") from error
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise InputError(f"cannot read the certificate {path}: {error}") from error


def _keep(folder: Path, file: str) -> None:
    """Copy a pair that belongs together to its old name; half of a renewal that was killed must not replace it."""
    try:
        certificate, secret = (folder / f"{file}.pem").read_bytes(), (folder / f"{file}.key").read_bytes()
        key = serialization.load_pem_private_key(secret, None)
    except (OSError, ValueError, TypeError):
        return
    if key.public_key() == x509.load_pem_x509_certificate(certificate).public_key():
        write_atomically(folder / f"{file}.old.key", secret, mode=0o600)
        write_atomically(folder / f"{file}.old.pem", certificate)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise InputError(
            f"host '{host}' is no address and no name in ASCII: give what sites dial with --host"
        ) from error


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_pair(folder: Path, file: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> list[Path]:
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths = [folder / f"{file}.pem", folder / f"{file}.key"]
    write_atomically(paths[1], secret, mode=0o600)
    write_atomically(paths[0], certificate.public_bytes(serialization.Encoding.PEM))
    return paths

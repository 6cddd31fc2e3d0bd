"""Joining a federation by request: the site makes its key and keeps it, the coordinator signs a name for it.

    site-agent join --site siemens      siemens.next.key (stays), siemens.csr (to the coordinator)
    aggregator approve siemens.csr      siemens.approved.pem (back to the site)
    site-agent join --finish FILE       siemens.pem, siemens.key, ca.pem

An agent that is started without its certificate takes an answer that lies where the certificate should: no --finish then.
Renewing is the same: the certificate in use stays until the new one is there.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.canonical import write_atomically
from shared.certificates import PREFIXES, Holder, fingerprint, holder, is_fingerprint
from shared.errors import InputError
from shared.names import check_name
from shared.tls import TlsFiles

CA = "ca.pem"
TAKEN = ("ca", "aggregator")


@dataclass(frozen=True, slots=True)
class Requested:
    """A request that was written, and its key's fingerprint, to be compared with what the coordinator sees."""

    csr: Path
    key: Path
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The files of a certificate that was signed, and the fingerprints of its key and of the CA that is trusted from now on."""

    holder: Holder
    ca: Path
    certificate: Path
    key: Path
    key_fingerprint: str
    ca_fingerprint: str

    @property
    def to_compare(self) -> str:
        """What the site and the coordinator read out to each other. The CA's is what no file that came by mail can prove."""
        return f"fingerprint of the CA: {self.ca_fingerprint}\nfingerprint of the key: {self.key_fingerprint}"


def request(folder: Path, site: str) -> Requested:
    """Make a key and a request for a site's name. A request that was not answered yet is replaced. Raises InputError."""
    key, paths = ec.generate_private_key(ec.SECP256R1()), _Paths(folder, check_name(site))
    if site in TAKEN:
        raise InputError(f"a site cannot be called '{site}': that is the name of another file here")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    uri = x509.UniformResourceIdentifier(PREFIXES["site"] + site)
    signed = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        write_atomically(paths.next_key, secret, 0o600)
        write_atomically(paths.csr, signed.public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error
    return Requested(paths.csr, paths.next_key, fingerprint(key.public_key()))


def finish(folder: Path, answer: Path, now: datetime | None = None, ca_fingerprint: str = "") -> Enrolled:
    """Take the coordinator's answer: the site's certificate and its CA's in one file.

    `ca_fingerprint`: of the CA, as the coordinator reads it out. Without it the first CA that comes is trusted, and somebody is to
    compare it. Raises InputError, with nothing put in place, unless the certificate is for the key that was made here, names one
    site, is signed by that CA and valid now; and the CA is the one with that fingerprint or, without one, the one that is here
    already, if one is.
    """
    try:
        certificate, authority = x509.load_pem_x509_certificates(answer.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {answer}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{answer} is not what aggregator approve writes: two certificates in PEM form") from error
    pem, issuer = (one.public_bytes(serialization.Encoding.PEM) for one in (certificate, authority))
    found = holder(pem)
    paths = _Paths(folder, check_name(found.site or "no-name"))
    _check(answer, certificate, authority, found, paths, now or datetime.now(UTC))
    theirs = fingerprint(authority.public_key())
    if ca_fingerprint and not is_fingerprint(ca_fingerprint, theirs):
        raise InputError(
            f"the CA in {answer} has fingerprint {theirs}, not {ca_fingerprint[:80]}: it is not the coordinator's, or was "
            "misheard. Nothing was put in place; ask them on the telephone what aggregator approve shows"
        )
    if not ca_fingerprint and (folder / CA).exists() and (folder / CA).read_bytes() != issuer:
        raise InputError(
            f"{answer} is signed by another CA than {folder / CA}; if the coordinator has a new one, have them read out its "
            f"fingerprint on the telephone (that in the answer is {theirs}), and give: site-agent join --finish {answer} --out "
            f'{folder} --ca-fingerprint "what they read out"'
        )
    write_atomically(folder / CA, issuer)
    if paths.next_key.exists():  # else a kill came after this line the last time
        paths.next_key.replace(paths.key)
    write_atomically(paths.certificate, pem)
    paths.csr.unlink(missing_ok=True)
    return Enrolled(found, folder / CA, paths.certificate, paths.key, fingerprint(certificate.public_key()), theirs)


def take_answer(tls: TlsFiles) -> Enrolled | None:
    """Finish the request for a certificate that is not there yet, if the coordinator's answer lies in its folder.

    None if there is nothing to finish. Raises InputError if the answer is still awaited, and as `finish`.
    """
    folder, site = tls.certificate.parent, tls.certificate.stem
    paths, answer = _Paths(folder, site), folder / f"{site}.approved.pem"
    if tls.certificate.exists() or not paths.next_key.exists():
        return None
    if not answer.exists():
        raise InputError(
            f"there is no {tls.certificate} yet: send {paths.csr} to the coordinator, put the answer, {answer.name}, into "
            f"{folder}, and start again"
        )
    return finish(folder, answer)


@dataclass(frozen=True, slots=True)
class Names:
    """Where a request's files lie until its answer is taken, whether they are there or not."""

    site: str
    key: Path
    csr: Path
    answer: Path


def names_of(tls: TlsFiles) -> Names:
    """Return where `take_answer` looks."""
    folder, site = tls.certificate.parent, tls.certificate.stem
    paths = _Paths(folder, site)
    return Names(site, paths.next_key, paths.csr, folder / f"{site}.approved.pem")


def _check(
    answer: Path,
    certificate: x509.Certificate,
    authority: x509.Certificate,
    found: Holder,
    paths: "_Paths",
    now: datetime,
) -> None:
    if not found.site:
        raise InputError(f"{answer} names {len(found.names['site'])} sites, expected one")
    try:
        made = paths.next_key if paths.next_key.exists() else paths.key
        key = serialization.load_pem_private_key(made.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the key of the request is not at {paths.next_key}: finish where it was made, or begin again with site-agent join "
            f"--site {found.site}"
        ) from error
    if key.public_key() != certificate.public_key():
        raise InputError(f"{answer} is for another key than {paths.next_key}: it answers another request")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise InputError(f"{answer}: the certificate is not signed by the CA beside it") from error
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise InputError(
            f"{answer} is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}, "
            f"and today is {now:%Y-%m-%d}; check this machine's clock"
        )


@dataclass(frozen=True, slots=True)
class _Paths:
    folder: Path
    site: str

    @property
    def key(self) -> Path:
        return self.folder / f"{self.site}.key"

    @property
    def next_key(self) -> Path:
        return self.folder / f"{self.site}.next.key"

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.site}.pem"

    @property
    def csr(self) -> Path:
        return self.folder / f"{self.site}.csr"

"""Approving a site's request for a certificate, and taking certificates back. The site's key never comes here."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from aggregator import rounds
from aggregator.certificates import Authority
from aggregator.store import audit, federations, revocations
from aggregator.store.engine import Store
from shared import account
from shared.certificates import PREFIXES, Holder, fingerprint, holder, holder_in, is_authority, uris_of
from shared.errors import InputError
from shared.names import check_name


@dataclass(frozen=True, slots=True)
class Request:
    """What a site asks for: its name, and the key it has made. `fingerprint` as the site's own screen shows it."""

    site: str
    key: ec.EllipticCurvePublicKey
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Approval:
    """A certificate with its CA's, as the site needs them: one PEM text."""

    request: Request
    holder: Holder
    pem: bytes


def read_request(file: Path) -> Request:
    """Read a request that `site-agent join` wrote.

    Raises InputError unless it is signed with the key it names, the key is on a curve of at least 256 bits, and it asks for the
    name of one site and nothing else.
    """
    try:
        request = x509.load_pem_x509_csr(file.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read the request {file}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is no request for a certificate; it comes from: site-agent join") from error
    if not request.is_signature_valid:
        raise InputError(f"{file} is not signed with the key it names: it was changed on its way")
    key, uris = request.public_key(), uris_of(request)
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.key_size < 256:
        raise InputError(f"{file} has a key that is not one of site-agent join (EC, 256 bits or more)")
    names = [uri.removeprefix(PREFIXES["site"]) for uri in uris if uri.startswith(PREFIXES["site"])]
    if len(uris) != 1 or len(names) != 1:
        raise InputError(
            f"{file} asks for {', '.join(uris)[:200] or 'no name'}, allowed is one '{PREFIXES['site']}NAME'"
        )
    return Request(check_name(names[0]), key, fingerprint(key))


def approve(
    store: Store, authority: Authority, request: Request, now: datetime, days: int, patients: int | None = None
) -> Approval:
    """Sign a request, in the store's federation. `patients`: fixes how many the site trains on, if nobody has.

    Raises InputError if the site is not one of the federation's, was evicted, or has another number of patients.
    """
    certificate = authority.sign_site(request.key, request.site, now, days)
    issuer = authority.certificate.public_bytes(serialization.Encoding.PEM)
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    found = holder(pem)
    name = store.read(federations.only_name)
    store.change(name, False, _approve, name, request, found, patients, now.timestamp())
    return Approval(request, found, pem + issuer)


def _approve(
    connection: sa.Connection, federation: str, request: Request, found: Holder, patients: int | None, now: float
) -> None:
    sites = federations.enrolled(connection, federation)
    site = sites.get(request.site)
    if site is None:
        raise InputError(
            f"site '{request.site}' is not one of federation '{federation}' (it has: {', '.join(sites)}); the request must name "
            "one of them"
        )
    if site.phase == "evicted":
        raise InputError(f"site '{request.site}' was evicted from '{federation}': {site.reason or 'no reason given'}")
    if patients is not None and site.training_patients not in (None, patients):
        raise InputError(
            f"site '{request.site}' has {site.training_patients} training patients already, got {patients}; leave --patients out"
        )
    if patients is not None:
        federations.fix_patients(connection, federation, request.site, patients)
    audit.append(
        connection,
        federation,
        now,
        "site_approved",
        site=request.site,
        serial=found.serial,
        key=request.fingerprint,
        expires=datetime.fromtimestamp(found.expires_at, UTC).strftime("%Y-%m-%d"),
        by=account.name(),
        patients=patients,
    )


def revocable(file: Path) -> Holder:
    """Return what a certificate says that may be revoked: a site's or a person's.

    Raises InputError for the aggregator's own and for a CA's: sites look at those themselves, and do not ask whether they are
    revoked.
    """
    found = holder_in(file)
    if is_authority(file.read_bytes()):
        raise InputError(
            f"{file} is a CA: those who trust it do not ask here. If its key is in wrong hands, make another in an empty folder "
            "(aggregator certificates --out NEW --host NAME), approve every site anew with --certs NEW, and serve with its files"
        )
    if not any(found.names.values()):
        raise InputError(
            f"{file} is of no site and no person: it is the aggregator's own, and sites do not ask here whether it is revoked. "
            "To replace it, make another (aggregator certificates --out certs --renew), and put both files where serve reads them: "
            "they are taken with the next connection. If the old key is in wrong hands, sites take it until it ends: make another "
            "CA in an empty folder, and approve every site anew"
        )
    return found


@dataclass(frozen=True, slots=True)
class Revoked:
    """A certificate that is good for nothing. `new`: since now. `accepted`: its sites whose update is in round `round`, and
    stays."""

    new: bool
    round: int
    accepted: tuple[str, ...]


def revoke(store: Store, serial: str, who: str, reason: str, now: float, named: Collection[str] = ()) -> Revoked:
    """Make a certificate good for nothing from now on, at every replica. `named`: the sites that it is for, where that is known.

    An update that was accepted before came from the site, and counts: only evicting the site takes it out of its round.
    """
    name = store.read(federations.only_name)
    return store.change(name, True, _revoke, name, serial, who, reason, now, named)


def _revoke(
    connection: sa.Connection,
    federation: str,
    serial: str,
    who: str,
    reason: str,
    now: float,
    named: Collection[str],
) -> Revoked:
    new = revocations.add(connection, federation, serial, who, reason, account.name(), now)
    state = federations.state(connection, federation)
    theirs = (site.name for site in state.sites.values() if site.name in named or site.serial == serial)
    held = rounds.counted(state) if state.round.phase in ("open", "closing") else {}
    return Revoked(new, state.round.number, tuple(sorted(name for name in theirs if name in held)))

"""The certificate files in `site.toml`: whether they fit each other, and until when they are good."""

import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shared.certificates import WARN_DAYS, expiry_words, holder_in
from shared.errors import InputError
from shared.tls import TlsFiles
from site_agent.certificate import open_to_others
from site_agent.doctor import rights
from site_agent.doctor.finding import Examined, Finding, absent, failed, passed, warned

if TYPE_CHECKING:
    from cryptography import x509

PLAIN = "plain text on loopback: there are no certificates"
OURS, THEIRS = "this site's certificate", "the aggregator's certificate"
RENEW = "aggregator certificates --out certs --renew"
NEW_CA = (
    "the coordinator makes another CA in an empty folder (aggregator certificates --out NEW --host NAME), and every site asks for "
    "a certificate of it"
)


def files(examined: Examined) -> Finding:
    """Look whether key and certificate are a pair, name one site, and are signed by the CA beside them."""
    tls = examined.config.tls
    if tls is None:
        return absent(PLAIN)
    if examined.not_enrolled is not None:
        return examined.not_enrolled
    try:
        tls.check_pair()
        held = holder_in(tls.certificate)
        own, authorities = _read(tls)
    except InputError as error:
        return failed(
            str(error),
            rights.remedy(error)
            or "put the coordinator's answer in place: site-agent join --finish NAME.approved.pem; then see [tls]",
        )
    if not held.site:
        return failed(
            f"{tls.certificate.name} names {len(held.names['site'])} sites, expected one",
            "that is no site's: site-agent join --site NAME asks the coordinator for one",
        )
    facts = {"site": held.site, "serial": held.serial}
    if mode := open_to_others(tls):
        return warned(
            f"site {held.site}; its key can be read by others on this machine (mode {mode})",
            f"chmod 600 {tls.key}",
            **facts,
        )
    if not any(_signed(own, authority) for authority in authorities):
        return warned(
            f"site {held.site}; {tls.certificate.name} is not signed by the CA in {tls.ca.name}",
            "ask the coordinator which CA is in force: an aggregator takes certificates of its own CA only",
            **facts,
        )
    origin = f"; from {examined.origin}" if examined.origin else ""
    return passed(
        f"site {held.site}, key and certificate are a pair, signed by the CA in {tls.ca.name}{origin}", **facts
    )


def expiry(examined: Examined) -> Finding:
    """Look until when the site's certificate, its CA's and the aggregator's are good, by this machine's clock."""
    tls = examined.config.tls
    if tls is None:
        return absent(PLAIN)
    own, authorities = _read(tls)
    now = examined.clock()
    authority = f"the CA in {tls.ca.name}"
    ends = {OURS: own, authority: authorities[0]}
    if examined.peer is not None:
        ends[THEIRS] = examined.peer.certificate
    until = {who: one.not_valid_after_utc.timestamp() for who, one in ends.items()}
    facts = {"expires_at": {who: round(at) for who, at in until.items()}}
    early = [who for who, one in ends.items() if one.not_valid_before_utc.timestamp() > now]
    if early:
        return failed(
            f"{' and '.join(early)} is not valid yet: from {ends[early[0]].not_valid_before_utc:%Y-%m-%d %H:%M} UTC; this "
            f"machine's clock says {datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M} UTC",
            "set this machine's clock (timedatectl), or ask the coordinator about the certificate",
            **facts,
        )
    ending = {who: words for who, at in until.items() if (words := expiry_words(at, now))}
    if ending:
        said = "; ".join(f"{who} {words}" for who, words in ending.items())
        renewals = {OURS: asking(tls), authority: NEW_CA, THEIRS: f"the coordinator renews it: {RENEW}"}
        told = failed if any(at < now for at in until.values()) else warned
        return told(said, "; ".join(renewals[who] for who in ending), **facts)
    first = min(until, key=lambda who: until[who])
    days = (until[first] - now) / 86_400
    return passed(f"good for {days:.0f} days ({first} ends first); warned of {WARN_DAYS[0]} days before", **facts)


def asking(tls: TlsFiles) -> str:
    """Return how a site comes by another certificate in the place of the one it has."""
    site, folder = holder_in(tls.certificate).site or "NAME", shlex.quote(str(tls.key.parent))
    return f"ask the coordinator for another: site-agent join --site {site} --out {folder}"


def name_of(subject: "x509.Name") -> str:
    """Return a subject or issuer as people know it: its common name, else all of it; printable, at most 80 characters."""
    from cryptography.x509.oid import NameOID

    from shared.names import plain

    found = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return plain(str(found[0].value) if found else subject.rfc4514_string(), 80)


def authority_of(tls: TlsFiles) -> "x509.Certificate":
    """Return the first certificate of the CA's file. Raises InputError."""
    return _read(tls)[1][0]


def _read(tls: TlsFiles) -> "tuple[x509.Certificate, list[x509.Certificate]]":
    from cryptography import x509

    try:
        own = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
        authorities = x509.load_pem_x509_certificates(tls.ca.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{tls.ca} holds no certificate in PEM form: {error}") from error
    return own, authorities


def _signed(certificate: "x509.Certificate", authority: "x509.Certificate") -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True

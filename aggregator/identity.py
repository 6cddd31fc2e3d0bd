"""Who is calling: read from the client's certificate, never from a field of a message."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shared.certificates import PREFIXES, Holder, holder
from shared.errors import InputError, NotEnrolled
from shared.protocol import SITE_KEY

CERTIFICATE = "x509_pem_cert"
TRANSPORT = "transport_security_type"
UNAUTHENTICATED = "unauthenticated"


@dataclass(frozen=True, slots=True)
class Caller:
    """A site. `authenticated` is False in plain mode, where the name is only claimed.

    `serial` and `expires_at` (seconds since 1970) are its certificate's; empty and 0 without one.
    """

    site: str
    authenticated: bool
    serial: str = ""
    expires_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Person:
    """A coordinator or an observer, and the serial of the certificate; on a plain port nobody in particular."""

    name: str
    serial: str = ""
    expires_at: float = 0.0


def site_of(context: Any) -> Caller:
    """Return the site that calls. Raises NotEnrolled if its certificate names no site, or several.

    On a plain port (loopback only) the name comes from call metadata and is marked unauthenticated.
    """
    held = _certificate(context)
    if held is None:
        claimed = str(dict(context.invocation_metadata() or ()).get(SITE_KEY, ""))[:64]
        if not claimed:
            raise NotEnrolled(f"the call names no site: without TLS the metadata key '{SITE_KEY}' must hold it")
        return Caller(claimed, False)
    if not held.site:
        raise NotEnrolled(
            f"the certificate names {len(held.names['site'])} sites, expected one URI '{PREFIXES['site']}<name>' among its "
            "alternative names; ask for one with: site-agent join --site NAME"
        )
    return Caller(held.site, True, held.serial, held.expires_at)


def coordinator_of(context: Any) -> Person:
    """Return the coordinator that calls. Raises NotEnrolled for any other certificate; a plain loopback port needs none."""
    return _coordinator(_certificate(context))


def _coordinator(held: Holder | None) -> Person:
    if held is None:
        return Person(UNAUTHENTICATED)
    if not held.names["coordinator"]:
        raise NotEnrolled(
            "this call is for coordinators; the certificate shown is not one of theirs. "
            "Make one with: aggregator certificates --coordinator NAME"
        )
    return Person(held.names["coordinator"][0], held.serial, held.expires_at)


def reader_of(context: Any) -> Person:
    """Return the coordinator or observer that calls. Raises NotEnrolled for any other certificate, as `coordinator_of`."""
    return reader(_certificate(context))


def reader(held: Holder | None) -> Person:
    """Return the coordinator or observer whom a certificate is for; None, on a plain port, is nobody in particular. Raises
    NotEnrolled for any other certificate."""
    if held is not None and held.names["observer"] and not held.names["coordinator"]:
        return Person(held.names["observer"][0], held.serial, held.expires_at)
    return _coordinator(held)


def describe(context: Any) -> str:
    """Return the caller's name for the log: a site, "coordinator:<name>", "observer:<name>", or empty."""
    try:
        return site_of(context).site
    except NotEnrolled:
        pass
    held = _certificate(context)
    for role in ("coordinator", "observer"):
        if held is not None and held.names[role]:
            return f"{role}:{held.names[role][0]}"
    return ""


def _certificate(context: Any) -> Holder | None:
    """Return what the client's certificate says; None on a plain port. Raises NotEnrolled if it cannot be read."""
    shown = context.auth_context()
    kinds: Iterable[bytes] = shown.get(TRANSPORT, ())
    if not any(bytes(kind) == b"ssl" for kind in kinds):
        return None
    try:
        return holder(bytes(shown[CERTIFICATE][0]))
    except (KeyError, IndexError, InputError) as error:
        raise NotEnrolled("the call shows no certificate that can be read") from error

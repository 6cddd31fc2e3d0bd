"""Who is calling: read from the client's certificate, never from a field of a message."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shared.errors import NotEnrolled
from shared.protocol import SITE_KEY
from shared.tls import COORDINATOR_PREFIX, SITE_PREFIX

SAN = "x509_subject_alternative_name"
TRANSPORT = "transport_security_type"


@dataclass(frozen=True, slots=True)
class Caller:
    """A site. `authenticated` is False in plain mode, where the name is only claimed."""

    site: str
    authenticated: bool


def site_of(context: Any) -> Caller:
    """Return the site that calls. Raises NotEnrolled if its certificate names no site, or several.

    On a plain port (loopback only) the name comes from call metadata and is marked unauthenticated.
    """
    if not _has_certificate(context):
        claimed = str(dict(context.invocation_metadata() or ()).get(SITE_KEY, ""))[:64]
        if not claimed:
            raise NotEnrolled(f"the call names no site: without TLS the metadata key '{SITE_KEY}' must hold it")
        return Caller(claimed, False)
    names = _names(context, SITE_PREFIX)
    if len(names) != 1:
        raise NotEnrolled(
            f"the certificate names {len(names)} sites, expected one URI '{SITE_PREFIX}<name>' among its alternative "
            "names; make one with: aggregator certificates --site NAME"
        )
    return Caller(names[0], True)


def check_coordinator(context: Any) -> str:
    """Return the coordinator's name. Raises NotEnrolled for any other certificate; a plain loopback port needs none."""
    if not _has_certificate(context):
        return "unauthenticated"
    names = _names(context, COORDINATOR_PREFIX)
    if not names:
        raise NotEnrolled(
            "this call is for coordinators; the certificate shown is not one of theirs. "
            "Make one with: aggregator certificates --coordinator NAME"
        )
    return names[0]


def describe(context: Any) -> str:
    """Return the caller's name for the log: a site, "coordinator:<name>", or empty."""
    try:
        return site_of(context).site
    except NotEnrolled:
        names = _names(context, COORDINATOR_PREFIX) if _has_certificate(context) else []
        return f"coordinator:{names[0]}" if names else ""


def _has_certificate(context: Any) -> bool:
    kinds: Iterable[bytes] = context.auth_context().get(TRANSPORT, ())
    return any(bytes(kind) == b"ssl" for kind in kinds)


def _names(context: Any, prefix: str) -> list[str]:
    uris = [bytes(uri).decode("utf-8", "replace") for uri in context.auth_context().get(SAN, ())]
    return sorted({uri.removeprefix(prefix) for uri in uris if uri.startswith(prefix)})

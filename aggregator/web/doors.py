"""Connections of the HTTP port: their TLS, whose certificate they show, and how many there are for how long."""

import asyncio
import ssl
from collections.abc import Callable

import structlog
from aiohttp import web

from shared import certificates
from shared.certificates import Holder
from shared.errors import InputError
from shared.tls import TlsFiles

log = structlog.get_logger()

MOST = 256
"""Connections at a time. Each takes a file descriptor, of which sites need some too."""
IDLE_S = 30.0
"""Longest silence between two requests."""
SILENT_S = 15.0
"""A connection that has asked for nothing by then is closed: it may not keep others out."""
HANDSHAKE_S = 10.0


def context(tls: TlsFiles) -> ssl.SSLContext:
    """Return a server's context that asks for a client's certificate and takes connections without.

    Files that are replaced take effect with the next connection, as on the gRPC port. Raises InputError if they cannot be used now.
    """
    first = newest = _context(tls)
    stamp = tls.stamp()

    def choose(connection: ssl.SSLObject, name: str | None, own: ssl.SSLContext) -> None:
        """Called with every client's first message."""
        nonlocal newest, stamp
        try:
            if (now := tls.stamp()) != stamp:
                newest, stamp = _context(tls), now
        except InputError as error:
            log.warning("certificate_not_replaced", error=str(error))
        connection.context = newest

    first.sni_callback = choose
    return first


def _context(tls: TlsFiles) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.verify_mode = ssl.CERT_OPTIONAL
    made.set_alpn_protocols(["http/1.1"])
    try:
        made.load_verify_locations(cafile=tls.ca)
        made.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"the TLS files cannot be used together: {tls} ({error}); make them with: aggregator certificates"
        ) from error
    return made


def holder_of(transport: asyncio.BaseTransport | None) -> Holder | None:
    """Return what the client's certificate says; None if it showed none. Raises InputError if it cannot be read."""
    connection = transport.get_extra_info("ssl_object") if transport is not None else None
    shown = connection.getpeercert(binary_form=True) if connection is not None else None
    return certificates.holder(ssl.DER_cert_to_PEM_cert(shown).encode()) if shown else None


class Doors:
    """How many connections there are, and which have asked for nothing yet."""

    def __init__(self) -> None:
        self._silent: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = {}

    def bounded(self, server: web.Server) -> Callable[[], asyncio.BaseProtocol]:
        """Return what makes the protocol of each connection: aiohttp's, for as many as there may be."""

        def make() -> asyncio.BaseProtocol:
            if len(self._silent) + len(server.connections) >= MOST:
                raise ConnectionRefusedError(
                    f"{MOST} connections already"
                )  # asyncio closes it, before the handshake too
            handler = server()
            self._silent[handler] = asyncio.get_running_loop().call_later(SILENT_S, self._close, handler)
            return handler

        return make

    def heard(self, handler: asyncio.BaseProtocol) -> None:
        """Know that a connection has asked for something."""
        if timer := self._silent.pop(handler, None):
            timer.cancel()

    def _close(self, handler: web.RequestHandler) -> None:
        self._silent.pop(handler, None)
        handler.force_close()

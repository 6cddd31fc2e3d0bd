"""TLS as the agent needs it, by Python's own: gRPC says no more than that a handshake failed.

Three things may be in the way: a server with another certificate than the federation's (a middlebox that inspects TLS shows its
own), a connection without ALPN, which gRPC refuses, and an aggregator that does not take this site's certificate.
"""

import shlex
import ssl
from datetime import UTC, datetime

from cryptography import x509

from shared.names import plain
from shared.tls import TlsFiles
from site_agent.doctor import network
from site_agent.doctor.certificates import NEW_CA, PLAIN, RENEW, THEIRS, asking, authority_of, name_of
from site_agent.doctor.finding import Examined, Finding, Peer, absent, failed, passed, skipped

H2 = "h2"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client begins HTTP/2, with an empty SETTINGS frame (RFC 9113, section 3.4); the server's first frame is SETTINGS too."""
SETTINGS_FRAME = 4
EXPIRED, NOT_YET = 10, 9
WRONG_HOST, WRONG_ADDRESS = 62, 64
"""Of X509_verify_cert_error_string (openssl/x509_vfy.h)."""
MOST_NAMES, MOST_OF_A_NAME = 8, 253
INSPECTED = (
    "if a firewall or proxy inspects TLS here, have it pass {target} through untouched: the agent takes no other certificate than "
    "the federation's"
)


def chain(examined: Examined) -> Finding:
    """Shake hands twice: once to see what is shown, once to verify it against the federation's CA and the name that is dialled."""
    tls = examined.config.tls
    if tls is None:
        return absent(PLAIN)
    try:
        with _wrapped(examined, tls, verified=False) as line:
            shown = line.getpeercert(binary_form=True)
            if shown:
                certificate = x509.load_der_x509_certificate(shown)
                examined.peer = Peer(certificate, line.selected_alpn_protocol() or "", line.version() or "")
        with _wrapped(examined, tls, verified=True) as line:
            version = line.version()
    except ssl.SSLCertVerificationError as error:
        return _not_verified(examined, tls, error)
    except (ssl.SSLError, OSError) as error:
        return _no_tls(examined, tls, error)
    assert examined.peer is not None
    names = ", ".join(_names(examined.peer.certificate))
    return passed(
        f"{version}; issued by {name_of(examined.peer.certificate.issuer)}, for {names}",
        tls_version=version,
        issuer=name_of(examined.peer.certificate.issuer),
        names=_names(examined.peer.certificate),
    )


def alpn(examined: Examined) -> Finding:
    """Look whether h2 was agreed on (RFC 7301): gRPC closes a connection without it."""
    if examined.config.tls is None:
        return absent(PLAIN)
    if examined.peer is None:
        return skipped("not tried: there was no TLS handshake")
    found = examined.peer.alpn
    if found == H2:
        return passed("h2 is agreed on", alpn=found)
    return failed(
        f"the connection came about without ALPN '{H2}' ({f'got {found!r}' if found else 'none was agreed on'}): gRPC refuses it",
        INSPECTED.format(target=examined.config.aggregator)
        + f"; a load balancer in front of the aggregator must offer {H2}, or pass TCP through",
        alpn=found,
    )


def client_certificate(examined: Examined) -> Finding:
    """Begin HTTP/2: an aggregator that does not take the site's certificate closes the connection in place of its first frame."""
    tls = examined.config.tls
    if tls is None:
        return absent(PLAIN)
    try:
        with _wrapped(examined, tls, verified=True) as line:
            line.sendall(PREFACE)
            answer = line.recv(9)
    except TimeoutError:
        return failed(
            f"the aggregator shook hands and then said nothing for {examined.patience_s:g} s",
            "ask the coordinator whether the aggregator, or what stands in front of it, hangs",
        )
    except (ssl.SSLError, OSError) as error:
        return _refused(examined, getattr(error, "reason", None) or str(error))
    if len(answer) == 9 and answer[3] == SETTINGS_FRAME:
        return passed("the aggregator takes this site's certificate")
    if not answer:
        return _refused(examined, "it closed the connection")
    return failed(
        "what answers speaks TLS, and no HTTP/2",
        f"another service listens on {examined.config.aggregator}: ask the coordinator for the right port",
    )


def _wrapped(examined: Examined, tls: TlsFiles, *, verified: bool) -> ssl.SSLSocket:
    """Return a TLS connection, made with the site's three files. Raises OSError, of which ssl.SSLError is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([H2])
    context.load_cert_chain(tls.certificate, tls.key)
    if verified:
        context.load_verify_locations(tls.ca)
    else:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    line = network.connect(examined)
    try:
        return context.wrap_socket(line, server_hostname=examined.host)
    except BaseException:
        line.close()
        raise


def _not_verified(examined: Examined, tls: TlsFiles, error: ssl.SSLCertVerificationError) -> Finding:
    assert examined.peer is not None
    shown, target = examined.peer.certificate, examined.config.aggregator
    issuer, expected = name_of(shown.issuer), name_of(authority_of(tls).subject)
    facts = {"issuer": issuer, "expected_issuer": expected, "names": _names(shown), "verify_code": error.verify_code}
    if error.verify_code in (WRONG_HOST, WRONG_ADDRESS):
        hosts = " ".join(f"--host {shlex.quote(one)}" for one in (*_names(shown), examined.host))
        return failed(
            f"the certificate is for {', '.join(_names(shown)) or 'nobody'}, and '{examined.host}' is dialled",
            f"dial one of those names, or have the coordinator renew it for this one too: {RENEW} {hosts}",
            **facts,
        )
    if error.verify_code in (EXPIRED, NOT_YET):
        now = datetime.fromtimestamp(examined.clock(), UTC)
        begins, ends = shown.not_valid_before_utc, shown.not_valid_after_utc
        whose, renewal = (THEIRS, RENEW) if not begins <= now <= ends else (f"the CA in {tls.ca.name}", NEW_CA)
        kind = "has expired" if error.verify_code == EXPIRED else "is not valid yet"
        return failed(
            f"{whose} {kind}: that shown is good from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, and it is "
            f"{now:%Y-%m-%d %H:%M} UTC here",
            f"if this machine's clock is right, tell the coordinator: {renewal}; else set the clock (timedatectl)",
            **facts,
        )
    if issuer == expected:
        return failed(
            f"the certificate is issued by a CA with the name of this site's, '{issuer}', and another key",
            f"the coordinator has made a new CA: ask for the new {tls.ca.name}, and for a new certificate of this site",
            **facts,
        )
    return failed(
        f"the certificate is issued by '{issuer}', and this site trusts '{expected}' alone",
        INSPECTED.format(target=target)
        + f"; if '{issuer}' is the federation's new CA, ask the coordinator for its {tls.ca.name}",
        **facts,
    )


def _no_tls(examined: Examined, tls: TlsFiles, error: OSError) -> Finding:
    target = examined.config.aggregator
    if isinstance(error, TimeoutError):
        return failed(
            f"what listens does not answer a TLS handshake within {examined.patience_s:g} s",
            f"a firewall may let connections to {target} through and no data; else the aggregator hangs: ask the coordinator",
        )
    reason = getattr(error, "reason", None) or error.strerror or str(error) or type(error).__name__
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"):
        return failed(
            "what listens does not speak TLS",
            f"compare {target} with what the coordinator gave you: another service has this port, or it serves --plain",
        )
    closed = isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))  # which of them, by the version of OpenSSL
    if isinstance(error, ssl.SSLError) and not closed:
        return failed(
            f"the TLS handshake failed: {reason}",
            f"if it names an alert, the other side did not take this site's certificate or its TLS: {asking(tls)}; "
            + INSPECTED.format(target=target),
        )
    return failed(
        f"the connection was cut in the TLS handshake: {'it was closed' if closed else reason}",
        f"a firewall that knows TLS may forbid it, or the aggregator's front does not know {target}: have it allowed by name",
    )


def _refused(examined: Examined, reason: str) -> Finding:
    assert examined.config.tls is not None
    return failed(
        f"the handshake came about, and then the aggregator did not take this site's certificate ({reason})",
        f"its CA must be the aggregator's: {asking(examined.config.tls)}",
        reason=reason,
    )


def _names(certificate: x509.Certificate) -> list[str]:
    """Return whom a certificate is for. Nobody may have vouched for it yet."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    names = (*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress)))
    return [plain(name, MOST_OF_A_NAME) for name in names[:MOST_NAMES]]

"""This site's certificate, key and CA as the agent sees them: usable, kept to itself, until when, and what to do if not."""

import stat
import time

import structlog

from shared.certificates import Expiry, expiry_words, holder_in
from shared.errors import InputError
from shared.tls import TlsFiles
from site_agent.view import View

log = structlog.get_logger()
DOCTOR = "`site-agent doctor` with the same options says why, certificates included"


class OwnCertificate:
    """One agent's. On a plain connection, where `tls` is None, there is nothing to say."""

    def __init__(self, tls: TlsFiles | None, view: View) -> None:
        self._tls, self._view = tls, view
        self._expiry = Expiry()

    def check(self) -> None:
        """Say so if others can read the key. Raises InputError naming both files unless key and certificate are a pair."""
        if self._tls is None:
            return
        try:
            self._tls.check_pair()
        except InputError as error:
            raise InputError(
                f"{error} ([tls] certificate {self._tls.certificate}, key {self._tls.key}); put the coordinator's answer in "
                "place: site-agent join --finish NAME.approved.pem"
            ) from error
        if mode := open_to_others(self._tls):
            log.warning("key_open_to_others", mode=mode)
            self._view.warned(
                f"this site's key can be read by others on this machine (mode {mode}): chmod 600 {self._tls.key}"
            )

    def tell_expiry(self) -> None:
        """Say that the certificate or its CA ends: once 60, 30 and 7 days before, and once it has."""
        if self._tls is None:
            return
        try:
            held, ca = holder_in(self._tls.certificate), holder_in(self._tls.ca)
        except InputError:
            return  # it is being replaced
        now = time.time()
        if words := self._expiry.news(held.site, held.expires_at, now):
            log.warning("certificate_expires", site=held.site, expires_at=held.expires_at)
            self._view.warned(f"this site's certificate {words}; renew it: site-agent join --site {held.site}")
        if words := self._expiry.news("CA", ca.expires_at, now):
            log.warning("certificate_expires", holder="CA", expires_at=ca.expires_at)
            self._view.warned(f"the federation's CA {words}; ask the coordinator for what comes after it")

    def advice(self) -> str:
        """Return what to do while the aggregator does not answer: gRPC says of a refused certificate that a socket closed."""
        if self._tls is None:
            return ""
        now = time.time()
        try:
            held, ca = holder_in(self._tls.certificate), holder_in(self._tls.ca)
        except InputError:
            return DOCTOR
        if held.expires_at < now:
            return f"this site's certificate {expiry_words(held.expires_at, now)}; renew it: site-agent join --site {held.site}"
        if ca.expires_at < now:
            return (
                f"the federation's CA {expiry_words(ca.expires_at, now)}; ask the coordinator for what comes after it"
            )
        return DOCTOR


def open_to_others(tls: TlsFiles) -> str:
    """Return the mode of the key's file if others on this machine may use it, else nothing."""
    mode = stat.S_IMODE(tls.key.stat().st_mode)
    return f"{mode:04o}" if mode & 0o077 else ""

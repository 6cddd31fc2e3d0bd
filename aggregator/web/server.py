"""The HTTP side of a serving process: who may look at what, and what answers. Only GET and HEAD; nothing here changes anything.

On a loopback address plain HTTP, open to whoever is on this machine. Elsewhere HTTPS with the aggregator's own certificate: probes
are open, everything else is for people with an observer's or coordinator's certificate.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from aiohttp import web

from aggregator import identity
from aggregator.errors import CannotBind
from aggregator.facts.current import CurrentFacts
from aggregator.federation import Federation
from aggregator.health import Health
from aggregator.web import doors, view
from aggregator.web.doors import Doors
from aggregator.web.metrics import Metrics
from shared.errors import InputError, MedDualLoRAError, NotEnrolled, StoreUnavailable
from shared.page import parts
from shared.status import INTERNAL_TEXT
from shared.tls import TlsFiles, is_loopback

log = structlog.get_logger()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

OPEN = frozenset({"/healthz", "/readyz"})
"""For probes, which have no certificate. They say no more than whether the process can do its job."""
STATIC = Path(__file__).with_name("static")
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
HOW_TO_ENTER = (
    "this page is for people with an observer's or a coordinator's certificate. The coordinator makes one with: aggregator "
    "certificates --observer NAME. For a browser: openssl pkcs12 -export -in NAME.pem -inkey NAME.key -out NAME.p12, and import "
    "that file; or: curl --cacert ca.pem --cert NAME.pem --key NAME.key"
)


@dataclass
class RunningWeb:
    """The started HTTP side. `url` has the real port."""

    url: str
    runner: web.AppRunner
    listener: asyncio.Server

    async def stop(self) -> None:
        """Answer what is under way, and close."""
        self.listener.close()
        await self.runner.cleanup()


@dataclass(frozen=True, kw_only=True)
class Pages:
    """What answers, and from what."""

    federation: Federation
    health: Health
    current: CurrentFacts
    metrics: Metrics
    encrypted: bool
    doors: Doors = field(default_factory=Doors)

    def application(self) -> web.Application:
        """Return the routes with their checks."""
        application = web.Application(middlewares=[self._check], client_max_size=1024)
        application.on_response_prepare.append(_add_headers)
        for path, handler in {
            "/": self._page,
            "/status.json": self._status,
            "/metrics": self._metrics,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
        }.items():
            application.router.add_get(path, handler)
        for file in (parts.COLOURS, *sorted(STATIC.iterdir())):
            application.router.add_get(f"/static/{file.name}", _static(file))
        return application

    @web.middleware
    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer whoever may look; every error in words, none with the text of an unexpected one."""
        self.doors.heard(request.protocol)
        try:
            if request.path not in OPEN:
                await self._admit(request)
            return await handler(request)
        except NotEnrolled as error:
            return _text(403, f"{error}\n")
        except StoreUnavailable as error:
            return _text(503, f"{error}\n")
        except web.HTTPException:
            raise
        except MedDualLoRAError as error:
            return _text(500, f"{error}\n")
        except Exception as error:
            log.exception("page_failed", path=request.path[:100], exc_info=error)
            return _text(500, f"{INTERNAL_TEXT}\n")

    async def _admit(self, request: web.Request) -> None:
        """Raise NotEnrolled unless the caller may look."""
        if not self.encrypted:
            # A page elsewhere can have its own name stand for 127.0.0.1 and have the browser ask here; the name gives it away.
            if not is_loopback(request.url.host or ""):
                raise NotEnrolled(
                    f"'{(request.url.host or '')[:80]}' is not this machine; open http://127.0.0.1 with this port"
                )
            return
        try:
            held = doors.holder_of(request.transport)
            person = identity.reader(held) if held else None
        except (InputError, NotEnrolled):
            person = None
        if person is None:
            raise NotEnrolled(HOW_TO_ENTER)
        await self.federation.check_certificate(person.serial, person.expires_at)

    async def _page(self, request: web.Request) -> web.Response:
        del request
        trouble = ""
        try:
            found = await self.current.get()
        except StoreUnavailable as error:
            if self.current.last is None:
                raise
            found, trouble = self.current.last, str(error)
        return web.Response(text=await asyncio.to_thread(view.page, found, trouble), content_type="text/html")

    async def _status(self, request: web.Request) -> web.Response:
        del request
        found = await self.current.get()
        text = await asyncio.to_thread(json.dumps, found, indent=1, allow_nan=False)
        return web.Response(text=text, content_type="application/json")

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        body, kind = await self.metrics.scrape()
        return web.Response(body=body, headers={"Content-Type": kind})

    async def _healthz(self, request: web.Request) -> web.Response:
        del request
        return _text(503, f"dead: {why}\n") if (why := self.health.dead) else _text(200, "alive\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        del request
        return _text(503, f"not ready: {why}\n") if (why := await self.health.ask()) else _text(200, "ready\n")


async def start(pages: Pages, listen: str, tls: TlsFiles | None) -> RunningWeb:
    """Serve at `listen`, host:port. Raises CannotBind if the port is taken."""
    quiet = logging.getLogger(
        "aggregator.web.requests"
    )  # of what is no HTTP; what goes wrong in a handler is in our own log
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    runner = web.AppRunner(pages.application(), access_log=None, logger=quiet, keepalive_timeout=doors.IDLE_S)
    await runner.setup()
    assert runner.server is not None
    host, _, port = listen.rpartition(":")
    try:
        listener = await asyncio.get_running_loop().create_server(
            pages.doors.bounded(runner.server),
            host.strip("[]"),
            int(port),
            ssl=doors.context(tls) if tls else None,
            ssl_handshake_timeout=doors.HANDSHAKE_S if tls else None,
        )
    except OSError as error:
        await runner.cleanup()
        raise CannotBind.because(error, listen, "--http", " for the status page") from error
    real = listener.sockets[0].getsockname()[1]
    return RunningWeb(f"{'https' if tls else 'http'}://{host}:{real}/", runner, listener)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    del request
    response.headers.update(HEADERS)
    response.headers.popall("Server", None)


def _static(file: Path) -> Handler:
    text, kind = file.read_text(encoding="utf-8"), TYPES[file.suffix]

    async def answer(request: web.Request) -> web.Response:
        del request
        return web.Response(text=text, content_type=kind)

    return answer


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)

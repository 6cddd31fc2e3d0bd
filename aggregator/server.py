"""The serving process: one port, one federation, one store. On PostgreSQL any number of them, and none is special."""

import asyncio
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc
import structlog
from med_duallora.v1 import coordinator_pb2_grpc, federation_pb2_grpc

from aggregator import identity, rounds, wire
from aggregator.closing import Closer
from aggregator.errors import CannotBind
from aggregator.facts.calls import Calls
from aggregator.federation import Federation, ServiceLimits
from aggregator.health import Health, HealthServicer
from aggregator.refusals import Refusals
from aggregator.servicers import CoordinatorServicer, FederationServicer
from aggregator.store import federations
from aggregator.store.database import Watch
from aggregator.store.engine import Store
from aggregator.traces import Traces
from shared import certificates, rpc
from shared.certificates import Expiry
from shared.errors import InputError, MedDualLoRAError
from shared.tls import TlsFiles, check_plain, is_loopback

if TYPE_CHECKING:
    from aggregator.web.server import RunningWeb

log = structlog.get_logger()

MAX_ANSWER = 4 << 20
EXPIRY_EVERY_S = 3600.0
UPLOAD_WINDOW = 4 << 10

OPTIONS = (
    ("grpc.max_send_message_length", MAX_ANSWER),
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server that takes half of the calls
    ("grpc.max_concurrent_streams", 256),
    ("grpc.keepalive_time_ms", 60_000),  # find out that a site's network is gone, and let its calls go
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    # A stream whose message nobody reads yet holds this much; the window opens to the whole message when it is read. So an
    # upload that waits for its turn costs kilobytes, a cut loses little beside the chunk under way,
    # and a chunk costs one round trip.
    ("grpc.http2.lookahead_bytes", UPLOAD_WINDOW),
    ("grpc.http2.bdp_probe", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How to serve. `tls` None means plain text, which only a loopback address may have. Times in seconds."""

    listen: str
    tls: TlsFiles | None
    http: str = ""
    """Where the status page, metrics and probes are served, host:port; nowhere if empty."""
    traces: str = ""
    """URL of an OpenTelemetry collector that gets a span of every call; none if empty."""
    grace_s: float = 5.0
    limits: ServiceLimits = field(default_factory=ServiceLimits)

    def __post_init__(self) -> None:
        _check_address("listen", self.listen)
        if self.tls is None:
            check_plain(self.listen)
        if self.http:
            _check_address("http", self.http)
            if self.tls is None and not self.http_is_local:
                raise InputError(
                    f"the status page at '{self.http}' can be reached from elsewhere, and --plain has no certificates to tell "
                    "people apart by; give TLS files, or serve it on loopback: --http 127.0.0.1:8080"
                )

    @property
    def http_is_local(self) -> bool:
        """Whether the HTTP side is for this machine alone; then it is plain and open, else it has TLS."""
        return is_loopback(self.http.rpartition(":")[0])


def _check_address(option: str, address: str) -> None:
    port = address.rpartition(":")[2]
    if ":" not in address or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise InputError(f"{option} must be host:port with a port of 0 to 65535, got '{address}'")


@dataclass
class RunningServer:
    """A started server. `address` is host:port with the real port. `beside`: tasks that end with it."""

    server: grpc.aio.Server
    federation: Federation
    address: str
    closer: asyncio.Task[None]
    watch: Watch
    refusals: Refusals
    health: Health
    beside: tuple[asyncio.Task[None], ...]
    traces: Traces | None = None
    web: "RunningWeb | None" = None

    async def stop(self, grace_s: float) -> None:
        """Answer what waits, let calls under way end, then stop. A round left closing is finished at the next start."""
        self.federation.drain()
        self.health.tell()
        await self.server.stop(grace_s)
        if self.web is not None:
            await self.web.stop()
        for task in self.beside:
            task.cancel()
        await asyncio.gather(self.closer, *self.beside, return_exceptions=True)
        self.health.close()
        await self.refusals.close()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)
        await asyncio.to_thread(self.watch.close)


async def start(store: Store, config: ServerConfig) -> RunningServer:
    """Start serving the store's federation. Raises CannotBind if a port is taken."""
    federation = Federation(store, store.read(federations.only_name), config.limits)
    refusals = Refusals(federation)
    calls = Calls(lambda: federation.last_state, federation.clock)
    traces = Traces(config.traces, federation.name) if config.traces else None
    listeners = [calls.note] if traces is None else [calls.note, traces.note]

    def finished(record: rpc.CallRecord, code: str, error: str, duration_s: float) -> None:
        for listener in listeners:
            listener(record, code, error, duration_s)

    most_bytes = wire.most_bytes(federation.contract)
    interceptor = rpc.ServerCalls(identity.describe, refusals.note, most_bytes, finished)
    options = [*OPTIONS, ("grpc.max_receive_message_length", max(most_bytes.values()))]
    server = grpc.aio.server(interceptors=[interceptor], options=options)
    federation_pb2_grpc.add_FederationServiceServicer_to_server(FederationServicer(federation), server)
    coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(CoordinatorServicer(federation), server)
    credentials = config.tls.server_credentials() if config.tls else None
    try:
        if credentials is not None:
            port = server.add_secure_port(config.listen, credentials)
        else:
            port = server.add_insecure_port(config.listen)
    except RuntimeError as error:
        raise _reason(config) from error
    store.reserve()
    watch = federation.watch()
    closer = asyncio.create_task(Closer(federation).run(), name="closer")
    health = Health(federation, closer)
    HealthServicer(health).add_to(server)
    await health.ask()
    await server.start()
    beside = (
        asyncio.create_task(_tell_expiry(federation, config.tls), name="expiry"),
        asyncio.create_task(health.run(), name="health"),
    )
    address = f"{config.listen.rpartition(':')[0]}:{port}"
    running = RunningServer(server, federation, address, closer, watch, refusals, health, beside, traces)
    if config.http:
        try:
            running.web = await _start_web(running, calls, config)
        except MedDualLoRAError:
            await running.stop(0.0)
            raise
    return running


async def _start_web(running: RunningServer, calls: Calls, config: ServerConfig) -> "RunningWeb":
    from aggregator.facts.current import CurrentFacts
    from aggregator.web import server as web
    from aggregator.web.metrics import Metrics

    current = CurrentFacts(running.federation, calls)
    pages = web.Pages(
        federation=running.federation,
        health=running.health,
        current=current,
        metrics=Metrics(calls, current, running.health, config.tls),
        encrypted=not config.http_is_local,
    )
    return await web.start(pages, config.http, None if config.http_is_local else config.tls)


async def _tell_expiry(federation: Federation, tls: TlsFiles | None) -> None:
    """Warn of certificates that end soon: this server's own, the CA's, and those that sites showed last."""
    expiry = Expiry()
    while True:
        ends: dict[str, float] = {}
        try:
            if tls is not None:
                ends["aggregator"] = certificates.holder_in(tls.certificate).expires_at
                ends["CA"] = certificates.holder_in(tls.ca).expires_at
            ends |= {
                name: site.expires_at for name, site in (await federation.state()).sites.items() if site.expires_at
            }
        except MedDualLoRAError as error:
            log.warning("certificates_not_read", error=str(error))
        for who, expires_at in ends.items():
            if words := expiry.news(who, expires_at, federation.clock()):
                log.warning("certificate_expires", holder=who, expires_at=expires_at, words=words)
        await asyncio.sleep(EXPIRY_EVERY_S)


def _reason(config: ServerConfig) -> MedDualLoRAError:
    """Return why gRPC would not listen, which it does not say: the address, or else the certificates."""
    host, _, port = config.listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), int(port)))
    except OSError as error:
        return CannotBind.because(error, config.listen, "--listen")
    if config.tls is None:
        return CannotBind(f"cannot listen on {config.listen}; choose another address with --listen")
    try:
        config.tls.check_pair()
    except InputError as error:
        return InputError(
            f"{error}; give the two files that aggregator certificates wrote together, or make a new pair: "
            f"aggregator certificates --out {config.tls.certificate.parent} --renew"
        )
    return InputError(f"the TLS files cannot be used together: {config.tls}; make them with: aggregator certificates")


async def run(
    store: Store, config: ServerConfig, ready: Callable[[RunningServer, rounds.FederationState], None]
) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called once with the started server and the state."""
    running = await start(store, config)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    state = await running.federation.state()
    log.info(
        "serving",
        address=running.address,
        federation=state.name,
        round=state.round.number,
        phase=state.phase,
        tls=config.tls is not None,
    )
    if running.web is not None:
        log.info("page_served", address=running.web.url)
    ready(running, state)
    waiter = asyncio.create_task(stopping.wait())
    await asyncio.wait({waiter, running.closer}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    log.info("stopping", signal=stopping.is_set())
    failure = running.closer.exception() if running.closer.done() else None
    await running.stop(config.grace_s)
    log.info("stopped")
    if failure is not None:
        raise failure

"""The serving process: one port, one federation, one store. On PostgreSQL any number of them, and none is special."""

import asyncio
import errno
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
import structlog
from med_duallora.v1 import coordinator_pb2_grpc, federation_pb2_grpc

from aggregator import identity, rounds, wire
from aggregator.closing import Closer
from aggregator.errors import CannotBind
from aggregator.federation import Federation, ServiceLimits
from aggregator.refusals import Refusals
from aggregator.servicers import CoordinatorServicer, FederationServicer
from aggregator.store import federations
from aggregator.store.database import Watch
from aggregator.store.engine import Store
from shared import certificates, rpc
from shared.certificates import Expiry
from shared.errors import InputError, MedDualLoRAError
from shared.tls import TlsFiles, check_plain

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
    grace_s: float = 5.0
    limits: ServiceLimits = field(default_factory=ServiceLimits)

    def __post_init__(self) -> None:
        port = self.listen.rpartition(":")[2]
        if ":" not in self.listen or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
            raise InputError(f"listen must be host:port with a port of 0 to 65535, got '{self.listen}'")
        if self.tls is None:
            check_plain(self.listen)


@dataclass
class RunningServer:
    """A started server. `address` is host:port with the real port."""

    server: grpc.aio.Server
    federation: Federation
    address: str
    closer: asyncio.Task[None]
    watch: Watch
    refusals: Refusals
    expiry: asyncio.Task[None]

    async def stop(self, grace_s: float) -> None:
        """Answer what waits, let calls under way end, then stop. A round left closing is finished at the next start."""
        self.federation.drain()
        await self.server.stop(grace_s)
        self.expiry.cancel()
        await asyncio.gather(self.closer, self.expiry, return_exceptions=True)
        await self.refusals.close()
        await asyncio.to_thread(self.watch.close)


async def start(store: Store, config: ServerConfig) -> RunningServer:
    """Start serving the store's federation. Raises CannotBind if the port is taken."""
    federation = Federation(store, store.read(federations.only_name), config.limits)
    refusals = Refusals(federation)
    most_bytes = wire.most_bytes(federation.contract)
    calls = rpc.ServerCalls(identity.describe, refusals.note, most_bytes)
    options = [*OPTIONS, ("grpc.max_receive_message_length", max(most_bytes.values()))]
    server = grpc.aio.server(interceptors=[calls], options=options)
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
    await server.start()
    closer = asyncio.create_task(Closer(federation).run(), name="closer")
    expiry = asyncio.create_task(_tell_expiry(federation, config.tls), name="expiry")
    address = f"{config.listen.rpartition(':')[0]}:{port}"
    return RunningServer(server, federation, address, closer, watch, refusals, expiry)


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
        return CannotBind(
            f"cannot listen on {config.listen}: {'the port is in use' if error.errno == errno.EADDRINUSE else error.strerror}; "
            "stop the other process, or choose another address with --listen"
        )
    return InputError(f"the TLS files cannot be used together: {config.tls}; make them with: aggregator certificates")


async def run(store: Store, config: ServerConfig, ready: Callable[[str, rounds.FederationState], None]) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is called once with the bound address and the state."""
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
    ready(running.address, state)
    waiter = asyncio.create_task(stopping.wait())
    await asyncio.wait({waiter, running.closer}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    log.info("stopping", signal=stopping.is_set())
    failure = running.closer.exception() if running.closer.done() else None
    await running.stop(config.grace_s)
    log.info("stopped")
    if failure is not None:
        raise failure

"""Options that several commands share: TLS files, and calls to a serving aggregator."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from shared.tls import TlsFiles

T = TypeVar("T")
TIMEOUT_S = 10.0
MAX_PORT = 65535


def tls_files(
    ca: Path | None, certificate: Path | None, key: Path | None, plain: bool, *, person: str = ""
) -> "TlsFiles | None":
    """Return the files, or None for plain text. Raises InputError unless exactly one of the two was asked for.

    `person`: coordinator or observer, if the certificate must be one of such, which the message then says.
    """
    from shared.errors import InputError
    from shared.tls import TlsFiles

    given = {"--tls-ca": ca, "--tls-cert": certificate, "--tls-key": key}
    if plain:
        if any(given.values()):
            raise InputError("--plain and TLS files exclude each other; give one of them")
        return None
    absent = [name for name, path in given.items() if path is None]
    if absent or ca is None or certificate is None or key is None:
        files = "the three TLS files (make them with: aggregator certificates)"
        if person:
            article = "an" if person == "observer" else "a"
            files += f" with {article} {person}'s certificate (aggregator certificates --{person} NAME)"
        raise InputError(f"{', '.join(absent)} missing: give {files}, or --plain on a loopback address")
    return TlsFiles(ca, certificate, key)


def call(address: str, tls: "TlsFiles | None", method: Callable[[Any], Awaitable[T]]) -> T:
    """Call the coordinator service at `address` and return the answer. Says first if the person's certificate or the CA ends soon.

    Raises AggregatorUnreachable if nobody answers, or the error the aggregator raised.
    """
    import asyncio

    from shared.errors import InputError

    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and 1 <= int(port) <= MAX_PORT):
        raise InputError(f"--aggregator must be host:port with a port of 1 to {MAX_PORT}, got '{address}'")
    if tls is not None:
        _say_expiry(tls)
    return asyncio.run(_call(address, tls, method))


def _say_expiry(tls: "TlsFiles") -> None:
    import time

    import typer

    from shared.certificates import expiry_words, holder_in

    for path, next_step in (
        (tls.certificate, "ask whoever runs the aggregator for a new one"),
        (tls.ca, "a new CA must come before"),
    ):
        if words := expiry_words(holder_in(path).expires_at, time.time()):
            typer.echo(f"warning: {path} {words}; {next_step}", err=True)


async def _call(address: str, tls: "TlsFiles | None", method: Callable[[Any], Awaitable[T]]) -> T:
    import grpc
    from med_duallora.v1.coordinator_pb2_grpc import CoordinatorServiceStub

    from shared import status
    from shared.errors import AggregatorUnreachable, MedDualLoRAError
    from shared.tls import NO_PROXY, check_plain

    if tls is None:
        check_plain(address)
        channel = grpc.aio.insecure_channel(address, options=[NO_PROXY])
    else:
        channel = grpc.aio.secure_channel(address, tls.channel_credentials())
    async with channel:
        try:
            return await method(CoordinatorServiceStub(channel))
        except grpc.aio.AioRpcError as error:
            known = status.error_of(error)
            if known is not None:
                raise known from error
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                advice = "check the address, and that aggregator serve runs there"
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    advice += " with these TLS files" if tls else " with --plain: most take TLS only"
                raise AggregatorUnreachable(
                    f"no answer from {address} ({error.code().name}: {error.details()}); {advice}"
                ) from error
            raise MedDualLoRAError(f"{address} answered {error.code().name}: {error.details()}") from error

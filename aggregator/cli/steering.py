"""`aggregator pause | resume | evict | rollback`: over gRPC, so that waiting sites hear of it at once."""

from pathlib import Path
from typing import Annotated

import typer

from aggregator.cli import endpoint

Address = Annotated[str, typer.Option("--aggregator", help="host:port of the serving aggregator.")]
Ca = Annotated[Path | None, typer.Option("--tls-ca", help="CA of the federation.")]
Certificate = Annotated[Path | None, typer.Option("--tls-cert", help="A coordinator's certificate.")]
Key = Annotated[Path | None, typer.Option("--tls-key", help="Its key.")]
Plain = Annotated[bool, typer.Option("--plain", help="No TLS; loopback addresses only.")]
Reason = Annotated[str, typer.Option(help="Recorded, and shown to the sites.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (pause, resume, evict, rollback):
        app.command()(command)


def pause(
    aggregator: Address,
    reason: Reason = "",
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    plain: Plain = False,
) -> None:
    """Open no further round and let no running one close, until resumed.

    Example: aggregator pause --aggregator host:50051 --reason maintenance --tls-ca ca.pem --tls-cert anna.pem --tls-key
    anna.key
    """
    from med_duallora.v1 import coordinator_pb2 as pb

    tls = endpoint.tls_files(tls_ca, tls_cert, tls_key, plain, coordinator=True)
    endpoint.call(aggregator, tls, lambda stub: stub.Pause(pb.PauseRequest(reason=reason), timeout=endpoint.TIMEOUT_S))
    typer.echo("paused; go on with: aggregator resume")


def resume(
    aggregator: Address,
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    plain: Plain = False,
) -> None:
    """Go on after a pause; the open round's deadline moves by the length of the pause.

    Example: aggregator resume --aggregator host:50051 --tls-ca ca.pem --tls-cert anna.pem --tls-key anna.key
    """
    from med_duallora.v1 import coordinator_pb2 as pb

    tls = endpoint.tls_files(tls_ca, tls_cert, tls_key, plain, coordinator=True)
    endpoint.call(aggregator, tls, lambda stub: stub.Resume(pb.ResumeRequest(), timeout=endpoint.TIMEOUT_S))
    typer.echo("running again")


def evict(
    site: Annotated[str, typer.Argument(help="The site.")],
    aggregator: Address,
    reason: Reason = "",
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    plain: Plain = False,
) -> None:
    """Take a site out for good; its updates in closed rounds stay.

    Example: aggregator evict ge --aggregator host:50051 --reason "left the study" --tls-ca ca.pem --tls-cert anna.pem
    --tls-key anna.key
    """
    from med_duallora.v1 import coordinator_pb2 as pb

    tls = endpoint.tls_files(tls_ca, tls_cert, tls_key, plain, coordinator=True)
    request = pb.EvictRequest(site=site, reason=reason)
    endpoint.call(aggregator, tls, lambda stub: stub.Evict(request, timeout=endpoint.TIMEOUT_S))
    typer.echo(f"{site} is evicted")


def rollback(
    version: Annotated[int, typer.Argument(help="Version the next round starts from.", min=0)],
    aggregator: Address,
    reason: Reason = "",
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    plain: Plain = False,
) -> None:
    """Make an earlier version the current one; the open round is abandoned and the next starts from there.

    Example: aggregator rollback 3 --aggregator host:50051 --reason "version 4 diverged" --tls-ca ca.pem --tls-cert anna.pem
    --tls-key anna.key
    """
    from med_duallora.v1 import coordinator_pb2 as pb

    tls = endpoint.tls_files(tls_ca, tls_cert, tls_key, plain, coordinator=True)
    request = pb.RollbackRequest(version=version, reason=reason)
    endpoint.call(aggregator, tls, lambda stub: stub.Rollback(request, timeout=endpoint.TIMEOUT_S))
    typer.echo(f"version {version} is the current one")

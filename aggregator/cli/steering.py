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


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (pause, resume, evict, rollback):
        app.command()(command)


def pause(
    aggregator: Address,
    reason: Annotated[str, typer.Option(help="Recorded, and shown to the sites.")] = "",
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    plain: Plain = False,
) -> None:
    """Ask no site to train and let no open round close, until resumed; one that is being closed is finished.

    Example: aggregator pause --aggregator host:50051 --reason maintenance --tls-ca ca.pem --tls-cert anna.pem --tls-key
    anna.key
    """
    from med_duallora.v1 import coordinator_pb2 as pb

    tls = endpoint.tls_files(tls_ca, tls_cert, tls_key, plain, person="coordinator")
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

    tls = endpoint.tls_files(tls_ca, tls_cert, tls_key, plain, person="coordinator")
    endpoint.call(aggregator, tls, lambda stub: stub.Resume(pb.ResumeRequest(), timeout=endpoint.TIMEOUT_S))
    typer.echo("running again")


def evict(
    site: Annotated[str, typer.Argument(help="The site.")],
    aggregator: Address,
    reason: Annotated[str, typer.Option(help="Recorded, and shown to the site.")] = "",
    allow_quorum: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2,
            help="Go on even if rounds will need only 2 updates, or 1. Default: only if the sites agreed to it.",
        ),
    ] = None,
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    plain: Plain = False,
) -> None:
    """Take a site out for good; its updates in closed rounds stay.

    Refused if rounds would then need fewer updates than 3 and than the sites agreed to: --allow-quorum says that it is meant.

    Example: aggregator evict ge --aggregator host:50051 --reason "left the study" --tls-ca ca.pem --tls-cert anna.pem
    --tls-key anna.key
    """
    from med_duallora.v1 import coordinator_pb2 as pb

    tls = endpoint.tls_files(tls_ca, tls_cert, tls_key, plain, person="coordinator")
    request = pb.EvictRequest(site=site, reason=reason, allow_quorum=allow_quorum or 0)
    answer = endpoint.call(aggregator, tls, lambda stub: stub.Evict(request, timeout=endpoint.TIMEOUT_S))
    if answer.warning:
        typer.echo(f"warning: {answer.warning}", err=True)
    typer.echo(f"{site} is evicted")


def rollback(
    version: Annotated[int, typer.Argument(help="Version the next round starts from.", min=0)],
    aggregator: Address,
    reason: Annotated[str, typer.Option(help="Written to the aggregator's log.")] = "",
    round_: Annotated[
        int | None,
        typer.Option(
            "--round",
            min=1,
            help="The round to give up, though a rollback to this version began it, or though it is being closed and cannot be.",
        ),
    ] = None,
    tls_ca: Ca = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    plain: Plain = False,
) -> None:
    """Make an earlier version the current one; the open round is abandoned and the next starts from there.

    Repeating it changes nothing while that round is open, unless --round names it.

    Example: aggregator rollback 3 --aggregator host:50051 --reason "version 4 diverged" --tls-ca ca.pem --tls-cert anna.pem
    --tls-key anna.key
    """
    from med_duallora.v1 import coordinator_pb2 as pb

    tls = endpoint.tls_files(tls_ca, tls_cert, tls_key, plain, person="coordinator")
    request = pb.RollbackRequest(version=version, reason=reason, round=round_ or 0)
    done = endpoint.call(aggregator, tls, lambda stub: stub.Rollback(request, timeout=endpoint.TIMEOUT_S))
    given_up = f"round {done.abandoned_round} is abandoned" if done.abandoned_round else "no round is abandoned"
    typer.echo(f"version {version} is the current one; {given_up}, the last one is round {done.round}")

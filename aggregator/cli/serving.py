"""`aggregator serve`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aggregator.cli.output import moment

if TYPE_CHECKING:
    from aggregator import rounds
    from aggregator.server import RunningServer, ServerConfig


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="serve")(serve)


def serve(
    store: Annotated[
        str, typer.Option(help="The store: a path, or postgresql://user@host/database for any number of replicas.")
    ],
    listen: Annotated[str, typer.Option(help="host:port; port 0 takes a free one.")] = "127.0.0.1:50051",
    tls_ca: Annotated[Path | None, typer.Option(help="CA that signed the sites' certificates.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="This server's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="No TLS; loopback addresses only.")] = False,
    http: Annotated[
        str,
        typer.Option(
            help="host:port of status page, /metrics, /healthz and /readyz; off unless given. On loopback plain and open, "
            "elsewhere HTTPS for people with an observer's or coordinator's certificate."
        ),
    ] = "",
    traces: Annotated[
        str, typer.Option(help="URL of an OpenTelemetry collector (OTLP over gRPC) that gets a span of every call.")
    ] = "",
    log: Annotated[Path | None, typer.Option(help="Append events to this file, one JSON line each.")] = None,
    grace_s: Annotated[float, typer.Option(help="Seconds calls under way get when stopping.")] = 5.0,
    identity_s: Annotated[
        float, typer.Option(help="Seconds of silence after which another agent may use a site's certificate.")
    ] = 60.0,
    uploads: Annotated[
        int, typer.Option(min=1, help="Uploads taken in at the same time, and as many downloads; others wait.")
    ] = 64,
    keep_rounds: Annotated[
        int,
        typer.Option(min=0, help="Rounds whose updates keep their bytes, so that verify can recompute them. 0: all."),
    ] = 0,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings as TOML, passwords hidden, and end.")
    ] = False,
) -> None:
    """Serve a federation until SIGTERM or Ctrl-C. With a PostgreSQL store start as many as you like.

    Example: aggregator serve --store fed.db --listen 0.0.0.0:50051 --tls-ca certs/ca.pem --tls-cert certs/aggregator.pem
    --tls-key certs/aggregator.key --http 127.0.0.1:8080 --log aggregator.jsonl
    """
    import asyncio
    import sys

    from aggregator import server
    from aggregator.cli.endpoint import tls_files
    from aggregator.federation import ServiceLimits
    from aggregator.store import engine, federations
    from shared import logs, memory
    from shared.errors import InputError

    config = server.ServerConfig(
        listen=listen,
        tls=tls_files(tls_ca, tls_cert, tls_key, plain),
        http=http,
        traces=traces,
        grace_s=grace_s,
        limits=ServiceLimits(identity_s=identity_s, concurrent_uploads=uploads, keep_rounds=keep_rounds),
    )
    if print_config:
        typer.echo(_shown(engine.place_of(store), config, log), nl=False)
        return
    opened = engine.open_store(store)
    screen = sys.stderr.isatty() or log is not None  # otherwise stderr is a log of JSON lines
    try:
        with engine.damage_named(opened):  # read once what serving needs, so that a damaged store is never served
            name = opened.read(federations.only_name)
            opened.read(federations.contract, name)
            opened.read(federations.state, name)
        try:
            logs.configure(log)
        except OSError as error:
            raise InputError(f"cannot append events to {log}: {error.strerror}; choose another --log") from error
        memory.keep_what_is_freed()
        asyncio.run(server.run(opened, config, lambda running, state: _announce(running, state, screen)))
    finally:
        opened.close()


def _shown(place: str, config: "ServerConfig", log: Path | None) -> str:
    """Return what would be served, where and within which limits; what stands before the @ of a URL is hidden."""
    import re
    from dataclasses import asdict

    from shared import toml_text

    values = {"store": place, "log": log, **asdict(config), "traces": re.sub(r"//[^/@]*@", "//***@", config.traces)}
    return toml_text.written({name: value for name, value in values.items() if value not in (None, "")})


def _announce(running: "RunningServer", state: "rounds.FederationState", screen: bool) -> None:
    if screen:
        typer.echo(
            f"aggregator: averages the global adapters of federation '{state.name}'\n"
            f"serves: {', '.join(state.sites)} ({state.policy.quorum} of {state.policy.invited} needed a round)\n"
            "sees: changes of the global adapter and aggregate metrics. Never: images, local adapters, per-case values",
            err=True,
        )
    if screen and state.phase != "finished":
        deadline, within = state.round.deadline_at, f"{state.policy.deadline_s:g} s"
        until = f"until {moment(deadline)}, then for" if deadline else f"for {within} from the first join on, then for"
        typer.echo(
            f"until: {state.policy.rounds} rounds are closed; this one waits {until} whoever the quorum lacks", err=True
        )
    where = f"round {state.round.number} of {state.policy.rounds}" if state.phase != "finished" else "finished"
    typer.echo(f"aggregator listening on {running.address} (federation {state.name}, {where})")
    if running.web is not None:
        typer.echo(f"status page at {running.web.url}")

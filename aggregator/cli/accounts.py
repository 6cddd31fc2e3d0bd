"""`aggregator comm-cost`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from aggregator.cli.output import print_json, print_table

MAX_LISTED = 10


class Grouping(StrEnum):
    """What rows are made of."""

    site = "site"
    round = "round"
    purpose = "purpose"
    method = "method"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="comm-cost")(comm_cost)


def comm_cost(
    logs: Annotated[
        list[Path], typer.Argument(help="Log files (JSON lines) of the aggregator, of agents, or of both.")
    ],
    by: Annotated[
        Grouping | None, typer.Option(help="One row per value. Default: site, round, direction, purpose.")
    ] = None,
    full_model_bytes: Annotated[
        int | None, typer.Option(min=1, help="Compare with sending a model of this size every round.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    csv_: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
) -> None:
    """What a run cost in bytes, from its logs; with logs of both sides, their accounts are compared call by call.

    Exit code 1 if a call that ended well on both sides has different bytes in the two logs.

    Example: aggregator comm-cost aggregator.jsonl sites/*/agent.jsonl --by purpose --full-model-bytes 358000000
    """
    from aggregator import comm_cost as accounts
    from shared.errors import InputError

    log = accounts.Log()
    for path in logs:
        try:
            with path.open(encoding="utf-8", errors="replace") as lines:
                accounts.read(log, lines, path.name)
        except OSError as error:
            raise InputError(f"cannot read log {path}: {error.strerror}") from error
    if not log.calls:
        raise InputError(
            f"no rpc_finished events in {', '.join(map(str, logs))}; give logs written by aggregator serve --log or site-agent"
        )
    report = accounts.report(log, by.value if by else None, full_model_bytes)
    if json_:
        print_json(report)
    elif csv_:
        _print_csv(report["rows"])
    else:
        _print_text(report)
    if report["reconciliation"] and report["reconciliation"]["differing"]:
        raise typer.Exit(1)


def _print_csv(rows: list[dict[str, Any]]) -> None:
    import csv
    import sys

    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _print_text(report: dict[str, Any]) -> None:
    rows = report["rows"]
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    total, wire = report["total"], report["wire_model"]
    typer.echo(
        f"\n{total['calls']:,} calls ({report['retried_calls']} retries): {total['bytes_up']:,} bytes up, "
        f"{total['bytes_down']:,} down; tensors {total['payload_bytes_up']:,} up, {total['payload_bytes_down']:,} down\n"
        f"on the wire, modelled {'with' if wire['tls'] else 'without'} TLS and {wire['connections_at_least']} connections: "
        f"{wire['wire_up']:,} up, {wire['wire_down']:,} down\nnot accounted for: {wire['unaccounted']}"
    )
    if full := report["full_model"]:
        typer.echo(
            f"full fine-tuning would send {full['full_model_bytes_each_way']:,} bytes each way for {full['updates']} updates: "
            f"{full['reduction_up'] or 0:,.0f} times more up, {full['reduction_down'] or 0:,.0f} times more down"
        )
    if both := report["reconciliation"]:
        typer.echo(f"both sides: {both['agreed']} of {both['compared']} calls that ended well agree to the byte")
        _list("differ", both["differing"])
        _list("ended badly on a side, not compared", both["ended_badly"])
        _list("in one side's log only", both["one_sided"])
        _list("sites without an agent's log", both["sites_without_agent_log"])
    _list("malformed lines, passed over", report["malformed_lines"])


def _list(title: str, lines: list[str]) -> None:
    if lines:
        more = f"\n  and {len(lines) - MAX_LISTED} more (--json has all)" if len(lines) > MAX_LISTED else ""
        typer.echo(f"{title} ({len(lines)}):\n  " + "\n  ".join(lines[:MAX_LISTED]) + more)

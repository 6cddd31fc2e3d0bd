"""`aggregator comm-cost`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aggregator.cli.output import print_json, print_table

if TYPE_CHECKING:
    from aggregator.accounts.comparison import Baseline
    from aggregator.accounts.logs import Log

MAX_LISTED = 10
COUNTED = ("bytes", "payload_bytes")


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
    by: Annotated[Grouping | None, typer.Option(help="Print a row per value instead of the summary.")] = None,
    all_: Annotated[
        bool,
        typer.Option("--all", help="Print every row: site, round, direction, purpose. --json and --csv always do."),
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(help="The federation's adapter file: compare with other methods, computed from its shapes."),
    ] = None,
    full_model_bytes: Annotated[
        int | None, typer.Option(min=1, help="Compare with sending a model of this size every round.")
    ] = None,
    base_blocks: Annotated[
        int | None, typer.Option(min=1, help="Blocks of the base model, if the adapter file does not say.")
    ] = None,
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--plain", help="Model the wire with TLS or without. Default: as the aggregator's log says."
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    csv_: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Print a page with everything, without anything to load.")
    ] = False,
) -> None:
    """What a run cost in bytes, from its logs; with logs of both sides, their accounts are compared call by call.

    It prints a summary: what each site sent and received, in all and in a round (median), each kind of call, and what goes beside.
    Exit code 1 if a call that ended well on both sides has different bytes in the two logs.

    Example: aggregator comm-cost aggregator.jsonl sites/*/agent.jsonl --by purpose --full-model-bytes 358000000

    Example: aggregator comm-cost aggregator.jsonl sites/*/agent.jsonl --compare v0.safetensors --html > cost.html

    Example: aggregator comm-cost agent.jsonl --plain --compare old.safetensors --full-model-bytes 358000000 --base-blocks 12
    """
    from aggregator.accounts.report import report as report_of

    if all_ and by:
        raise typer.BadParameter("--all and --by are two ways to make rows; choose one")
    if json_ + csv_ + html > 1:
        raise typer.BadParameter("--json, --csv and --html are three ways to print the same; choose one")
    log = read_logs(logs)
    report = report_of(
        log,
        by=by.value if by else None,
        full_model_bytes=full_model_bytes,
        baseline=_baseline(compare, full_model_bytes, base_blocks),
        tls=tls,
    )
    if json_:
        print_json(report)
    elif csv_:
        _print_csv(report["rows"])
    elif html:
        from aggregator.accounts.page import page

        typer.echo(page(report), nl=False)
    else:
        _print_text(report, rows=all_ or by is not None)
    if report["reconciliation"] and report["reconciliation"]["differing"]:
        raise typer.Exit(1)


def read_logs(logs: list[Path]) -> "Log":
    """Return the calls in some log files. Raises InputError if there are none."""
    from aggregator.accounts.logs import Log, read
    from shared.errors import InputError

    log = Log()
    for path in logs:
        try:
            with path.open(encoding="utf-8", errors="replace") as lines:
                read(log, lines, path.name)
        except OSError as error:
            raise InputError(f"cannot read log {path}: {error.strerror}") from error
    if not log.calls:
        raise InputError(
            f"no rpc_finished events in {', '.join(map(str, logs))}; give logs written by aggregator serve --log or site-agent"
        )
    return log


def _baseline(compare: Path | None, full_model_bytes: int | None, base_blocks: int | None) -> "Baseline | None":
    if compare is None:
        if base_blocks is not None:
            raise typer.BadParameter("--base-blocks goes with --compare: name the federation's adapter file there")
        return None
    from aggregator.accounts.comparison import Baseline
    from shared.adapter import Adapter

    return Baseline.of(Adapter.read(compare), full_model_bytes, base_blocks)


def _print_csv(rows: list[dict[str, Any]]) -> None:
    import csv
    import sys

    if not rows:
        return
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _print_text(report: dict[str, Any], rows: bool) -> None:
    """Print the rows, or the summary in their place, and what goes for the whole run."""
    if not rows:
        _print_summary(report)
    elif found := report["rows"]:
        print_table(list(found[0]), [list(row.values()) for row in found])
    total, wire = report["total"], report["wire_model"]
    connections = f"{'' if wire['connections_counted'] else 'at least '}{wire['connections']} connections"
    assumed = "" if wire["tls_known"] else " (assumed: no log says; --plain if there was none)"
    typer.echo(
        f"\n{total['calls']:,} calls ({report['retried_calls']} retries): {total['bytes_up']:,} bytes up, "
        f"{total['bytes_down']:,} down; tensors {total['payload_bytes_up']:,} up, {total['payload_bytes_down']:,} down\n"
        f"goodput {total['goodput_bytes_up']:,} up, {total['goodput_bytes_down']:,} down; "
        f"repeated or in vain {total['repeated_bytes_up']:,} up, {total['repeated_bytes_down']:,} down\n"
        f"on the wire, modelled {'with' if wire['tls'] else 'without'} TLS{assumed} and {connections}: "
        f"{wire['wire_up']:,} up, {wire['wire_down']:,} down\n"
        f"bound: {wire['bound']}\nnot in it: {wire['unaccounted']}"
    )
    if probes := report["probes"]:
        from aggregator.accounts.tables import probed

        typer.echo(probed(probes))
    if compared := report["comparison"]:
        typer.echo("\nbeside other methods, bytes for one site and round; computed: float32 tensors, from shapes alone")
        print_table(list(compared[0]), [list(row.values()) for row in compared])
        typer.echo()
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


def _print_summary(report: dict[str, Any]) -> None:
    """Print how much went between each site and the aggregator, in bytes, and in which calls; most bytes first."""
    print_table(
        ["site", "calls", "bytes up", "bytes down", "a round up", "a round down"],
        [_site(row["site"], row) for row in report["by_site"]]
        + [_site("all", {**report["total"], "a_round": report["a_round"]})],
    )
    typer.echo()
    print_table(
        ["call", "calls", "bytes up", "bytes down", "tensors up", "tensors down"],
        [
            [
                row[name]
                for name in ("method", "calls", *(f"{what}_{way}" for what in COUNTED for way in ("up", "down")))
            ]
            for row in sorted(report["by_method"], key=lambda row: -row["bytes_up"] - row["bytes_down"])
        ],
    )
    hint = "" if report["full_model"] else "; beside sending a whole model: --full-model-bytes N"
    typer.echo(f"\na round: median over a site's rounds. Every row: --all, as CSV: --csv{hint}")


def _site(name: str, row: dict[str, Any]) -> list[Any]:
    in_round = row["a_round"] or {}
    return [
        name or "(not named)",
        row["calls"],
        row["bytes_up"],
        row["bytes_down"],
        in_round.get("bytes_up"),
        in_round.get("bytes_down"),
    ]


def _list(title: str, lines: list[str]) -> None:
    if lines:
        more = f"\n  and {len(lines) - MAX_LISTED} more (--json has all)" if len(lines) > MAX_LISTED else ""
        typer.echo(f"{title} ({len(lines)}):\n  " + "\n  ".join(lines[:MAX_LISTED]) + more)

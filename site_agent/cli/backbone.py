"""`site-agent verify-backbone`: our network against recorded numbers of the original."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from site_agent.models.comparison import Check

EXIT_OUT_OF_TOLERANCE = 1
WIDTH_WHEN_PIPED = 200


def register(app: typer.Typer) -> None:
    """Add this module's commands to `app`."""
    app.command("verify-backbone")(verify_backbone)


def verify_backbone(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of reference vectors, or of several such folders.")
    ],
    real: Annotated[
        Path | None, typer.Option(help="Folder with the real volumes that io_real.safetensors refers to.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every compared tensor as JSON.")] = False,
) -> None:
    """Compare the network's logits, features, gradients and loading rules with recorded ones.

    Prints the largest deviation of each check. Exit code 0: all within tolerance; 1: not, or something recorded is not
    known here, and the first such tensor is named; 3: the folder cannot be used.

    Example: site-agent verify-backbone golden/cinema/mini --json
    """
    from site_agent.models import golden

    checks = list(golden.verify(folder, real))
    failures = [check for check in checks if not check.passed]
    if as_json:
        typer.echo(json.dumps(_as_json(checks, failures), indent=1))
    else:
        # Piped output has no width of its own; tensor names are only useful whole.
        width = None if sys.stdout.isatty() else WIDTH_WHEN_PIPED
        Console(width=width).print(_table(checks))
    if failures:
        typer.echo(f"out of tolerance: {_sentence(failures[0])}", err=True)
        raise typer.Exit(EXIT_OUT_OF_TOLERANCE)


def _table(checks: "list[Check]") -> Table:
    """One row per file and kind of check, with its worst tensor."""
    table = Table(title=f"{sum(check.tolerance is not None for check in checks)} recorded values compared")
    for column in ("file", "check", "values", "largest deviation", "in", "allowed", ""):
        table.add_column(
            column, justify="right" if column in ("values", "largest deviation") else "left", overflow="fold"
        )
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.where, check.kind, str(check.tolerance or "-")), []).append(check)
    for (where, kind, allowed), group in groups.items():
        worst = max(group, key=lambda check: (not check.passed, check.deviation))
        compared = worst.tolerance is not None
        table.add_row(
            where,
            kind,
            str(len(group)),
            f"{worst.deviation:.1e}" if compared else "-",
            worst.tensor,
            allowed,
            ("ok" if worst.passed else "FAIL") if compared else "unknown name",
        )
    return table


def _as_json(checks: "list[Check]", failures: "list[Check]") -> dict[str, Any]:
    return {
        "passed": not failures,
        "first_failure": _row(failures[0]) if failures else None,
        "checks": [_row(check) for check in checks if check.tolerance is not None],
        "not_compared": [f"{check.where}: {check.tensor}" for check in checks if check.tolerance is None],
    }


def _row(check: "Check") -> dict[str, Any]:
    """JSON has no infinity, so a deviation that is not finite (another shape, NaN) is null."""
    tolerance = check.tolerance
    return {
        "file": check.where,
        "check": check.kind,
        "tensor": check.tensor,
        "largest_deviation": check.deviation if check.deviation < float("inf") else None,
        "atol": tolerance.atol if tolerance else None,
        "rtol": tolerance.rtol if tolerance else None,
        "passed": check.passed,
    }


def _sentence(check: "Check") -> str:
    if check.tolerance is None:
        return f"{check.tensor} in {check.where}: recorded, but there is nothing to compare it with"
    return f"{check.tensor} in {check.where}: deviates by {check.deviation:.3g}, allowed {check.tolerance}"

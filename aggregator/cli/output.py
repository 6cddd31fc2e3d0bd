"""Facts on stdout: JSON for programs, aligned text for people."""

import json
import time
from collections.abc import Sequence
from typing import Any

import typer


def print_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, sort_keys=False, allow_nan=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns; numbers to the right."""
    texts = [[_text(value) for value in row] for row in rows]
    widths = [max(len(c), *(len(row[i]) for row in texts), 0) for i, c in enumerate(columns)]
    numeric = [
        all(isinstance(row[i], (int, float)) or row[i] in (None, "") for row in rows) for i in range(len(columns))
    ]
    for line in [list(columns), *texts]:
        cells = (v.rjust(w) if n else v.ljust(w) for v, w, n in zip(line, widths, numeric, strict=True))
        typer.echo("  ".join(cells).rstrip())


def moment(seconds: float | None) -> str:
    """Return a time as text, in UTC as in logs and journal: sites may be in other zones. Empty for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds else ""


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

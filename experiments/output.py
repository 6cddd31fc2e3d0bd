"""How the benchmarks show what they found: a table on the screen, JSON in a file, and whether a target was met."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import InputError


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that must hold. `limit` is the most that `found` may be, or with `least` the least."""

    what: str
    found: float
    limit: float
    unit: str = ""
    least: bool = False

    @property
    def holds(self) -> bool:
        return self.found >= self.limit if self.least else self.found <= self.limit

    @property
    def word(self) -> str:
        """Return whether it holds."""
        return "holds" if self.holds else "MISSED"

    def line(self) -> str:
        """Return it in words."""
        word = "at least" if self.least else "at most"
        unit = f" {self.unit}" * bool(self.unit)
        return f"{self.word:<6}  {self.what}: {self.found:.4g}{unit}, {word} {self.limit:.4g}{unit}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return lines of a table: first column to the left, the others to the right; floats with four digits."""
    cells = [list(head), *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    aligned = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    return [line.rstrip() for line in (aligned[0], "-" * len(aligned[0]), *aligned[1:])]


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def median(values: Sequence[float]) -> float:
    """Return the median; nan of nothing."""
    return statistics.median(values) if values else float("nan")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return how often something was measured, and its median, quartiles, least and most."""
    ordered = sorted(values)
    quartiles = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else [median(ordered)] * 3
    return {
        "count": len(ordered),
        "median": median(ordered),
        "quartiles": [quartiles[0], quartiles[2]],
        "least": ordered[0] if ordered else None,
        "most": ordered[-1] if ordered else None,
    }


def machine() -> dict[str, Any]:
    """Return what the figures hang on beside the code: cores, and how loaded they were before we began."""
    return {
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def show(name: str, lines: Sequence[str], targets: Sequence[Target], facts: Mapping[str, Any], out: Path) -> bool:
    """Print a benchmark's table and targets, write everything to OUT/name.json, and return whether all targets were met."""
    print("\n".join([*lines, "", *(target.line() for target in targets)]), flush=True)
    judged = [
        {"what": t.what, "found": t.found, "limit": t.limit, "unit": t.unit, "least": t.least, "holds": t.holds}
        for t in targets
    ]
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps({**facts, "targets": judged}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}", flush=True)
    return all(target.holds for target in targets)


def everything(parts: Mapping[str, Callable[[], bool]], out: Path) -> tuple[bool, dict[str, str]]:
    """Run one benchmark after the other, print every target of all of them in one table, and return whether all were met.

    Also returned: why a benchmark could not be run on this machine, by its name.
    """
    failed: dict[str, str] = {}
    for name, measure in parts.items():
        print(f"\n== {name}", flush=True)
        try:
            measure()
        except InputError as error:
            failed[name] = str(error)
            print(f"not measured: {error}", file=sys.stderr)
    held = _summary(out, [name for name in parts if name not in failed])
    for name, why in failed.items():
        print(f"NOT MEASURED  {name}: {why}")
    return held and not failed, failed


def _summary(out: Path, names: Sequence[str]) -> bool:
    """Print every target there is, and return whether all were met."""
    targets = []
    for name in names:
        for one in json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["targets"]:
            targets.append((name, Target(**{key: value for key, value in one.items() if key != "holds"})))
    print("\n== all targets")
    rows = [
        [name, one.what, one.found, f"{'>=' if one.least else '<='} {one.limit:g} {one.unit}".strip(), one.word]
        for name, one in targets
    ]
    print("\n".join(table(["benchmark", "what", "found", "target", ""], rows)))
    return all(one.holds for _, one in targets)

"""`python -m experiments.communication`: what communication costs, measured. Each module adds a command of its own."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from experiments.communication import bandwidth, federation, idle, orchestration, output, target, wire
from experiments.communication.output import Target
from shared.errors import InputError
from shared.protocol import MAX_WAIT_S
from shared.recipe import CODECS

HELP = """Measure what communication costs: benchmarks, no tests. Each prints a table and writes JSON to --out.

Example: python -m experiments.communication wire --codec int8

Exit codes: 0 every target was met, 1 one was not, 2 wrong usage, 3 the machine lets it not be measured."""

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
for module in (wire, idle, bandwidth, orchestration, target):
    module.register(app)


@app.command(name="all")
def everything(
    rounds: Annotated[
        int, typer.Option(min=1, help="Counted rounds of each row on the wire, and of each slow line.")
    ] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Cohorts for the bytes to target.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Cohorts at a time.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("runs/communication"),
) -> None:
    """Measure everything, one after the other, and end with all targets in one table.

    Example: make bench-comm
    """
    codecs, sizes = list(CODECS), [size.name for size in federation.SIZES]
    target_codecs, recipes = list(target.CODECS), list(target.RECIPES)
    parts: dict[str, Callable[[], bool]] = {
        "wire": lambda: wire.run(rounds, codecs, list(wire.RECIPES), out),
        "idle": lambda: idle.run(3, MAX_WAIT_S, out),
        "bandwidth": lambda: bandwidth.run(rounds, out),
        "orchestration": lambda: orchestration.run(20, 5, [4, 8], sizes, None, out),
        "target": lambda: target.run(range(seeds), 8, 1.0, recipes, target_codecs, jobs, out),
    }
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
    sys.exit(bandwidth.CANNOT if failed else not held)


def _summary(out: Path, names: list[str]) -> bool:
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
    print("\n".join(output.table(["benchmark", "what", "found", "target", ""], rows)))
    return all(one.holds for _, one in targets)


if __name__ == "__main__":
    app()

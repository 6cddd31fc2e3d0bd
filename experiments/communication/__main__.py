"""`python -m experiments.communication`: what communication costs, measured. Each module adds a command of its own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from experiments import output
from experiments.communication import bandwidth, federation, idle, orchestration, target, wire
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
    held, failed = output.everything(parts, out)
    sys.exit(bandwidth.CANNOT if failed else not held)


if __name__ == "__main__":
    app()

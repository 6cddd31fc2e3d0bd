"""`python -m experiments.training`: what training costs, measured. Each module adds a command of its own."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from experiments import output
from experiments.training import cache, compiled, epoch, equality, floor, memory, precision, quiet, steps, views, waits

HELP = """Measure what training costs: benchmarks, no tests. Each prints a table and writes JSON to --out.

Weights and images are SYNTHETIC. All cores are used; on a machine that does other work the figures say little.

Example: python -m experiments.training steps

Exit codes: 0 every target was met, 1 one was not, 2 wrong usage."""

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
app.callback()(quiet.process)
for module in (steps, floor, cache, waits, precision, epoch, memory, compiled, equality, views):
    module.register(app)


@app.command(name="all")
def everything(
    repetitions: Annotated[int, typer.Option(min=1, help="Counted turns of each step and product.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Cohorts for equality, and for the choice of views.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Federations at a time.")] = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the choice of views, which takes longest.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("runs/training"),
) -> None:
    """Measure everything, one after the other, and end with all targets in one table.

    Example: make bench-training
    """
    more = repetitions + 4
    parts: dict[str, Callable[[], bool]] = {
        "steps": lambda: steps.run(repetitions, out),
        "floor": lambda: floor.run(more, out),
        "cache": lambda: cache.run(more, out),
        "waits": lambda: waits.run(repetitions, out),
        "precision": lambda: precision.run(more, out),
        "epoch": lambda: epoch.run(5, 3, out),
        "memory": lambda: memory.run(12, out),
        "compile": lambda: compiled.run(repetitions, out),
        "equality": lambda: equality.run(range(seeds), 1.0, 8, jobs, out),
    }
    if not quick:
        parts["views"] = lambda: views.run(range(seeds), 8, 1.0, jobs, out)
    held, _ = output.everything(parts, out)
    sys.exit(not held)


if __name__ == "__main__":
    app()

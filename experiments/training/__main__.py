"""`python -m experiments.training`: what training costs, measured. Each module adds a command of its own."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from experiments.communication import output
from experiments.communication.output import Target
from experiments.training import cache, compiled, epoch, equality, floor, memory, precision, quiet, steps, views

HELP = """Measure what training costs: benchmarks, no tests. Each prints a table and writes JSON to --out.

Weights and images are SYNTHETIC. All cores are used; on a machine that does other work the figures say little.

Example: python -m experiments.training steps

Exit codes: 0 every target was met, 1 one was not, 2 wrong usage."""

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
app.callback()(quiet.process)
for module in (steps, floor, cache, precision, epoch, memory, compiled, equality, views):
    module.register(app)


@app.command(name="all")
def everything(
    repetitions: Annotated[int, typer.Option(min=1, help="Counted turns of each step and product.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Cohorts for the choice of views.")] = 3,
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
        "precision": lambda: precision.run(more, out),
        "epoch": lambda: epoch.run(5, 3, out),
        "memory": lambda: memory.run(6, out),
        "compile": lambda: compiled.run(repetitions, out),
        "equality": lambda: equality.run(0, 1.0, 8, jobs, out),
    }
    if not quick:
        parts["views"] = lambda: views.run(range(seeds), 8, 1.0, jobs, out)
    for name, measure in parts.items():
        print(f"\n== {name}", flush=True)
        measure()
    sys.exit(not _summary(out, list(parts)))


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
    print("\n".join(output.table(["benchmark", "what", "found", "target", ""], rows)))
    return all(one.holds for _, one in targets)


if __name__ == "__main__":
    app()

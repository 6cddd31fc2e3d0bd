"""`python -m experiments.training`: what training costs, measured. What is measured, and how, is in a module for each command."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from experiments import output
from experiments.training import quiet
from experiments.training.devices import Which

HELP = """Measure what training costs: benchmarks, no tests. Each prints a table and writes JSON to --out.

Weights and images are SYNTHETIC. All cores are used; on a machine that does other work the figures say little.

Example: python -m experiments.training steps

Exit codes: 0 every target was met, 1 one was not, 2 wrong usage."""

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
app.callback()(quiet.process)

OUT = Path("runs/training")
Repetitions = Annotated[int, typer.Option(min=1, help="Counted turns, after one that is not.")]
Device = Annotated[Which, typer.Option(help="The CPU, and CUDA where torch sees a GPU; or only one of them.")]
Out = Annotated[
    Path, typer.Option(help="Folder for the JSON, and for what is made on the way: cohorts, entries of the cache.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of every federation.")]
Scale = Annotated[float, typer.Option(help="Share of the vendors' numbers of cases.")]
Jobs = Annotated[int, typer.Option(min=1, help="Federations at a time.")]


@app.command()
def steps(repetitions: Repetitions = 5, device: Device = "all", out: Out = OUT) -> None:
    """Time a training step: cached, uncached, 12 blocks, full fine-tuning, and Hugging Face peft.

    Example: python -m experiments.training steps --repetitions 7
    """
    from experiments.training import steps

    sys.exit(not steps.run(repetitions, out, device))


@app.command()
def floor(repetitions: Repetitions = 9, device: Device = "all", out: Out = OUT) -> None:
    """Hold the cached step of CineMA-base against its matrix products alone.

    Example: python -m experiments.training floor --repetitions 15
    """
    from experiments.training import floor

    sys.exit(not floor.run(repetitions, out, device))


@app.command()
def cache(repetitions: Repetitions = 9, device: Device = "all", out: Out = OUT) -> None:
    """Time reading and writing entries of CineMA-base's size, float16.

    Example: python -m experiments.training cache --repetitions 15
    """
    from experiments.training import cache

    sys.exit(not cache.run(repetitions, out, device))


@app.command()
def waits(repetitions: Repetitions = 5, device: Device = "all", out: Out = OUT) -> None:
    """Time training and evaluation from the cache against the same with nothing to look up.

    Example: python -m experiments.training waits --repetitions 9
    """
    from experiments.training import waits

    sys.exit(not waits.run(repetitions, out, device))


@app.command()
def precision(repetitions: Repetitions = 9, device: Device = "all", out: Out = OUT) -> None:
    """Time training steps in float32 and in bfloat16, by width.

    Example: python -m experiments.training precision
    """
    from experiments.training import precision

    sys.exit(not precision.run(repetitions, out, device))


@app.command()
def epoch(
    cases: Annotated[int, typer.Option(min=2, help="Cases of an epoch; its time is linear in them.")] = 5,
    epochs: Annotated[int, typer.Option(min=2, help="Epochs of each.")] = 3,
    out: Out = OUT,
) -> None:
    """Time epochs from an empty cache against epochs without one.

    Example: python -m experiments.training epoch --cases 10
    """
    from experiments.training import epoch

    sys.exit(not epoch.run(cases, epochs, out))


@app.command()
def memory(
    cases: Annotated[int, typer.Option(min=4, help="Prepared cases, two of them for validation.")] = 12, out: Out = OUT
) -> None:
    """Measure the peak memory of a site that trains CineMA-base on a CPU.

    Example: python -m experiments.training memory
    """
    from experiments.training import memory

    sys.exit(not memory.run(cases, out))


@app.command(name="compile")
def compiled(repetitions: Repetitions = 5, device: Device = "all", out: Out = OUT) -> None:
    """Find out whether torch.compile of the trained blocks pays.

    Example: python -m experiments.training compile
    """
    from experiments.training import compiled

    sys.exit(not compiled.run(repetitions, out, device))


@app.command()
def equality(
    seeds: Annotated[int, typer.Option(min=1, help="Cohorts, each with its federations.")] = 3,
    scale: Scale = 1.0,
    rounds: Rounds = 8,
    jobs: Jobs = 2,
    out: Out = OUT,
) -> None:
    """Compare training with and without the cache: losses, demo federations, logits.

    Example: python -m experiments.training equality --seeds 1 --scale 0.3
    """
    from experiments.training import equality

    sys.exit(not equality.run(range(seeds), scale, rounds, jobs, out))


@app.command()
def views(
    seeds: Annotated[int, typer.Option(min=1, help="Cohorts, each with its own held-out cases.")] = 3,
    rounds: Rounds = 8,
    scale: Scale = 1.0,
    jobs: Jobs = 2,
    out: Out = OUT,
) -> None:
    """Accuracy and cost by number of views and by ranges. Finished federations are kept under OUT and not run again.

    Example: python -m experiments.training views --seeds 1 --scale 0.3
    """
    from experiments.training import views

    sys.exit(not views.run(range(seeds), rounds, scale, jobs, out))


@app.command(name="all")
def everything(
    repetitions: Annotated[int, typer.Option(min=1, help="Counted turns of each step and product.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Cohorts for equality, and for the choice of views.")] = 3,
    jobs: Jobs = 2,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the choice of views, which takes longest.")] = False,
    out: Out = OUT,
) -> None:
    """Measure everything, one after the other, and end with all targets in one table.

    Example: make bench-training
    """
    from experiments.training import cache, compiled, epoch, equality, floor, memory, precision, steps, views, waits

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

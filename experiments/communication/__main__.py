"""`python -m experiments.communication`: what communication costs, measured. What is measured, and how, is in a module for each
command."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from experiments import output
from experiments.communication import target as to_target
from shared.errors import InputError
from shared.protocol import MAX_WAIT_S
from shared.recipe import CODECS

CANNOT = 3
HELP = f"""Measure what communication costs: benchmarks, no tests. Each prints a table and writes JSON to --out.

Example: python -m experiments.communication wire --codec int8

Exit codes: 0 every target was met, 1 one was not, 2 wrong usage, {CANNOT} the machine lets it not be measured."""

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

OUT = Path("runs/communication")
Out = Annotated[Path, typer.Option(help="Folder for the JSON, and for what is kept to go on.")]


@app.command()
def wire(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that are counted, of each row.")] = 6,
    codec: Annotated[list[str] | None, typer.Option(help="Codecs; default: all.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Recipes; default: all.")] = None,
    out: Out = OUT,
) -> None:
    """Count what a round of a site takes on the wire: CineMA-base, two blocks, rank 8, by codec and recipe.

    Example: python -m experiments.communication wire --codec int8 --recipe med-duallora
    """
    from experiments.communication import wire

    sys.exit(not wire.run(rounds, codec or CODECS, recipe or wire.RECIPES, out))


@app.command()
def idle(
    polls: Annotated[int, typer.Option(min=1, help="Polls that are counted.")] = 3,
    wait_s: Annotated[float, typer.Option(help="Seconds a poll is held; agents ask for 30.")] = MAX_WAIT_S,
    out: Out = OUT,
) -> None:
    """Count the bytes of a site that waits, both ways together, on a line with TLS.

    Example: python -m experiments.communication idle --polls 6
    """
    from experiments.communication import idle

    sys.exit(not idle.run(polls, wait_s, out))


@app.command()
def bandwidth(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that are counted, of each setting.")] = 10, out: Out = OUT
) -> None:
    """Time the transfers of a round on lines of 10 Mbit/s and 50 ms, in network namespaces; as root.

    Example: python -m experiments.communication bandwidth --rounds 5
    """
    from experiments.communication import bandwidth

    try:
        sys.exit(not bandwidth.run(rounds, out))
    except InputError as error:
        print(f"bandwidth: {error}", file=sys.stderr)
        sys.exit(CANNOT)


@app.command()
def orchestration(
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds of each, after those that warm up.")] = 20,
    turns: Annotated[int, typer.Option(min=1, help="How often both are measured, in turns.")] = 3,
    sites: Annotated[list[int] | None, typer.Option(help="Numbers of sites; default: 4 and 8.")] = None,
    size: Annotated[list[str] | None, typer.Option(help="Sizes in MB, of 0.1, 1.2, 6; default: all.")] = None,
    disk: Annotated[
        Path | None, typer.Option(help="Folder on the disk to measure; else the system's for temporary files.")
    ] = None,
    out: Out = OUT,
) -> None:
    """Time rounds without training, in units of the plain exchange of the same bytes and one durable write of them.

    Example: python -m experiments.communication orchestration --sites 4 --size 0.1 --turns 5
    """
    from experiments.communication import federation, orchestration

    sizes = size or [one.name for one in federation.SIZES]
    sys.exit(not orchestration.run(rounds, turns, sites or orchestration.SITES, sizes, disk, out))


@app.command()
def target(
    seeds: Annotated[int, typer.Option(min=1, help="Cohorts, each with its own test cases.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of every federation.")] = 8,
    scale: Annotated[float, typer.Option(help="Share of the vendors' numbers of cases.")] = 1.0,
    recipe: Annotated[list[str] | None, typer.Option(help=f"Recipes: {', '.join(to_target.RECIPES)}.")] = None,
    codec: Annotated[list[str] | None, typer.Option(help=f"Codecs: {', '.join(to_target.CODECS)}.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cohorts at a time.")] = 2,
    out: Out = OUT,
) -> None:
    """Bytes to the target, by codec and recipe. Finished federations are kept under OUT and not run again.

    Example: python -m experiments.communication target --seeds 2 --recipe ffa-lora --codec int4+zstd
    """
    recipes, codecs = recipe or list(to_target.RECIPES), codec or list(to_target.CODECS)
    sys.exit(not to_target.run(range(seeds), rounds, scale, recipes, codecs, jobs, out))


@app.command(name="all")
def everything(
    rounds: Annotated[
        int, typer.Option(min=1, help="Counted rounds of each row on the wire, and of each slow line.")
    ] = 10,
    seeds: Annotated[int, typer.Option(min=1, help="Cohorts for the bytes to target.")] = 5,
    jobs: Annotated[int, typer.Option(min=1, help="Cohorts at a time.")] = 2,
    out: Out = OUT,
) -> None:
    """Measure everything, one after the other, and end with all targets in one table.

    Example: make bench-comm
    """
    from experiments.communication import bandwidth, federation, idle, orchestration, wire

    sizes = [size.name for size in federation.SIZES]
    recipes, codecs = list(to_target.RECIPES), list(to_target.CODECS)
    parts: dict[str, Callable[[], bool]] = {
        "wire": lambda: wire.run(rounds, CODECS, wire.RECIPES, out),
        "idle": lambda: idle.run(3, MAX_WAIT_S, out),
        "bandwidth": lambda: bandwidth.run(rounds, out),
        "orchestration": lambda: orchestration.run(20, 5, [4, 8], sizes, None, out),
        "target": lambda: to_target.run(range(seeds), 8, 1.0, recipes, codecs, jobs, out),
    }
    held, failed = output.everything(parts, out)
    sys.exit(CANNOT if failed else not held)


if __name__ == "__main__":
    app()

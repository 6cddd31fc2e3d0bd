"""`python -m experiments.comparison`: the comparison of methods, as one command that can be stopped and gone on with."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from experiments.training import quiet
from shared.errors import InputError

if TYPE_CHECKING:
    from experiments.comparison.contenders import Group
    from experiments.comparison.plan import Plan

HELP = """Compare federated fine-tuning methods: on the SYNTHETIC phantom, or on prepared real cohorts with --data.

Tunes every method (same budget), runs all cells that are missing, and writes tables, plots and report.html.

Example: python -m experiments.comparison run --out runs/comparison --jobs 2
On a cluster: python -m experiments.comparison list, then a job for each line: python -m experiments.comparison run --cell LINE

Exit codes: 0 done, 1 a cell failed, 3 wrong input."""

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder of the comparison: begun, gone on with, or reported on.")]
Data = Annotated[
    Path | None, typer.Option(help="Prepared cohorts of real patients, a folder a vendor; default: phantoms.")
]
Weights = Annotated[Path | None, typer.Option(help="Backbone folder or CineMA's file; default: the demo's backbone.")]
WeightsSize = Annotated[str, typer.Option("--size", help="tiny or base, for a bare CineMA file.")]
Runs = Annotated[int, typer.Option(min=1, help="Runs of the core methods; real data: folds x shuffles.")]
OtherRuns = Annotated[int, typer.Option(min=0, help="Runs of all other methods and of the extensions.")]
Only = Annotated[list[str] | None, typer.Option(help="core, other or extension, repeat; default all.")]
Scale = Annotated[float, typer.Option(help="Share of the phantom's cases: below 1 for a trial.")]
TestCases = Annotated[int, typer.Option(min=2, help="Held-out phantom cases of each vendor.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of every federation.")]
DEFAULT_OUT = Path("runs/comparison")


@app.command()
def run(
    out: Out = DEFAULT_OUT,
    data: Data = None,
    weights: Weights = None,
    size: WeightsSize = "",
    runs: Runs = 10,
    other_runs: OtherRuns = 5,
    rounds: Rounds = 8,
    scale: Scale = 1.0,
    test_cases: TestCases = 100,
    only: Only = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time, a thread each.")] = 2,
    cell: Annotated[str | None, typer.Option(help="Run this one cell alone, such as shifted/fedit-r16/3.")] = None,
) -> None:
    """Run what is missing, then write the report.

    Example: python -m experiments.comparison run --scale 0.1 --runs 2 --other-runs 1 --rounds 2 --out runs/trial
    """
    from experiments.comparison import engine, plan, tuning

    whole = _plan(out, data, weights, size, runs, other_runs, rounds, scale, test_cases)
    whole.freeze()
    failed = engine.run(whole, engine.tuning_tasks(whole), jobs) if not (out / tuning.CHOSEN).exists() else []
    if not failed:
        tuning.choose(out)
        if cell is not None:
            planned = plan.Planned.parse(cell)
            engine.check_method(whole, planned)
            task = engine.tasks(whole, [planned])[0]
            engine.make_backbone(whole, [task])
            print(engine.run_one(whole, task))
            return
        wanted = engine.tasks(whole, plan.cells(whole, _groups(only)))
        engine.make_backbone(whole, wanted)
        failed = engine.run(whole, wanted, jobs)
    for line in failed:
        print(f"comparison: {line}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)
    report(out)


@app.command(name="list")
def listing(
    out: Out = DEFAULT_OUT,
    data: Data = None,
    weights: Weights = None,
    size: WeightsSize = "",
    runs: Runs = 10,
    other_runs: OtherRuns = 5,
    only: Only = None,
) -> None:
    """Print the cells that are not finished, a line each, for a scheduler. Settings must be tuned first: `run` does it."""
    from experiments.comparison import engine, plan

    whole = _plan(out, data, weights, size, runs, other_runs, 8, 1.0, 100)
    for task in engine.tasks(whole, plan.cells(whole, _groups(only))):
        if not task.done:
            print(task.planned)


@app.command()
def report(out: Out = DEFAULT_OUT) -> None:
    """Write tables, plots and report.html from the cells that are finished.

    Example: python -m experiments.comparison report --out runs/comparison
    """
    from experiments.comparison.report import writing

    print(f"written: {writing.write(out)}")


def _plan(
    out: Path,
    data: Path | None,
    weights: Path | None,
    size: str,
    runs: int,
    other_runs: int,
    rounds: int,
    scale: float,
    test_cases: int,
) -> "Plan":
    from experiments.comparison.plan import Plan
    from experiments.training.phantom import WEIGHTS

    if data is not None and weights is None:
        raise InputError("--data needs --weights: the demo's backbone was pre-trained on phantoms")
    return Plan(
        out=out,
        weights=weights or WEIGHTS,
        weights_size=size,
        data=data,
        runs=runs,
        other_runs=other_runs,
        rounds=rounds,
        scale=scale,
        test_cases=test_cases,
        augmentation="cinema" if data is not None else "none",
        frames="siamese" if data is not None else "stacked",
    )


def _groups(only: list[str] | None) -> tuple["Group", ...]:
    from experiments.comparison.contenders import Group

    for name in only or ():
        if name not in get_args(Group):
            raise InputError(f"--only takes {', '.join(get_args(Group))}, got '{name}'")
    return tuple(group for group in get_args(Group) if not only or group in only)


def main() -> None:
    """Run the command; say what is wrong with its input in one line."""
    quiet.process()
    try:
        app()
    except InputError as error:
        print(f"comparison: {error}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()

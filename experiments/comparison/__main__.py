"""`python -m experiments.comparison`: the comparison of methods, as one command that can be stopped and gone on with."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from experiments.training import quiet
from shared.errors import InputError

if TYPE_CHECKING:
    from experiments.comparison.contenders import Group
    from experiments.comparison.plan import Plan
    from experiments.comparison.tasks import Task

HELP = """Compare federated fine-tuning methods: on the SYNTHETIC phantom, or on prepared real cohorts with --data.

Tunes every method (same budget), runs all cells that are missing, and writes tables, plots and report.html.

Example: python -m experiments.comparison run --out runs/comparison --jobs 2
On a cluster: `run --list` prints the cells that can run now, `run --cell LINE` runs one of them. Two times: the first cells choose
settings, and the others are there when those have ended.

Exit codes: 0 done, 1 a cell failed, 3 wrong input, 130 stopped."""

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
STOPPED = 130


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
    listing: Annotated[bool, typer.Option("--list", help="Print the cells that can run now, and run none.")] = False,
) -> None:
    """Run what is missing, then write the report.

    Example: python -m experiments.comparison run --scale 0.1 --runs 2 --other-runs 1 --rounds 2 --out runs/trial
    """
    from experiments.comparison import engine, tasks, tuning

    whole = _plan(out, data, weights, size, runs, other_runs, rounds, scale, test_cases)
    whole.check()
    whole.freeze()
    groups = _groups(only)
    if cell is not None:
        one = tasks.parsed(whole, cell)
        if not one.tuning:
            tuning.choose(out)
        engine.make_backbone(whole, [one])
        print(engine.run_one(whole, one))
        return
    settings = [] if (out / tuning.CHOSEN).exists() else [one for one in tasks.of_tuning(whole) if not one.done]
    wanted = [one for one in tasks.of_comparison(whole, groups) if not one.done]
    if listing:
        for one in settings or wanted:
            print(one.planned)
        return
    _announce(whole, settings, wanted, jobs)
    try:
        failed = engine.run(whole, settings, jobs)
        if not failed:
            tuning.choose(out)
            engine.make_backbone(whole, wanted)
            failed = engine.run(whole, wanted, jobs)
    except KeyboardInterrupt:
        print("comparison: stopped; what is finished stays, and the same command goes on", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    for line in failed:
        print(f"comparison: {line}", file=sys.stderr)
    if tasks.finished(whole, of_comparison=True):
        report(out)
    if failed:
        raise typer.Exit(1)


def _announce(whole: "Plan", settings: list["Task"], wanted: list["Task"], jobs: int) -> None:
    """Say how much there is to do before it begins."""
    from experiments.comparison import engine, tasks

    if not settings and not wanted:
        return
    minutes = tasks.estimate_s(whole, [*settings, *wanted], jobs) / 60
    if engine.needs_one_frame(whole, wanted):
        minutes += engine.ONE_FRAME_MINUTES * whole.scale
    known = "" if tasks.finished(whole) else ", by what cells of phantoms took elsewhere"
    print(
        f"{len(settings)} cells to choose settings by and {len(wanted)} of the comparison, {jobs} at a time: about "
        f"{minutes / 60:.1f} hours{known}. Stopped, the same command goes on.",
        flush=True,
    )


@app.command()
def pilots(
    out: Annotated[Path, typer.Option(help="Folder of the pilots.")] = Path("runs/pilots"),
    variant: Annotated[list[str] | None, typer.Option(help="One of them, repeat; default all.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time, a thread each.")] = 2,
) -> None:
    """Run the variants of our recipe on the pilot cohorts, and print what they reach: half an hour on two cores.

    Example: python -m experiments.comparison pilots --variant fedit16 --variant d12r4-l2e3-s1
    """
    from experiments.comparison import pilots as variants
    from experiments.comparison.plan import Plan
    from experiments.training.phantom import WEIGHTS

    if not variants.run(Plan(out=out, weights=WEIGHTS), jobs, variant or ()):
        raise typer.Exit(1)


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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except InputError as error:
        print(f"comparison: {error}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()

"""`python -m experiments.comparison`: the comparison of methods, as one command that can be stopped and gone on with."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from experiments.comparison import stops
from experiments.training import quiet
from shared.errors import InputError

if TYPE_CHECKING:
    from experiments.comparison.contenders import Group
    from experiments.comparison.plan import Plan
    from experiments.comparison.tasks import Task

EXIT_CODES = "Exit codes: 0 done, 1 a cell failed, 2 an option cannot be read, 3 wrong input, 130 stopped."
HELP = """Compare federated fine-tuning methods: on the SYNTHETIC phantom, or on prepared real cohorts with --data.

Tunes every method (same budget), runs all cells that are missing, and writes tables, plots and report.html.

Example: python -m experiments.comparison run --out runs/comparison --jobs 2
On a cluster: `run --list` prints the cells that can run now, `run --cell LINE` runs one of them. Two times: the first cells choose
settings, and the others are there when those have ended."""

app = typer.Typer(
    help=HELP, epilog=EXIT_CODES, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True
)

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
TestCases = Annotated[
    int, typer.Option(min=2, max=2500, help="Held-out phantom cases of each vendor; tuning has 4 times as many.")
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of every federation.")]
DEFAULT_OUT = Path("runs/comparison")
STOPPED = 130


@app.callback()
def _stoppable(context: typer.Context) -> None:
    context.with_resource(stops.by_sigterm())


@app.command(epilog=EXIT_CODES)
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
    if not listing:
        print(f"comparison in {out}: reading the plan", flush=True)
    from experiments.comparison import config, engine, tasks, tuning

    whole = _plan(out, data, weights, size, runs, other_runs, rounds, scale, test_cases)
    every = tasks.of_comparison(whole, _groups(only))
    one = None if cell is None else tasks.parsed(whole, cell)
    begun = config.is_begun(whole)
    if listing:
        for task in tasks.ready(whole, every):
            print(task.planned)
        return
    if one is not None and not one.tuning:
        tuning.choose(out, [one.planned.method])
    if not begun:
        whole.check()
        config.freeze(whole)
    if others := config.other_versions(out):
        print(f"comparison: {out} was begun with other versions ({others}); the report says so", file=sys.stderr)
    if one is not None:
        engine.make_backbone(whole, [one])
        print(engine.run_one(whole, one))
        return
    failed = _run_missing(whole, every, jobs)
    for line in failed:
        print(f"comparison: {line}", file=sys.stderr)
    if tasks.finished(whole, of_comparison=True):
        report(out)
    if failed:
        raise typer.Exit(1)


def _run_missing(whole: "Plan", every: list["Task"], jobs: int) -> list[str]:
    """Run the cells of tuning that `every` needs, choose, and run `every`; return what went wrong, a line a cell."""
    from experiments.comparison import engine, tasks, tuning

    methods = [task.planned.method for task in every]
    settings = tasks.of_tuning(whole, methods)
    try:
        _announce(whole, settings, every, jobs)
        if failed := engine.run(whole, settings, jobs, "tuning"):
            return failed
        tuning.choose(whole.out, methods)
        engine.make_backbone(whole, every)
        return engine.run(whole, every, jobs, "the comparison")
    except KeyboardInterrupt:
        when = "" if tasks.finished(whole, of_comparison=True) else ", once a cell of the comparison is finished"
        print(
            "comparison: stopped; what is finished stays, and the same command goes on. For a report of what there is"
            f"{when}: python -m experiments.comparison report --out {whole.out}",
            file=sys.stderr,
        )
        raise typer.Exit(STOPPED) from None


def _announce(whole: "Plan", settings: list["Task"], every: list["Task"], jobs: int) -> None:
    """Say how much there is to do before it begins."""
    from experiments.comparison import engine, tasks

    left = [task for task in (*settings, *every) if not task.done]
    if not left:
        return
    minutes = tasks.estimate_s(whole, left, jobs) / 60
    if engine.needs_one_frame(whole, every):
        minutes += engine.ONE_FRAME_MINUTES * whole.scale
    known = "" if tasks.finished(whole) else ", a guess from cells of phantoms elsewhere"
    phases = [_counted(settings, "tuning")] if settings else []
    print(
        f"{' and '.join([*phases, _counted(every, 'the comparison')])}. What is left, {jobs} at a time: about "
        f"{_duration(minutes)}{known}. The first cell of a run also makes its cohort. Stopped, the same command goes on.",
        flush=True,
    )


def _counted(cells: list["Task"], phase: str) -> str:
    done = sum(task.done for task in cells)
    return f"{len(cells)} cells of {phase}" + (f" ({done} finished, {len(cells) - done} left)" if done else "")


def _duration(minutes: float) -> str:
    return f"{max(1, round(minutes))} min" if minutes < 90 else f"{minutes / 60:.1f} hours"


@app.command(epilog=EXIT_CODES)
def pilots(
    out: Annotated[Path, typer.Option(help="Folder of the pilots.")] = Path("runs/pilots"),
    variant: Annotated[list[str] | None, typer.Option(help="One of them, repeat; default all.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time, a thread each.")] = 2,
) -> None:
    """Run the variants of our recipe on the pilot cohorts, and print what they reach: half an hour on two cores.

    Example: python -m experiments.comparison pilots --variant fedit16 --variant d12r4-l2e3-s1
    """
    from experiments.comparison import pilots as variants
    from experiments.comparison.plan import WEIGHTS, Plan

    if not variants.run(Plan(out=out, weights=WEIGHTS), jobs, variant or ()):
        raise typer.Exit(1)


@app.command(epilog=EXIT_CODES)
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
    from experiments.comparison.plan import WEIGHTS, Plan

    if weights is None and data is not None:
        raise InputError("--data needs --weights: the demo's backbone was pre-trained on phantoms")
    if weights is None and size:
        raise InputError(
            f"--size {size} says which network a bare CineMA file holds, and the demo's backbone says that itself; give that file "
            "with --weights, or leave --size out"
        )
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

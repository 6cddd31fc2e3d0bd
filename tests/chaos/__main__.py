"""`python -m tests.chaos`: what no fault may break, broken at on purpose, and what came of it in figures."""

import asyncio
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tests.chaos.federation_run import Outcome
    from tests.chaos.figures import Shown

HELP = """Kill, cut off and fill up federations of real processes at seeded moments, and measure what comes of them.

Example: python -m tests.chaos runs --runs 300 --seed 0 --jobs 2

Exit codes: 0 every promise was kept, 1 one was not (a failed seed is named with the command that replays it), 2 wrong usage."""

RUNS, MIDEPOCH, UPLOADS, RACES, ROUNDS, SITES = 300, 20, 100, 1000, 200, 1000
WIDTH = 200

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
Seed = Annotated[int, typer.Option(help="The first seed; what is drawn hangs on it alone.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs side by side.")]
Keep = Annotated[Path | None, typer.Option(help="Keep the logs of every process in this folder.")]
Runs = Annotated[int, typer.Option(min=1, help="Runs in which a process was killed or the network failed.")]
Midepoch = Annotated[int, typer.Option(min=1, help="Runs in which an agent is killed in the middle of an epoch.")]
Uploads = Annotated[int, typer.Option(min=1, help="Uploads of 6 MB.")]
Races = Annotated[int, typer.Option(min=1, help="Rounds that two replicas race for.")]
Rounds = Annotated[int, typer.Option(min=21, help="Rounds of eight simulated sites.")]
Sites = Annotated[int, typer.Option(min=1, help="Simulated sites.")]


@app.command()
def points() -> None:
    """Run undisturbed federations and print every point at which a process can be killed, and how often it is passed.

    Example: python -m tests.chaos points
    """
    from tests.chaos import batch

    with batch.bench() as made:
        for setting, outcome in made.undisturbed.items():
            print(f"\n{setting}: {outcome.duration_s:.1f} s")
            for role, passed in outcome.passed.points.items():
                print(f"  {role}: {len(passed)} points, passed {sum(passed.values())} times")
                for point, count in sorted(passed.items()):
                    print(f"    {point:<48}{count:>5}")


@app.command()
def run(seed: Annotated[int, typer.Option(help="The seed that draws setting and faults.")], keep: Keep = None) -> None:
    """Replay one run from its seed: print what was to happen, what happened, and what came of it.

    Example: python -m tests.chaos run --seed 17 --keep /tmp/chaos
    """
    from tests.chaos import batch

    with batch.bench() as made:
        outcome = asyncio.run(made.run(made.draw(seed), keep))
    print("\n".join(outcome.lines()))
    sys.exit(bool(outcome.problems))


@app.command()
def runs(runs: Runs = RUNS, seed: Seed = 0, jobs: Jobs = 2, keep: Keep = None) -> None:
    """Run federations of three sites and five rounds, each with a fault at least, and print a table of what they showed.

    Example: python -m tests.chaos runs --runs 30 --jobs 1
    """
    _finish(_federations(runs, seed, jobs, keep))


@app.command()
def midepoch(runs: Midepoch = MIDEPOCH, seed: Seed = 0, jobs: Jobs = 2, keep: Keep = None) -> None:
    """Kill an agent in the middle of an epoch, up to three times a run, and compare every byte with a run undisturbed.

    Example: python -m tests.chaos midepoch --runs 5
    """
    _finish(_figure("kills in mid-epoch", lambda: _midepoch(runs, seed, jobs, keep)))


@app.command()
def cuts(uploads: Uploads = UPLOADS, seed: Seed = 0) -> None:
    """Cut uploads of 6 MB at random points, and count the bytes that had to be sent again.

    Example: python -m tests.chaos cuts --uploads 10
    """
    from tests.chaos import figures

    _finish(_figure("cut uploads", lambda: figures.cuts(uploads, seed)))


@app.command()
def restarts(seed: Seed = 0) -> None:
    """Restart the aggregator while agents wait, and measure when every one of them is back.

    Example: python -m tests.chaos restarts --seed 3
    """
    from tests.chaos import figures

    _finish(_figure("restarts", lambda: figures.restarts(seed)))


@app.command()
def races(rounds: Races = RACES, seed: Seed = 0) -> None:
    """Let two replicas race to close the same round, and compare what each computed.

    Example: python -m tests.chaos races --rounds 50
    """
    from tests.chaos import figures

    _finish(_figure("races", lambda: figures.races(rounds, seed)))


@app.command()
def endurance(rounds: Rounds = ROUNDS, seed: Seed = 0) -> None:
    """Run many rounds with eight sites, and watch the aggregator's memory.

    Example: python -m tests.chaos endurance --rounds 40
    """
    from tests.chaos import figures

    _finish(_figure("endurance", lambda: figures.endurance(rounds, seed)))


@app.command()
def sites(count: Sites = SITES, seed: Seed = 0) -> None:
    """Close a round of many simulated sites on one aggregator, and measure time, memory and database.

    Example: python -m tests.chaos sites --count 100
    """
    from tests.chaos import figures

    _finish(_figure("sites", lambda: figures.sites(count, seed)))


@app.command(name="all")
def everything(
    runs: Runs = RUNS,
    midepochs: Midepoch = MIDEPOCH,
    uploads: Uploads = UPLOADS,
    raced: Races = RACES,
    rounds: Rounds = ROUNDS,
    count: Sites = SITES,
    seed: Seed = 0,
    jobs: Jobs = 2,
) -> None:
    """All of it, one after the other.

    Example: python -m tests.chaos all --runs 30 --midepochs 5 --uploads 10 --raced 50 --rounds 40 --count 100
    """
    from tests.chaos import figures

    kept = [
        _measured("seeded federations", lambda: _federations(runs, seed, jobs, None)),
        _figure("kills in mid-epoch", lambda: _midepoch(midepochs, seed, jobs, None)),
        _figure("cut uploads", lambda: figures.cuts(uploads, seed)),
        _figure("restarts", lambda: figures.restarts(seed)),
        _figure("races", lambda: figures.races(raced, seed)),
        _figure("endurance", lambda: figures.endurance(rounds, seed)),
        _figure("sites", lambda: figures.sites(count, seed)),
    ]
    _finish(all(kept))


def _federations(runs: int, seed: int, jobs: int, keep: Path | None) -> bool:
    """Run, print and return whether every promise was kept."""
    from tests.chaos import batch, summary

    began = time.monotonic()
    with batch.bench() as made:
        outcomes = asyncio.run(batch.many(made, runs, seed, jobs, _progress(runs), keep))
    print("\n".join(["", "seeded federations", *summary.lines(outcomes)]))
    print(f"{'all of it':<52}{time.monotonic() - began:>7.1f} s")
    return summary.is_good(outcomes)


def _midepoch(runs: int, seed: int, jobs: int, keep: Path | None) -> "Shown":
    from tests.chaos import midepoch
    from tests.chaos.figures import Shown

    found = midepoch.run(runs, seed, jobs, keep)
    wrong = found.problems()
    return Shown((*found.lines(), *(f"FAILED: {problem}" for problem in wrong)), not wrong)


def _figure(name: str, measure: "Callable[[], Shown]") -> bool:
    """Measure, print and return whether it is as good as it must be."""

    def shown_in_time() -> bool:
        began = time.monotonic()
        shown = measure()
        print("\n".join(["", f"{name} ({time.monotonic() - began:.0f} s)", *shown.lines]), flush=True)
        return shown.is_good

    return _measured(name, shown_in_time)


def _measured(name: str, measure: Callable[[], bool]) -> bool:
    """Return what `measure` does; what it raises is a failure among the others, and the rest is measured all the same."""
    try:
        return measure()
    except Exception as error:
        traceback.print_exc()
        print(f"\n{name}\nFAILED: {type(error).__name__}: {error}", flush=True)
        return False


def _progress(runs: int) -> "Callable[[Outcome], None]":
    done = 0

    def heard(outcome: "Outcome") -> None:
        nonlocal done
        done += not outcome.is_idle
        what = "FAILED: " + "; ".join(outcome.problems) if outcome.problems else "; ".join(map(str, outcome.fired))
        line = (
            f"{done:>4}/{runs} {outcome.duration_s:5.1f} s  seed {outcome.scenario.seed}: {what or 'no fault happened'}"
        )
        print(line[:WIDTH], flush=True)

    return heard


def _finish(is_good: bool) -> None:
    sys.exit(not is_good)


if __name__ == "__main__":
    app()

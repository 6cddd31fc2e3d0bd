"""`python -m experiments.demo`: four hospitals and an aggregator, end to end, as real processes on synthetic patients."""

import fcntl
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.demo import commands
from experiments.demo.commands import SITES, DemoConfig
from experiments.demo.processes import ChildFailed, Interrupted, Processes
from shared.canonical import write_atomically
from shared.errors import InputError, MedDualLoRAError

HELP = """Run a whole federation on SYNTHETIC patients (no patient data): raw scans, prepared cohorts, certificates, an
aggregator and four site agents as separate processes over gRPC with mutual TLS; then what it brought each site and what it
cost in bytes.

Writes OUT/summary.json, OUT/report.html and everything the processes left; see docs/demo.md.

Example: python -m experiments.demo --seed 0 --out runs/demo

Exit codes: 0 done, 1 a process failed (its name, exit code and last lines are shown), 2 wrong usage, 3 an option or a folder
cannot be used, 130 or 143 stopped by a signal. In every case nothing is left running.
"""
WEIGHTS = Path(__file__).resolve().parents[2] / "site_agent" / "models" / "demo"
WIDTH = 100


def main(
    seed: Annotated[
        int, typer.Option(min=0, help="Draws cohort, adapters and order of cases; same seed, same digest.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder for everything; an earlier demo's is replaced.")] = Path(
        "runs/demo"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the federation.")] = 8,
    scale: Annotated[float, typer.Option(min=0.01, help="Factor on the 273/125/77/50 training cases.")] = 1.0,
    test_cases: Annotated[int, typer.Option(min=4, help="Held-out cases for each site, half of them healthy.")] = 100,
    augmentation: Annotated[
        str, typer.Option(help="Random views that training sees: none, narrow or cinema.")
    ] = "none",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Another recipe parameter, key=value. Repeat.")
    ] = None,
    weights: Annotated[Path, typer.Option(help="Backbone folder.", show_default="the demo's own")] = WEIGHTS,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto; figures repeat bit for bit on the CPU.")] = "cpu",
    centralised: Annotated[
        bool, typer.Option("--centralised", help="Also train one model on all cases pooled, for comparison.")
    ] = False,
    limit_s: Annotated[
        float, typer.Option(min=1, help="Longest a command may take, or a federation may go without progress.")
    ] = 600.0,
) -> None:
    recipe = (f"augmentation={augmentation}", *(set_ or []))
    try:
        config = DemoConfig(
            out=out,
            weights=weights,
            seed=seed,
            rounds=rounds,
            scale=scale,
            test_cases=test_cases,
            recipe=recipe,
            device=device,
            centralised=centralised,
            limit_s=limit_s,
        )
        with _alone(config.out):
            _run(config)
    except Interrupted as error:
        _leave(str(error), error.exit_code)
    except ChildFailed as error:
        _leave(str(error), 1)
    except InputError as error:
        _leave(str(error), 3)
    except MedDualLoRAError as error:
        _leave(str(error), 1)


def _run(config: DemoConfig) -> None:
    from experiments.demo import report, summaries, terminal
    from experiments.demo.run import Demo
    from experiments.demo.view import Lines, Picture, View

    started = time.monotonic() - time.process_time()  # what was imported so far counts as waiting too
    console = Console()
    title = (
        f"[bold reverse] SYNTHETIC [/] {len(SITES)} scanner vendors, {config.rounds} rounds, seed {config.seed}; "
        f"everything in {config.out}"
    )
    commands.clear(config.out)
    view: View = Picture(console, title) if console.is_terminal else Lines(started, _print_line)
    view.say(
        f"SYNTHETIC data: {len(SITES)} scanner vendors, {config.rounds} rounds, seed {config.seed}, in {config.out}"
    )
    try:
        with Processes(config.out / "logs", view.poll) as processes:
            demo = Demo(config, processes, view, started)
            found = demo.run()
    finally:
        view.close()
    summary = summaries.build(found, demo.seconds(found.reports))
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    write_atomically(config.out / "summary.json", text.encode())
    write_atomically(config.out / "report.html", report.page(summary).encode())
    width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    terminal.show(summary, Console(width=width))
    print(f"\nreport: {config.out / 'report.html'}   figures: {config.out / 'summary.json'}")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder: two demos in one would take each other's files away. Raises InputError if another one is in it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        held = (out / commands.LOCK).open("w")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another demo is running in {out}; wait for it or choose another --out") from None
        yield


def _print_line(line: str) -> None:
    print(line, flush=True)


def _leave(text: str, code: int) -> None:
    print(f"demo: {text}", file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=HELP)(main)
    app()

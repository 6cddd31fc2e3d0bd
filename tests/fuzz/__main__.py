"""`python -m tests.fuzz`: what readers and services make of input that is hostile on purpose, in figures."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from tests.fuzz import targets, watch
from tests.fuzz.watch import FAULTS, Tally

HELP = """Mutate adapter files, contracts, updates and message streams, and count what comes of it.

Example: python -m tests.fuzz --count 100000 --seed 0 --jobs 2

Exit codes: 0 no crash, no hang over 1 s, no memory beyond the manifest's size + 1 MiB; 1 there was one (its input is kept in the
folder and named with the command that replays it); 2 wrong usage."""

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False)
Count = Annotated[int, typer.Option(min=1, help="Mutations in all.")]
Seed = Annotated[int, typer.Option(min=0, help="What the mutations are drawn from.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes side by side.")]
Only = Annotated[
    list[str] | None,
    typer.Option("--target", help=f"One of {', '.join(targets.SHARES)}; again for more. All by default."),
]
Out = Annotated[Path, typer.Option(help="Folder for the figures and for inputs at fault.")]
Replay = Annotated[Path | None, typer.Option(help="Run one kept input of the target, and nothing else.")]


@app.command(help=HELP)
def fuzz(
    count: Count = 1_000_000,
    seed: Seed = 0,
    jobs: Jobs = 1,
    only: Only = None,
    out: Out = Path("runs/fuzz"),
    replay: Replay = None,
) -> None:
    names = only or list(targets.SHARES)
    for name in names:
        if name not in targets.SHARES:
            raise typer.BadParameter(f"there is no target '{name}'")
    if replay is not None:
        if len(names) != 1:
            raise typer.BadParameter("--replay needs the one --target that the input is for")
        sys.exit(_replay(names[0], replay))
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    tallies = run(targets.counts(count, names), seed, jobs, out)
    print("\n".join(["", *lines(tallies), f"{time.monotonic() - began:.0f} s in all"]))
    figures = {tally.name: json.loads(tally.to_json()) for tally in tallies}
    (out / "figures.json").write_text(json.dumps({"seed": seed, "targets": figures}, indent=1, sort_keys=True))
    sys.exit(not all(tally.is_good for tally in tallies))


def run(counts: dict[str, int], seed: int, jobs: int, out: Path) -> list[Tally]:
    """Give each target its mutations, in as many processes as there are jobs; return what came of them."""
    with ThreadPoolExecutor(jobs) as pool:
        parts = {
            name: [
                pool.submit(_worker, name, share, seed * jobs + number, out)
                for number, share in enumerate(_shares(count, jobs))
            ]
            for name, count in counts.items()
        }
        return [_together([part.result() for part in of_one]) for of_one in parts.values()]


def _shares(count: int, jobs: int) -> list[int]:
    found = [count // jobs + (number < count % jobs) for number in range(jobs)]
    return [share for share in found if share]


def _worker(name: str, count: int, seed: int, out: Path) -> Tally:
    """Run a process to its end. One that ends otherwise than it should is a crash that no case survived to tell of."""
    figures = out / f"{name}-{seed}.json"
    figures.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.worker", name, str(count), str(seed), str(out.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode == 0 and figures.is_file():
        tally = Tally.from_json(figures.read_text())
        print(f"{name}: {tally.mutations} mutations in {tally.duration_s:.0f} s", flush=True)
        return tally
    print(
        f"FAILED {name}: its process ended with {done.returncode}; what was being run is in {out}\n{done.stderr[-3000:]}",
        flush=True,
    )
    return Tally(name, faults={"crash": 1})


def _together(parts: list[Tally]) -> Tally:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.with_(part)
    return whole


def _replay(name: str, place: Path) -> bool:
    """Run one input and print what came of it; return whether it is at fault."""
    target = targets.make(name)
    try:
        watch.run(target, target.seeds()[0])
        seen = watch.run(target, place.read_bytes())
    finally:
        target.close()
    print(
        f"{name}: {seen.label}; {seen.cpu_s:.3f} s of CPU, {seen.wall_s:.3f} s; {seen.over_bytes} bytes beyond its tensors"
    )
    for fault in seen.faults:
        print(f"FAILED {fault.kind}: {fault.what}\n{fault.trace}", end="")
    return bool(seen.faults)


def lines(tallies: list[Tally]) -> list[str]:
    """Return the figures for people."""
    head = ("mutations", "accepted", "refused", *FAULTS, "per s", "most CPU s", "most bytes")
    found = [f"{'target':<12}" + "".join(f"{name:>12}" for name in head)]
    for tally in tallies:
        faults = [tally.faults.get(kind, 0) for kind in FAULTS]
        rate = tally.mutations / tally.duration_s if tally.duration_s else 0.0
        whole = (tally.mutations, tally.accepted, tally.refused, *faults, round(rate))
        cells = [*map(str, whole), f"{tally.most_cpu_s:.2f}", str(tally.most_over_bytes)]
        found.append(f"{tally.name:<12}" + "".join(f"{cell:>12}" for cell in cells))
    for tally in tallies:
        found += ["", f"{tally.name}"]
        found += [f"  {label:<44}{count:>9}" for label, count in sorted(tally.outcomes.items())]
    return found


if __name__ == "__main__":
    app()

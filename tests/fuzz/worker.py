"""One target in one process: mutations made, watched and counted; faults kept as files.

`python -m tests.fuzz.worker TARGET COUNT SEED FOLDER` is how `python -m tests.fuzz` starts it. What is watched must be imported
while atheris looks on, so nearly everything is imported in here late.
"""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz import driver

if TYPE_CHECKING:
    from tests.fuzz.target import Target
    from tests.fuzz.watch import Seen, Tally

MOST_KEPT = 20
"""Files kept of a worker's faults; all of them are counted."""


def tallied(name: str, target: "Target", count: int, seed: int, out: Path, *, guide: bool) -> "Tally":
    """Make `count` mutations and return what came of them. Guided, it ends the process; the figures are in `out` either way."""
    from tests.fuzz import watch

    for data in target.seeds():  # what is imported or made once is no case's
        watch.run(target, data)
    tally, began = watch.Tally(name), time.monotonic()
    kept: set[str] = set()

    def heard(data: bytes) -> None:
        if not data and tally.mutations == 0:
            return  # libFuzzer begins with nothing
        seen = watch.run(target, data)
        tally.add(seen)
        if seen.faults and len(kept) < MOST_KEPT and seen.signature not in kept:
            kept.add(seen.signature)
            _keep(name, data, seen, out)
        if tally.mutations == count:
            tally.duration_s = time.monotonic() - began
            (out / f"{name}-{seed}.json").write_text(tally.to_json())
            if guide:
                target.close()
                sys.stdout.flush()
                os._exit(0)

    if guide:
        driver.guided(target, heard, seed, out)
    driver.blind(target, heard, seed, count)
    return tally


def _keep(name: str, data: bytes, seen: "Seen", out: Path) -> None:
    place = out / f"{name}-{os.getpid()}-{time.monotonic_ns()}.case"
    place.write_bytes(data)
    for fault in seen.faults:
        print(f"FAILED {name}: {fault.kind}: {fault.what}\n{fault.trace}", end="")
    print(f"replay it: python -m tests.fuzz --target {name} --replay {place}", flush=True)


def main(name: str, count: int, seed: int, out: Path) -> None:
    """Run a target until it has had so many mutations."""
    with Path(os.devnull).open("w") as nowhere:
        with driver.watched_imports():
            from shared import logs
            from tests.fuzz import targets

            logs.configure(
                terminal=nowhere
            )  # events are rendered: what a hostile text does to a line is part of the case
            target = targets.make(name)
        tallied(name, target, count, seed, out, guide=driver.IS_GUIDED)
        target.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

"""Many rounds on one aggregator: its memory at the end is what it was at the beginning."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import crowd, served
from tests.chaos.served import Memory, Served
from tests.chaos.simulated_site import SitesPlan, Tally

SCALARS = 24_576
"""0.1 MB."""
FROM_ROUND = 20
"""By then everything that is made once has been made."""
AROUND, LAST = 5, 10
"""Samples count as of round `FROM_ROUND` if they are so many rounds from it, and as of the end among so many last rounds."""
SHOWN_EVERY = 20
GROWTH = 0.10
TIMEOUT_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Memory when a round had just been closed, `after_s` seconds from the first call."""

    round: int
    after_s: float
    memory: Memory


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured; sizes in bytes, times in seconds."""

    rounds: int
    sites: int
    update_bytes: int
    closed: int
    series: tuple[Sample, ...]
    database: int
    tally: Tally

    @property
    def before(self) -> float:
        """Resident memory around round `FROM_ROUND`: the median of the samples."""
        return _median(sample for sample in self.series if abs(sample.round - FROM_ROUND) <= AROUND)

    @property
    def after(self) -> float:
        """Resident memory in the last rounds: the median of the samples."""
        return _median(sample for sample in self.series if sample.round > self.series[-1].round - LAST)

    @property
    def growth(self) -> float:
        """Resident memory at the end over that at round `FROM_ROUND`, less one."""
        return self.after / self.before - 1.0

    def lines(self) -> list[str]:
        """Return the figures in words."""
        last, shown = self.series[-1], {sample.round // SHOWN_EVERY: sample for sample in reversed(self.series)}
        return [
            f"{self.closed} of {self.rounds} rounds with {self.sites} simulated sites, {self.update_bytes / 1e6:.2f} MB an update: "
            f"{last.after_s:.1f} s, {self.closed / last.after_s:.1f} rounds/s, {sum(self.tally.calls.values())} calls, "
            f"repeated: {sum(self.tally.repeats.values())} {dict(self.tally.repeats) or ''}",
            "  memory after round n, MB: "
            + ", ".join(f"{sample.round}: {sample.memory.resident / 1e6:.1f}" for sample in reversed(shown.values())),
            f"  median of {len(self.series)} samples, those of rounds {FROM_ROUND - AROUND} to {FROM_ROUND + AROUND}: "
            f"{self.before / 1e6:.1f}, of the last {LAST}: {self.after / 1e6:.1f}; "
            f"{self.growth:+.1%}; peak {last.memory.peak / 1e6:.1f} MB",
            f"  database: {self.database / 1e6:.1f} MB for "
            f"{self.closed * self.sites * self.update_bytes / 1e6:.1f} MB of updates and "
            f"{(self.closed + 1) * self.update_bytes / 1e6:.1f} MB of versions",
        ]

    def problems(self) -> list[str]:
        """Return each target that was missed."""
        found = []
        if self.closed != self.rounds:
            found.append(f"{self.closed} of {self.rounds} rounds were closed")
        if self.growth > GROWTH:
            found.append(f"memory grew by {self.growth:+.1%} from round {FROM_ROUND} on, the target is {GROWTH:.0%}")
        return found


def _median(samples: Iterable[Sample]) -> float:
    return statistics.median(sample.memory.resident for sample in samples)


def run(
    folder: Path,
    *,
    rounds: int = 200,
    sites: int = 8,
    scalars: int = SCALARS,
    seed: int = 0,
    store: str = "",
    options: Sequence[str] = (),
) -> Figures:
    """Run the rounds in a new folder. `store`: another place than a SQLite file in it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"site-{number}" for number in range(sites)]
    store, log = store or str(folder / "fed.db"), folder / "aggregator.jsonl"
    served.make_store(store, folder, dict.fromkeys(names), scalars, rounds)
    with served.serve(store, log, None, *options) as aggregator:
        plan = SitesPlan(address=aggregator.address, names=names, seed=seed)
        series, tally = asyncio.run(_measure(aggregator, plan, log))
    return Figures(
        rounds=rounds,
        sites=sites,
        update_bytes=4 * scalars,
        closed=served.closed_rounds(store),
        series=tuple(series),
        database=served.database_bytes(store),
        tally=tally,
    )


async def _measure(aggregator: Served, plan: SitesPlan, log: Path) -> tuple[list[Sample], Tally]:
    """Return a sample for every round that was seen to close, the last one among them, and what the sites did."""
    series: list[Sample] = []
    began = time.monotonic()
    with log.open(encoding="utf-8") as events:
        async with asyncio.timeout(TIMEOUT_S), crowd.start(plan, 1) as sites:
            finished = asyncio.create_task(sites.finished())
            closed, over = 0, False
            while not over:
                over = finished.done()
                closed += sum('"event": "round_closed"' in line for line in events.readlines())
                if closed and (not series or series[-1].round != closed):
                    after_s, memory = time.monotonic() - began, aggregator.memory()
                    series.append(Sample(round=closed, after_s=after_s, memory=memory))
                await asyncio.sleep(0.02)
            return series, await finished


def main() -> None:
    """Print the figures."""
    import argparse

    parser = argparse.ArgumentParser(description="python -m tests.chaos.endurance --rounds 200")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--scalars", type=int, default=SCALARS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(folder), rounds=arguments.rounds, sites=arguments.sites, scalars=arguments.scalars)
    print("\n".join([*figures.lines(), *(f"  MISSED: {problem}" for problem in figures.problems())]), flush=True)


if __name__ == "__main__":
    main()

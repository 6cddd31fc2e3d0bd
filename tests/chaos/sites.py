"""A thousand simulated sites on one aggregator: a round closes, in what time, and in how much memory.

What a connection costs is a difference: growth with the whole crowd less growth with `FIRST` sites, which an aggregator of its own
serves before, by the difference in connections. So what is paid once, such as threads and the first use of a library, falls out,
and so do the transfers in hand: their number is capped, and the cap is reached in both. Nothing is taken off on assumption. Growth
is counted from the process before its first site; what it is in all is printed too.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator import certificates
from aggregator.aggregation import MAX_DIAGNOSED_SITES
from shared.tls import TlsFiles
from tests.chaos import crowd, served
from tests.chaos.served import Memory, Served
from tests.chaos.simulated_site import SitesPlan, Tally

SCALARS = 86_016
"""0.34 MB: the adapter of the issue."""
BYTES_A_CONNECTION = {False: 100_000, True: 200_000}
"""The target, by whether there is TLS with certificates on both ends."""
UPLOADS_CAP = 16
"""Few against the number of connections: what a connection costs must not hide in it. By default there are more, for sites on slow
links: an upload is in hand as long as it is on its way."""
FIRST = MAX_DIAGNOSED_SITES + UPLOADS_CAP
"""More than the cap, so that transfers wait for their turn. And more than a close diagnoses, for which it holds tensors of every
site at a time: it is the same close as the whole crowd's."""
JUDGED_FROM = 500
"""Two runs alike differ by 1 to 3 MB: among much fewer connections that alone is tens of kilobytes each."""
SETTLE_S = 3.0
PROCESSES = 2
TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one crowd showed. Times in seconds, memory and sizes in bytes."""

    sites: int
    mtls: bool
    update_bytes: int
    uploads_cap: int
    certificates_s: float
    joined_s: float
    waiting_s: float
    """From the first connection until every site had joined, downloaded version 0 and waited."""
    round_s: float
    """From the first announcement until every site knew that the round was closed."""
    round_processor_s: float
    """Processor time of the aggregator in `round_s`."""
    closed: int
    at_start: Memory
    waiting: Memory
    in_round: Memory
    afterwards: Memory
    database: int
    tally: Tally

    @property
    def growth(self) -> dict[str, int]:
        """Memory beyond that before the first site: when all waited, at the worst moment, and when all had gone."""
        moments = {
            "waiting": self.waiting.resident,
            "at the worst moment": max(self.waiting.peak, self.in_round.peak),
            "afterwards": self.afterwards.resident,
        }
        return {moment: size - self.at_start.resident for moment, size in moments.items()}

    def lines(self) -> list[str]:
        """Return the figures in words."""
        uploads = sorted(self.tally.upload_s)
        calls = sum(self.tally.calls.values())
        return [
            f"{self.sites} simulated sites, {'mTLS' if self.mtls else 'plain'}, {self.update_bytes / 1e6:.2f} MB an update, "
            f"at most {self.uploads_cap} uploads in hand" + f" (certificates: {self.certificates_s:.1f} s)" * self.mtls,
            f"  joined after {self.joined_s:.1f} s, all waiting after {self.waiting_s:.1f} s; rounds closed: {self.closed}",
            f"  round: {self.round_s:.1f} s, {self.sites / self.round_s:.1f} updates/s, "
            f"{self.round_processor_s:.1f} s of processor; an upload took {uploads[len(uploads) // 2]:.1f} s (median), "
            f"{uploads[-1]:.1f} s (longest)",
            f"  calls: {calls}, repeated: {sum(self.tally.repeats.values())} {dict(self.tally.repeats) or ''}",
            f"  memory, MB: start {_megabytes(self.at_start)}, waiting {_megabytes(self.waiting)}, "
            f"round {_megabytes(self.in_round)}, afterwards {_megabytes(self.afterwards)}",
            f"  growth in all, KB a connection: {_kilobytes({m: size / self.sites for m, size in self.growth.items()})}",
            f"  database: {self.database / 1e6:.0f} MB for {self.sites * self.update_bytes / 1e6:.0f} MB of updates",
        ]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the whole crowd showed and, if it is large enough to be judged, its first sites alone."""

    first: Measured | None
    whole: Measured

    @property
    def bytes_a_connection(self) -> dict[str, float]:
        """What a connection costs beyond what is paid once and the transfers in hand, by moment; empty if not judged."""
        if self.first is None:
            return {}
        more, before = self.whole.sites - self.first.sites, self.first.growth
        return {moment: (size - before[moment]) / more for moment, size in self.whole.growth.items()}

    def lines(self) -> list[str]:
        """Return the figures in words."""
        shown = self.whole.lines()
        if self.first is None:
            why = "two runs alike differ by 1 to 3 MB, which so few connections would be charged with"
            return [*shown, f"  what a connection costs is not judged below {JUDGED_FROM} sites: {why}"]
        growth, updates = self.first.growth, self.first.uploads_cap * self.first.update_bytes
        first = ", ".join(f"{moment} {size / 1e6:.1f}" for moment, size in growth.items())
        return [
            *shown,
            f"  growth with {self.first.sites} sites alone, MB: {first}; the transfers in hand are "
            f"{(growth['at the worst moment'] - growth['waiting']) / updates:.1f} x {self.first.uploads_cap} updates of it",
            f"  a connection, KB beyond that: {_kilobytes(self.bytes_a_connection)}; "
            f"the target is {BYTES_A_CONNECTION[self.whole.mtls] / 1e3:.0f}",
        ]

    def problems(self) -> list[str]:
        """Return each target that was missed."""
        found, target = [], BYTES_A_CONNECTION[self.whole.mtls]
        if self.whole.closed < 1:
            found.append("no round was closed")
        for moment, value in self.bytes_a_connection.items():
            if value > target:
                found.append(f"a connection takes {value / 1e3:.0f} KB {moment}, the target is {target / 1e3:.0f} KB")
        return found


def _kilobytes(sizes: Mapping[str, float]) -> str:
    return ", ".join(f"{moment} {size / 1e3:.0f}" for moment, size in sizes.items())


def _megabytes(memory: Memory) -> str:
    return f"{memory.resident / 1e6:.0f} (PSS {memory.proportional / 1e6:.0f}, peak {memory.peak / 1e6:.0f})"


def run(folder: Path, count: int = 1000, *, mtls: bool = False, seed: int = 0) -> Figures:
    """Run the sites through a round in a new folder, and the first of them alone before if the whole can be judged."""
    first = measure(folder / "first", FIRST, mtls=mtls, seed=seed) if count >= JUDGED_FROM else None
    return Figures(first=first, whole=measure(folder / "whole", count, mtls=mtls, seed=seed))


def measure(
    folder: Path,
    count: int,
    *,
    mtls: bool = False,
    seed: int = 0,
    uploads_cap: int = UPLOADS_CAP,
    idle_s: float = SETTLE_S,
) -> Measured:
    """Run one crowd of so many sites through a round in a new folder, on an aggregator of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"site-{number:04}" for number in range(count)]
    store = str(folder / "fed.db")
    served.make_store(store, folder, dict.fromkeys(names), SCALARS, 1)
    began = time.monotonic()
    tls = _certificates(folder / "certificates", names) if mtls else None
    made_s = time.monotonic() - began
    with served.serve(store, folder / "aggregator.jsonl", tls, "--uploads", str(uploads_cap)) as aggregator:
        plan = SitesPlan(
            address=aggregator.address,
            names=names,
            seed=seed,
            certificates=str(folder / "certificates") if mtls else "",
            hold=True,
        )
        return asyncio.run(_measure(aggregator, plan, made_s, uploads_cap, idle_s))


def _certificates(folder: Path, names: Sequence[str]) -> TlsFiles:
    certificates.make(folder, ["127.0.0.1"], names)
    return TlsFiles(folder / "ca.pem", folder / "aggregator.pem", folder / "aggregator.key")


async def _measure(aggregator: Served, plan: SitesPlan, made_s: float, uploads_cap: int, idle_s: float) -> Measured:
    at_start, began = aggregator.memory(), time.monotonic()
    served.forget_peak(aggregator.pid)
    async with asyncio.timeout(TIMEOUT_S), crowd.start(plan, PROCESSES) as sites:
        joined = await sites.reached("joined")
        waits = await sites.reached("waiting")
        await asyncio.sleep(idle_s)
        waiting = aggregator.memory()
        served.forget_peak(aggregator.pid)
        processor, went = aggregator.processor_s(), time.monotonic()
        sites.go()
        tally = await sites.finished()
        round_s = time.monotonic() - went
        in_round = aggregator.memory()
    await asyncio.sleep(idle_s)
    return Measured(
        sites=len(plan.names),
        mtls=bool(plan.certificates),
        update_bytes=4 * SCALARS,
        uploads_cap=uploads_cap,
        certificates_s=made_s,
        joined_s=joined - began,
        waiting_s=waits - began,
        round_s=round_s,
        round_processor_s=aggregator.processor_s() - processor,
        closed=served.closed_rounds(aggregator.store),
        at_start=at_start,
        waiting=waiting,
        in_round=in_round,
        afterwards=aggregator.memory(),
        database=served.database_bytes(aggregator.store),
        tally=tally,
    )

"""A thousand simulated sites on one aggregator: a round closes, in what time, and in how much memory.

Memory may grow by so much a connection, and besides by what the transfers in hand take: their number is capped, and of each
update there are a few copies between socket and database. Growth is counted from the process before its first site.
"""

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator import certificates
from aggregator.federation import ServiceLimits
from shared.tls import TlsFiles
from tests.chaos import crowd, served
from tests.chaos.served import Memory, Served
from tests.chaos.simulated_site import SitesPlan, Tally

SCALARS = 86_016
"""0.34 MB: the adapter of the issue."""
COPIES_IN_HAND = 4
"""Of an update between socket and database: the message as received, the parsed message, the chunk's bytes, and the copy that is
being checked or written. Of a version on its way to a site as many: slice, message, its serialised form, what is being sent."""
BYTES_A_CONNECTION = {False: 100_000, True: 200_000}
"""The target, by whether there is TLS with certificates on both ends."""
UPLOADS_CAP = ServiceLimits().concurrent_uploads
SETTLE_S = 3.0
TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured. Times in seconds, memory and sizes in bytes."""

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
    def allowance(self) -> int:
        """What the transfers in hand may take: cap x copies x size of one update (which here is one chunk)."""
        return min(self.uploads_cap, self.sites) * COPIES_IN_HAND * self.update_bytes

    @property
    def waiting_bytes(self) -> float:
        """What one connection that waits in AwaitRound costs."""
        return (self.waiting.resident - self.at_start.resident) / self.sites

    @property
    def worst_bytes(self) -> float:
        """What one connection costs at the worst moment, of downloads or of uploads, beyond the transfers in hand."""
        return (max(self.in_round.peak, self.waiting.peak) - self.at_start.resident - self.allowance) / self.sites

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
            f"  a connection: {self.waiting_bytes / 1e3:.0f} KB waiting; {self.worst_bytes / 1e3:.0f} KB at the worst moment "
            f"beyond {self.allowance / 1e6:.0f} MB for transfers in hand ({min(self.uploads_cap, self.sites)} x {COPIES_IN_HAND} x "
            f"{self.update_bytes / 1e6:.2f} MB)",
            f"  database: {self.database / 1e6:.0f} MB for {self.sites * self.update_bytes / 1e6:.0f} MB of updates",
        ]

    def problems(self) -> list[str]:
        """Return each target that was missed."""
        found, target = [], BYTES_A_CONNECTION[self.mtls]
        if self.closed < 1:
            found.append("no round was closed")
        for what, value in (("waiting", self.waiting_bytes), ("at the worst moment", self.worst_bytes)):
            if value > target:
                found.append(f"a connection takes {value / 1e3:.0f} KB {what}, the target is {target / 1e3:.0f} KB")
        return found


def _megabytes(memory: Memory) -> str:
    return f"{memory.resident / 1e6:.0f} (PSS {memory.proportional / 1e6:.0f}, peak {memory.peak / 1e6:.0f})"


def run(
    folder: Path,
    count: int = 1000,
    *,
    mtls: bool = False,
    rounds: int = 1,
    seed: int = 0,
    uploads_cap: int = UPLOADS_CAP,
    processes: int = 2,
    idle_s: float = SETTLE_S,
    store: str = "",
    options: Sequence[str] = (),
) -> Figures:
    """Run the sites through `rounds` rounds in a new folder. `store`: another place than a SQLite file in it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"site-{number:04}" for number in range(count)]
    store = store or str(folder / "fed.db")
    served.make_store(store, folder, dict.fromkeys(names), SCALARS, rounds)
    began = time.monotonic()
    tls = _certificates(folder / "certificates", names) if mtls else None
    made_s = time.monotonic() - began
    settings = ("--uploads", str(uploads_cap), *options)
    with served.serve(store, folder / "aggregator.jsonl", tls, *settings) as aggregator:
        plan = SitesPlan(
            address=aggregator.address,
            names=names,
            seed=seed,
            certificates=str(folder / "certificates") if mtls else "",
            hold=True,
        )
        return asyncio.run(_measure(aggregator, plan, made_s, uploads_cap, processes, idle_s))


def _certificates(folder: Path, names: Sequence[str]) -> TlsFiles:
    certificates.make(folder, ["127.0.0.1"], names)
    return TlsFiles(folder / "ca.pem", folder / "aggregator.pem", folder / "aggregator.key")


async def _measure(
    aggregator: Served, plan: SitesPlan, made_s: float, uploads_cap: int, processes: int, idle_s: float
) -> Figures:
    at_start, began = aggregator.memory(), time.monotonic()
    served.forget_peak(aggregator.pid)
    async with asyncio.timeout(TIMEOUT_S), crowd.start(plan, processes) as sites:
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
    return Figures(
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


def main() -> None:
    """Print the figures of both kinds of connection for a number of sites."""
    import argparse

    parser = argparse.ArgumentParser(description="python -m tests.chaos.sites --sites 1000")
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--kinds", nargs="*", default=["plain", "mtls"])
    parser.add_argument("--uploads", type=int, default=UPLOADS_CAP)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--store", default="", help="an empty PostgreSQL database, for one kind")
    parser.add_argument("--idle-s", type=float, default=SETTLE_S)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            place = arguments.keep / kind if arguments.keep else Path(folder)
            figures = run(
                place,
                arguments.sites,
                mtls=kind == "mtls",
                uploads_cap=arguments.uploads,
                processes=arguments.processes,
                idle_s=arguments.idle_s,
                store=arguments.store,
            )
        print("\n".join([*figures.lines(), *(f"  MISSED: {problem}" for problem in figures.problems())]), flush=True)


if __name__ == "__main__":
    main()

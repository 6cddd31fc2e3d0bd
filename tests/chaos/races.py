"""Two replicas racing to close the same rounds: one manifest and one result each, and both computed the same one.

Each replica is a process with a store, a `Federation` and a `Closer` of its own, as `aggregator serve` has. The updates of a
round are put into the store silently; then one change, which both hear of in the same moment, releases them. Run as a program
this is one replica; it prints a JSON line for every result it has computed.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from aggregator import closing, verify
from aggregator.closing import Closer
from aggregator.federation import Federation
from aggregator.manifest import RoundManifest
from aggregator.store import engine, federations
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from shared import logs
from tests.chaos.crowd import ROOT
from tests.chaos.served import ENVIRONMENT
from tests.support import adapters, closed_rounds

P = ParamSpec("P")
T = TypeVar("T")

NAME = "demo"
"""The federation that `closed_rounds` makes."""
REPLICAS = ("replica-a", "replica-b")
RACED = 0.25
"""Share of rounds that both replicas must have computed: below it the figure says little about races."""
ROUND_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """A result that a replica computed. `won`: it is the one that was written down. Times as of time.monotonic."""

    replica: str
    round: int
    digest: str
    won: bool
    at: float


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured."""

    rounds: int
    duration_s: float
    computed: tuple[Computed, ...]
    recorded: dict[int, str]
    """The digest in the manifest of every closed round."""
    versions: int
    verified: dict[int, str]
    """The digest that `aggregator verify` computes from the stored updates, or the difference it found."""

    @property
    def raced(self) -> int:
        """Rounds whose result both replicas computed."""
        return sum(len(found) == len(REPLICAS) for found in self._by_round().values())

    @property
    def wins(self) -> dict[str, int]:
        """How many results each replica wrote down."""
        return {name: sum(one.won for one in self.computed if one.replica == name) for name in REPLICAS}

    def lines(self) -> list[str]:
        """Return the figures in words."""
        found = [times for times in self._by_round().values() if len(times) == len(REPLICAS)]
        apart = sorted(max(one.at for one in both) - min(one.at for one in both) for both in found) or [0.0]
        return [
            f"{self.rounds} rounds, two replicas on PostgreSQL, {self.duration_s:.1f} s: {len(self.recorded)} closed, "
            f"{self.raced} computed by both ({self.raced / self.rounds:.0%}), finished {1e3 * apart[len(apart) // 2]:.1f} ms "
            "apart (median)",
            f"  written down by: {', '.join(f'{name} {count}' for name, count in self.wins.items())}; "
            f"versions: {self.versions}; verified: {sum(self.verified[n] == d for n, d in self.recorded.items())}",
        ]

    def problems(self) -> list[str]:
        """Return each target that was missed."""
        expected = set(range(1, self.rounds + 1))
        found = [f"round {number} is not closed" for number in sorted(expected - self.recorded.keys())]
        if self.versions != self.rounds:
            found.append(f"{self.versions} versions were made in {self.rounds} rounds")
        for number, results in sorted(self._by_round().items()):
            digests = {one.digest for one in results} | {self.recorded.get(number, "none")}
            if len(digests) != 1:
                found.append(f"round {number} has several results: {sorted(digests)}")
            if sum(one.won for one in results) != 1:
                found.append(f"round {number} was written down by {[one.replica for one in results if one.won]}")
        found += [
            f"round {number}: verify says {said}"
            for number, said in self.verified.items()
            if said != self.recorded[number]
        ]
        if self.raced < RACED * self.rounds:
            found.append(f"only {self.raced} of {self.rounds} rounds were races, at least {RACED:.0%} are wanted")
        return found

    def _by_round(self) -> dict[int, list[Computed]]:
        return {n: [one for one in self.computed if one.round == n] for n in {one.round for one in self.computed}}


def run(url: str, folder: Path, rounds: int = 1000, seed: int = 0) -> Figures:
    """Let two replicas race through so many rounds in the empty PostgreSQL database at `url`."""
    folder.mkdir(parents=True, exist_ok=True)
    store = closed_rounds.make(folder, rounds_count=rounds, url=url)
    changed = threading.Event()
    watch = store.watch(lambda federation, news: changed.set())
    try:
        with ExitStack() as stack:
            replicas = [stack.enter_context(_replica(name, url)) for name in REPLICAS]
            began = time.monotonic()
            for number in range(1, rounds + 1):
                _fill(store, seed, number)
                changed.clear()
                store.change(NAME, False, _nothing)
                _until_over(store, number, changed)
            duration_s = time.monotonic() - began
            computed = [one for replica in replicas for one in replica()]
        return _figures(store, rounds, duration_s, computed)
    finally:
        watch.close()
        store.close()


def _fill(store: Store, seed: int, number: int) -> None:
    """Put every site's update into the open round; no replica hears of it."""
    layout = store.read(federations.contract, NAME).manifest.layout
    for place, site in enumerate(sorted(closed_rounds.PATIENTS)):
        closed_rounds.send(store, site, adapters.delta(layout, seed=1000 * (1000 * seed + number) + place), 1 << 20)


def _nothing(connection: sa.Connection) -> None:
    """A change of nothing, which wakes whoever watches."""


def _until_over(store: Store, number: int, changed: threading.Event) -> None:
    """Return once a round is closed. Raises TimeoutError."""
    end = time.monotonic() + ROUND_TIMEOUT_S
    while store.read(round_rows.state, NAME, number).phase != "closed":
        if time.monotonic() > end:
            raise TimeoutError(f"round {number} was not closed by either replica within {ROUND_TIMEOUT_S:.0f} s")
        changed.wait(0.5)
        changed.clear()


def _figures(store: Store, rounds: int, duration_s: float, computed: Sequence[Computed]) -> Figures:
    records = [record for record in store.read(round_rows.records, NAME) if record.state.phase == "closed"]
    checks = verify.verify(store, NAME)
    return Figures(
        rounds=rounds,
        duration_s=duration_s,
        computed=tuple(computed),
        recorded={r.state.number: RoundManifest.from_bytes(r.manifest).result_digest for r in records},
        versions=store.read(federations.last_version, NAME),
        verified={check.round: check.difference or check.digest for check in checks if check.phase == "closed"},
    )


@contextmanager
def _replica(name: str, url: str) -> Iterator[Callable[[], list[Computed]]]:
    """Start a replica, return once it watches; what is yielded ends it and returns what it has computed."""
    command = [sys.executable, "-m", "tests.chaos.races", url, name]
    with subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, said, lines = process.stdin, process.stdout, list[str]()
        try:
            if said.readline().strip() != "ready":
                raise RuntimeError(f"{name} did not start")
            reader = threading.Thread(target=lambda: lines.extend(said))
            reader.start()

            def results() -> list[Computed]:
                stdin.close()
                reader.join()
                if process.wait(ROUND_TIMEOUT_S) != 0:
                    raise RuntimeError(f"{name} ended with status {process.returncode}")
                return [Computed(**json.loads(line)) for line in lines]

            yield results
        finally:
            process.kill()


# --- one replica ----------------------------------------------------------------------------------------------------


class Witnessed(Store):
    """A store that tells of every result written through it, whether or not it was the first."""

    def __init__(self, opened: Store, replica: str) -> None:
        super().__init__(opened._database)
        self._replica = replica

    def change(
        self,
        federation: str,
        news: bool,
        work: Callable[Concatenate[sa.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Change, and say so if it is the end of a round."""
        at = time.monotonic()
        done = super().change(federation, news, work, *args, **kwargs)
        if work is closing.write_result:
            self._tell(at, bool(done), *args)
        return done

    def _tell(self, at: float, won: bool, contract: Any, decided: Any, result: Any, *rest: Any) -> None:
        del contract, rest
        computed = Computed(replica=self._replica, round=decided.round, digest=result.digest, won=won, at=at)
        print(json.dumps(asdict(computed)), flush=True)


async def _serve(url: str, replica: str) -> None:
    store = Witnessed(engine.open_store(url), replica)
    federation = Federation(store, NAME)
    watch = federation.watch()
    closer = asyncio.create_task(Closer(federation).run())
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    federation.drain()
    await closer
    await asyncio.to_thread(watch.close)
    store.close()


def main() -> None:
    """Be a replica, if a store and a name are given; else start a PostgreSQL server and print the figures."""
    if len(sys.argv) == 3:
        logs.configure(terminal=Path("/dev/null").open("w"))  # noqa: SIM115 (as long as the process lives)
        asyncio.run(_serve(sys.argv[1], sys.argv[2]))
        return
    from tests.support.postgres import PostgresServer

    postgres = PostgresServer()
    postgres.start()
    with tempfile.TemporaryDirectory() as folder, postgres.database() as url:
        figures = run(url, Path(folder), int(sys.argv[1]) if len(sys.argv) == 2 else 1000)
    postgres.close()
    print("\n".join([*figures.lines(), *(f"  MISSED: {problem}" for problem in figures.problems())]))


if __name__ == "__main__":
    main()

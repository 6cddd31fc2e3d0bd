"""Two replicas racing to close the same rounds, while updates still come in: one manifest and one result each.

Each replica is a process with a store, a `Federation` and a `Closer` of its own, as `aggregator serve` has. Three of five updates
are a round's quorum, and its deadline has passed by then: the third makes it due, and both replicas hear of it in the same moment.
Up to two more come in seeded moments after that, from this process, as a further replica would write them. So the replicas may
find the round made of different sets, and a decision may meet an update that it did not see. Run as a program with a store and a
name this is one replica; it prints a JSON line for every manifest it has tried to write down and every result it has computed.
"""

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from aggregator import verify
from aggregator.closing import Closer
from aggregator.federation import Federation
from aggregator.manifest import RoundManifest
from aggregator.results import Result
from aggregator.store import engine, federations, updates
from aggregator.store import rounds as round_rows
from aggregator.store.engine import Store
from aggregator.store.updates import UpdateKey
from shared import logs
from shared.errors import BadOffset, StaleRound
from tests.chaos.crowd import ROOT
from tests.chaos.served import ENVIRONMENT
from tests.support import adapters, closed_rounds

P = ParamSpec("P")
T = TypeVar("T")

NAME = "demo"
"""The federation that `closed_rounds` makes."""
REPLICAS = ("replica-a", "replica-b")
PATIENTS = {"canon": 50, "ge": 77, "philips": 96, "siemens": 273, "toshiba": 31}
QUORUM = 3
DEADLINE_S = 0.001
"""Past before the quorum is in: from then on the round is due."""
LATE_S = 0.006
"""Updates beyond the quorum come within this time after it, about as long as a replica takes to decide."""
RACED, TOGETHER, DIFFERED = 0.25, 0.1, 0.02
"""Shares of rounds whose result both replicas must have computed, that both must have decided at overlapping times, and that they
must have decided differently: below them the figure says little about races."""
ROUND_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A manifest that a replica tried to write down, from `began` to `ended` (time.monotonic).

    `inputs`: its input digest. `won`: it is the one that was written down; else the compare-and-swap was refused.
    """

    replica: str
    round: int
    inputs: str
    won: bool
    began: float
    ended: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """A result that a replica computed from the manifest with these `inputs`, as `Decided` has them; `at`: when it had."""

    replica: str
    round: int
    inputs: str
    digest: str
    won: bool
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What came of a round's updates: digests of the accepted ones by site, and how many came when it was closing already."""

    accepted: Mapping[str, str]
    late: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured."""

    rounds: int
    duration_s: float
    decided: Sequence[Decided]
    computed: Sequence[Computed]
    sent: Mapping[int, Sent]
    recorded: Mapping[int, RoundManifest]
    """The manifest of every closed round."""
    versions: int
    verified: Mapping[int, str]
    """The digest that `aggregator verify` computes from the stored updates, or the difference it found."""

    @property
    def raced(self) -> int:
        """Rounds whose result both replicas computed."""
        return sum(len({one.replica for one in found}) == len(REPLICAS) for found in _by_round(self.computed).values())

    @property
    def together(self) -> int:
        """Rounds that both replicas tried to decide at overlapping times."""
        return sum(_overlap(found) for found in _by_round(self.decided).values())

    @property
    def differing(self) -> int:
        """Rounds for which the two replicas decided different manifests."""
        return sum(
            any(a.replica != b.replica and a.inputs != b.inputs for a in found for b in found)
            for found in _by_round(self.decided).values()
        )

    def lines(self) -> list[str]:
        """Return the figures in words."""
        both = [found for found in _by_round(self.computed).values() if len(found) == len(REPLICAS)]
        apart = sorted(max(one.at for one in found) - min(one.at for one in found) for found in both) or [0.0]
        late, refused = sum(sent.late for sent in self.sent.values()), sum(sent.refused for sent in self.sent.values())
        sizes = [len(manifest.entries) for manifest in self.recorded.values()]
        return [
            f"{self.rounds} rounds, two replicas on PostgreSQL, {self.duration_s:.1f} s: {len(self.recorded)} closed, of "
            + ", ".join(f"{size} updates: {sizes.count(size)}" for size in sorted(set(sizes))),
            f"  manifests: decided at the same time in {self.together} rounds ({self.together / self.rounds:.0%}), differently "
            f"in {self.differing} ({self.differing / self.rounds:.0%}); {len(self.decided)} compare-and-swaps, "
            f"{sum(not one.won for one in self.decided)} refused; written down by: {_wins(self.decided)}",
            f"  updates that came when the round was due: {late}; accepted {late - refused}, too late {refused}",
            f"  results: computed by both in {self.raced} rounds ({self.raced / self.rounds:.0%}), finished "
            f"{1e3 * apart[len(apart) // 2]:.1f} ms apart (median); written down by: {_wins(self.computed)}",
            f"  versions: {self.versions}; verified: "
            f"{sum(self.verified.get(n) == manifest.result_digest for n, manifest in self.recorded.items())}",
        ]

    def problems(self) -> list[str]:
        """Return each target that was missed."""
        found = [f"round {n} is not closed" for n in range(1, self.rounds + 1) if n not in self.recorded]
        if self.versions != self.rounds:
            found.append(f"{self.versions} versions were made in {self.rounds} rounds")
        decided, computed = _by_round(self.decided), _by_round(self.computed)
        for number, manifest in sorted(self.recorded.items()):
            said = self._problems_of(number, manifest, decided[number], computed[number])
            found += [f"round {number}: {problem}" for problem in said]
        for name, count, share in (
            ("computed by both", self.raced, RACED),
            ("decided at the same time", self.together, TOGETHER),
            ("decided differently", self.differing, DIFFERED),
        ):
            if count < int(share * self.rounds):
                found.append(f"only {count} of {self.rounds} rounds were {name}, at least {share:.0%} are wanted")
        return found

    def _problems_of(
        self, number: int, manifest: RoundManifest, decided: Sequence[Decided], computed: Sequence[Computed]
    ) -> Iterator[str]:
        if (fixed := [one.inputs for one in decided if one.won]) != [manifest.input_digest]:
            yield f"the manifests written down were {fixed}, the one that stands is {manifest.input_digest}"
        if {one.inputs for one in computed} != {manifest.input_digest}:
            yield f"results were computed from other manifests than the one that stands: {computed}"
        if {one.digest for one in computed} != {manifest.result_digest}:
            yield f"there are several results: {computed}, recorded is {manifest.result_digest}"
        if sum(one.won for one in computed) != 1:
            yield f"the result was written down by {[one.replica for one in computed if one.won]}"
        if (inside := {entry.site: entry.digest for entry in manifest.entries}) != self.sent[number].accepted:
            yield f"accepted were the updates of {sorted(self.sent[number].accepted)}, in the manifest are {sorted(inside)}"
        if (said := self.verified.get(number)) != manifest.result_digest:
            yield f"verify says {said}"


Event = TypeVar("Event", Decided, Computed)


def _by_round(events: Iterable[Event]) -> defaultdict[int, list[Event]]:
    found: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        found[event.round].append(event)
    return found


def _overlap(decided: Sequence[Decided]) -> bool:
    return any(a.replica != b.replica and a.began < b.ended and b.began < a.ended for a in decided for b in decided)


def _wins(events: Sequence[Decided] | Sequence[Computed]) -> str:
    return ", ".join(f"{name} {sum(one.won for one in events if one.replica == name)}" for name in REPLICAS)


def run(url: str, folder: Path, rounds: int = 1000, seed: int = 0) -> Figures:
    """Let two replicas race through so many rounds in the empty PostgreSQL database at `url`."""
    folder.mkdir(parents=True, exist_ok=True)
    policy = {"quorum": QUORUM, "deadline_s": DEADLINE_S, "grace_s": 0.0}
    store = closed_rounds.make(folder, PATIENTS, rounds, url, **policy)
    store.write(round_rows.start_clock, NAME, time.time())
    rng, sent, changed = random.Random(seed), dict[int, Sent](), threading.Event()
    watch = store.watch(lambda federation, news: changed.set())
    try:
        with ExitStack() as stack:
            replicas = [stack.enter_context(_replica(name, url)) for name in REPLICAS]
            began = time.monotonic()
            for number in range(1, rounds + 1):
                sent[number] = _send(store, rng)
                _until_over(store, number, changed)
            duration_s = time.monotonic() - began
            said = [line for replica in replicas for line in replica()]
        return _figures(store, rounds, duration_s, said, sent)
    finally:
        watch.close()
        store.close()


def _send(store: Store, rng: random.Random) -> Sent:
    """Put a quorum of updates into the open round; no replica hears of them before the last. Then send the late ones."""
    layout = store.read(federations.contract, NAME).manifest.layout
    sites = rng.sample(sorted(PATIENTS), QUORUM + rng.randrange(len(PATIENTS) - QUORUM + 1))
    keys = []
    for site in sites:
        payload = adapters.delta(layout, seed=rng.getrandbits(32))
        keys.append(closed_rounds.announce(store, site, payload))
        store.write(updates.stage, keys[-1], 0, payload)
    for key in keys[: QUORUM - 1]:
        store.write(updates.accept, key, time.time())
    accepted = keys[: QUORUM - 1]
    moments = [0.0, *sorted(rng.uniform(0.0, LATE_S) for _ in keys[QUORUM:])]
    due = time.monotonic()
    for key, moment in zip(keys[QUORUM - 1 :], moments, strict=True):
        time.sleep(max(0.0, due + moment - time.monotonic()))
        if _accept(store, key):
            accepted.append(key)
    return Sent(
        accepted={key.site: key.digest for key in accepted},
        late=len(keys) - QUORUM,
        refused=len(keys) - len(accepted),
    )


def _accept(store: Store, key: UpdateKey) -> bool:
    """Make an update count as an upload's end does. Returns False if the round is closing or closed."""
    try:
        store.change(NAME, False, updates.accept, key, time.time())
    except (StaleRound, BadOffset):  # BadOffset: it is closed and what was not accepted is dropped
        return False
    return True


def _until_over(store: Store, number: int, changed: threading.Event) -> None:
    """Return once a round is closed. Raises TimeoutError."""
    end = time.monotonic() + ROUND_TIMEOUT_S
    while store.read(round_rows.state, NAME, number).phase != "closed":
        if time.monotonic() > end:
            raise TimeoutError(f"round {number} was not closed by either replica within {ROUND_TIMEOUT_S:.0f} s")
        changed.wait(0.5)
        changed.clear()


def _figures(
    store: Store, rounds: int, duration_s: float, said: Sequence[Mapping[str, Any]], sent: Mapping[int, Sent]
) -> Figures:
    records = [record for record in store.read(round_rows.records, NAME) if record.state.phase == "closed"]
    checks = verify.verify(store, NAME)
    return Figures(
        rounds=rounds,
        duration_s=duration_s,
        decided=[Decided(**line["decided"]) for line in said if "decided" in line],
        computed=[Computed(**line["computed"]) for line in said if "computed" in line],
        sent=sent,
        recorded={r.state.number: RoundManifest.from_bytes(r.manifest) for r in records},
        versions=store.read(federations.last_version, NAME),
        verified={check.round: check.difference or check.digest for check in checks if check.phase == "closed"},
    )


@contextmanager
def _replica(name: str, url: str) -> Iterator[Callable[[], list[Any]]]:
    """Start a replica, return once it watches; what is yielded ends it and returns what it has said."""
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

            def results() -> list[Any]:
                stdin.close()
                reader.join()
                if process.wait(ROUND_TIMEOUT_S) != 0:
                    raise RuntimeError(f"{name} ended with status {process.returncode}")
                return [json.loads(line) for line in lines]

            yield results
        finally:
            process.kill()


# --- one replica ----------------------------------------------------------------------------------------------------


class Witnessed(Store):
    """A store that tells of every manifest and every result written through it, whether or not it was the first."""

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
        """Change, and say so if it is the decision about a round or its end."""
        began = time.monotonic()
        done = super().change(federation, news, work, *args, **kwargs)
        ended, decided = time.monotonic(), next((value for value in args if isinstance(value, RoundManifest)), None)
        if decided is None:
            return done
        facts = {"replica": self._replica, "round": decided.round, "inputs": decided.input_digest, "won": bool(done)}
        result = next((value for value in args if isinstance(value, Result)), None)
        if result is None:
            print(json.dumps({"decided": {**facts, "began": began, "ended": ended}}), flush=True)
        else:
            print(json.dumps({"computed": {**facts, "digest": result.version.digest, "at": began}}), flush=True)
        return done


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

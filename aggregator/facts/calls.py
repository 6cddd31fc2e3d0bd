"""What this process counts of the calls it answers, since it was started. The store knows nothing of it."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aggregator.rounds import FederationState
from shared.names import plain
from shared.rpc import PURPOSES, CallRecord

ROUNDS = 20
"""The last rounds that are told apart."""
MOST_TEXT = 300
BOUNDS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the classes of durations. AwaitRound is held for up to 30 s on purpose."""
ROLES = ("coordinator", "observer")
OTHERS = "(other)"
"""Who is neither an enrolled site nor a person is counted under one name: made-up names cost no memory."""


@dataclass(slots=True)
class Tally:
    """Sums over calls. Bytes are those of the messages; `payload` of them are tensor bytes. `up` is towards the aggregator."""

    calls: int = 0
    retries: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    payload_up: int = 0
    payload_down: int = 0

    def add(self, record: CallRecord) -> None:
        """Count a call that is over."""
        self.calls += 1
        self.retries += record.attempt > 0
        (_, bytes_up, payload_up), (_, bytes_down, payload_down) = record.up, record.down
        self.bytes_up, self.payload_up = self.bytes_up + bytes_up, self.payload_up + payload_up
        self.bytes_down, self.payload_down = self.bytes_down + bytes_down, self.payload_down + payload_down

    def plus(self, other: "Tally") -> "Tally":
        """Return the sum of both."""
        return Tally(*(getattr(self, name) + getattr(other, name) for name in Tally.__slots__))


@dataclass(slots=True)
class Durations:
    """How many calls took how long: `counts` by the classes of BOUNDS_S and one beyond, and their sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, duration_s: float) -> None:
        """Count a call."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that did not go well. `at` in seconds since 1970."""

    at: float
    rpc: str
    code: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The sums as they stood at a moment, without probes.

    `since`: when this process was started; `failures`: the last one of each site.
    """

    since: float
    by_site: Mapping[str, Tally]
    by_round: Mapping[tuple[int, str], Tally]
    failures: Mapping[str, Failure]


class Calls:
    """The tallies. `state`: the federation as it is at hand, for the names of its sites and its round."""

    def __init__(self, state: Callable[[], FederationState | None], clock: Callable[[], float]) -> None:
        self._state, self._clock = state, clock
        self.since, self._newest = clock(), 0
        self.by_kind: dict[tuple[str, str, str], Tally] = defaultdict(Tally)
        """By caller, method and status."""
        self.by_round: dict[tuple[int, str], Tally] = defaultdict(Tally)
        """By round and site, of the last ROUNDS rounds."""
        self.durations: dict[str, Durations] = defaultdict(Durations)
        """By method."""
        self.failures: dict[str, Failure] = {}
        """The last one, by site."""

    def note(self, record: CallRecord, code: str, error: str, duration_s: float) -> None:
        """Count a call that is over: a `shared.rpc.Finished`."""
        state = self._state()
        caller = _caller(record.site, state)
        self.by_kind[caller, record.method, code].add(record)
        self.durations[record.method].add(duration_s)
        if state is None or caller not in state.sites:
            return
        if error:
            self.failures[caller] = Failure(self._clock(), record.method, code, plain(error, MOST_TEXT))
        newest = state.round.number
        if newest > self._newest:
            self._newest = newest
            for old in [key for key in self.by_round if key[0] <= newest - ROUNDS]:
                del self.by_round[old]
        if max(0, newest - ROUNDS) < record.round <= newest:
            self.by_round[record.round, caller].add(record)

    def counted(self) -> Counted:
        """Return the sums as they are now, for another thread to read."""
        by_site: dict[str, Tally] = defaultdict(Tally)
        for (caller, method, _), tally in self.by_kind.items():
            if PURPOSES.get(method) == "probe":
                continue
            by_site[caller] = by_site[caller].plus(tally)
        return Counted(since=self.since, by_site=by_site, by_round=dict(self.by_round), failures=dict(self.failures))


def _caller(name: str, state: FederationState | None) -> str:
    """Return the name to count under: few, whoever calls. No site is named in brackets."""
    if state is not None and name in state.sites:
        return name
    role = name.partition(":")[0]
    return f"({role})" if role in ROLES else OTHERS

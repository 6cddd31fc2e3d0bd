"""Runs one case and says what came of it: crash, hang, too much memory, refusal or acceptance.

Time: a case that takes more than a second of this process's CPU time (all threads) hangs. One that takes more than a second of
the clock and less of the CPU waits, or the machine was busy with something else: it is run again, and hangs if it takes as long
every time.
Memory: the peak of tracemalloc, which is started for each case and stopped after it, so that it sees all that the case takes and
nothing else; numpy reports its arrays there. What protobuf and gRPC take in C is not seen; the largest message bounds it.
"""

import json
import time
import traceback
import tracemalloc
from collections import Counter
from dataclasses import asdict, dataclass, field

from tests.fuzz.target import HARMLESS, MARGIN_BYTES, Target, is_documented

HANG_S = 1.0
TRIES = 3
FAULTS = ("crash", "hang", "allocation")


@dataclass(frozen=True, slots=True)
class Fault:
    """What no case may do. `kind`: one of FAULTS; `what`: in a line; `trace`: where, for a crash."""

    kind: str
    what: str
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """One case: how it ended, its faults, CPU and clock seconds, and the bytes at its peak beyond its tensors'."""

    label: str
    faults: tuple[Fault, ...]
    cpu_s: float
    wall_s: float
    over_bytes: int

    @property
    def signature(self) -> str:
        """What tells one fault from another: of a crash the line it came from."""
        return "; ".join(
            f"{fault.kind} {''.join(fault.trace.splitlines()[-3:-2])} {self.label}" for fault in self.faults
        )


def run(target: Target, data: bytes) -> Seen:
    """Run a case, again if it may have been kept waiting by others."""
    seen = _once(target, data)
    tries = 1
    while tries < TRIES and seen.cpu_s <= HANG_S < seen.wall_s:
        seen, tries = _once(target, data), tries + 1
    return seen


def _once(target: Target, data: bytes) -> Seen:
    label, faults = "", []
    ready = target.ready(data)
    tracemalloc.start(1)
    cpu, wall = time.process_time(), time.monotonic()
    try:
        label = ready.run()
    except Exception as error:
        label = type(error).__name__
        if not is_documented(error):
            faults.append(Fault("crash", f"{label}: {str(error)[:200]}", traceback.format_exc(limit=-8)))
    cpu_s, wall_s = time.process_time() - cpu, time.monotonic() - wall
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if cpu_s > HANG_S or wall_s > HANG_S:
        faults.append(Fault("hang", f"{cpu_s:.2f} s of CPU, {wall_s:.2f} s of the clock"))
    over = peak - ready.payload_bytes
    if over > MARGIN_BYTES:
        faults.append(Fault("allocation", f"{peak} bytes, the manifest says {ready.payload_bytes}"))
    return Seen(label, tuple(faults), cpu_s, wall_s, over)


@dataclass
class Tally:
    """What came of the cases of one target."""

    name: str
    mutations: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    """How many were accepted, refused by each class and status, or ended otherwise."""
    faults: dict[str, int] = field(default_factory=dict)
    most_cpu_s: float = 0.0
    most_over_bytes: int = 0
    """The largest peak beyond what a manifest said: MARGIN_BYTES is the limit."""
    duration_s: float = 0.0

    def add(self, seen: Seen) -> None:
        """Count a case."""
        self.mutations += 1
        self.outcomes = _sum(self.outcomes, {seen.label: 1})
        self.faults = _sum(self.faults, {fault.kind: 1 for fault in seen.faults})
        self.most_cpu_s = max(self.most_cpu_s, seen.cpu_s)
        self.most_over_bytes = max(self.most_over_bytes, seen.over_bytes)

    def to_json(self) -> str:
        """Return the figures as text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Tally":
        """Undo `to_json`."""
        return cls(**json.loads(text))

    def with_(self, other: "Tally") -> "Tally":
        """Return the figures of both together: of two processes side by side."""
        return Tally(
            self.name,
            self.mutations + other.mutations,
            _sum(self.outcomes, other.outcomes),
            _sum(self.faults, other.faults),
            max(self.most_cpu_s, other.most_cpu_s),
            max(self.most_over_bytes, other.most_over_bytes),
            max(self.duration_s, other.duration_s),
        )

    @property
    def accepted(self) -> int:
        """Mutations that did no harm."""
        return sum(count for label, count in self.outcomes.items() if label in HARMLESS)

    @property
    def refused(self) -> int:
        """Mutations that were refused in a documented way."""
        return max(0, self.mutations - self.accepted - self.faults.get("crash", 0))

    @property
    def is_good(self) -> bool:
        """Whether nothing happened that must not."""
        return not any(self.faults.values())


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return dict(Counter(one) + Counter(other))

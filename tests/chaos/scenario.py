"""What goes wrong in one run: a pure function of its seed and of what undisturbed runs pass."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from experiments.relay import Direction
from tests.chaos.points import STEP, Fault

AGGREGATOR = "aggregator"
"""The role of every aggregator; with two replicas either may meet the fault, whichever comes to the point."""
SURE: Mapping[str, int] = {"Join": 1, "AwaitRound": 5, "heard": 5, "begin_closing": 9, "write_result": 9}
"""Points that time decides how often are passed (replicas race, a call is repeated), and how often they are for sure."""
SURE_BYTES = 26_000
"""What each site's connection carries for sure, either way."""
TRAINING = (STEP, "training")
"""What the points have in their names at which a kill leaves an epoch half trained, or a checkpoint half written."""
TRAINING_SHARE = 0.3
"""Of the kills of agents; the others strike anywhere."""
PAUSES = 16
MAX_LATENCY_S = 0.05
MAX_REFUSAL_S = 3.0

FaultKind = Literal[
    "kill aggregator", "kill agent", "fill aggregator", "fill agent",
    "delay", "reset", "refuse", "truncate", "half_open", "duplicate",
]  # fmt: skip
LIKELY: Mapping[FaultKind, int] = {
    "kill aggregator": 6,
    "kill agent": 6,
    "fill aggregator": 1,
    "fill agent": 2,
    "delay": 1,
    "reset": 1,
    "refuse": 1,
    "truncate": 1,
    "half_open": 1,
    "duplicate": 1,
}
"""Of so many each."""
SOFT: frozenset[FaultKind] = frozenset({"fill aggregator", "fill agent", "delay"})
"""What is no fault enough for a run: another one comes with it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a federation runs on. `chunk_bytes` 0 is as shipped, where a tiny model's update is one message.

    With `codec` bf16 a site keeps what an update could not say, and its next update depends on it.
    """

    store: Literal["SQLite", "PostgreSQL"]
    chunk_bytes: int
    tls: bool
    codec: Literal["f32", "bf16"] = "f32"

    @property
    def replicas(self) -> tuple[str, ...]:
        """Names of the serving processes."""
        return (AGGREGATOR,) if self.store == "SQLite" else ("replica-a", "replica-b")

    def __str__(self) -> str:
        served = "one aggregator" if self.store == "SQLite" else "two replicas"
        chunks = f"chunks of {self.chunk_bytes} bytes" if self.chunk_bytes else "chunks as shipped"
        return f"{self.store}, {served}, {'mutual TLS' if self.tls else 'plain'}, {chunks}, {self.codec}"


SETTINGS = (
    Setting("SQLite", 0, False),
    Setting("SQLite", 1024, False, "bf16"),
    Setting("SQLite", 1024, True),
    Setting("PostgreSQL", 1024, True),
)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What happens to a site's network: to its next connection, when `after` bytes went `direction`, or (delay) all the time.

    `seconds`: one way's latency of a delay; how long no connection is taken after a refusal.
    """

    role: str
    kind: FaultKind
    direction: Direction
    after: int
    seconds: float

    def __str__(self) -> str:
        if self.kind == "delay":
            return f"{self.role}: every segment is delayed by {1000 * self.seconds:.0f} to {2000 * self.seconds:.0f} ms"
        way = "to" if self.direction == "up" else "from"
        return f"{self.role}: {self._what_happens} after {self.after} bytes {way} the aggregator"

    @property
    def _what_happens(self) -> str:
        if self.kind == "duplicate":
            return "a segment comes twice"
        if self.kind == "refuse":
            return f"connection reset, and refused for up to {self.seconds:.1f} s,"
        return {"reset": "connection reset", "truncate": "connection cut short", "half_open": "connection half-open"}[
            self.kind
        ]


@dataclass(frozen=True, slots=True)
class Passed:
    """What an undisturbed run passed: its points, and the bytes on each site's connection up and down."""

    points: Mapping[str, Mapping[str, int]]
    bytes: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One run's setting and faults. Times in seconds."""

    seed: int
    setting: Setting
    faults: tuple[Fault, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    pauses: tuple[float, ...] = (0.0,)
    """How long a process stays down, by the number of the restart."""
    full_for_s: float = 0.0
    kinds: tuple[FaultKind, ...] = field(default=())

    @property
    def disks(self) -> tuple[str, ...]:
        """Roles that live on a small disk of their own."""
        return tuple(sorted({fault.role for fault in self.faults if fault.action == "fill"}))

    def lines(self) -> list[str]:
        """Say it to a reader."""
        return [f"seed {self.seed}: {self.setting}", *(f"  to happen: {one}" for one in (*self.faults, *self.troubles))]


def draw(seed: int, passed: Mapping[Setting, Passed], disks: bool) -> Scenario:
    """Return the scenario of a seed: a SIGKILL or a network fault at least. Without `disks` none is ever full."""
    rng = random.Random(f"chaos {seed}")
    setting = rng.choice(SETTINGS)
    kinds = rng.choices(list(LIKELY), list(LIKELY.values()), k=rng.choice((1, 1, 2, 3)))
    kinds = [_possible(kind, setting, disks) for kind in kinds]
    if all(kind in SOFT for kind in kinds):
        kinds.append(rng.choice(("kill aggregator", "kill agent")))
    faults = [_fault(rng, kind, passed[setting]) for kind in kinds if kind.startswith(("kill", "fill"))]
    troubles = [_trouble(rng, kind, passed[setting]) for kind in kinds if not kind.startswith(("kill", "fill"))]
    return Scenario(
        seed=seed,
        setting=setting,
        faults=tuple(dict.fromkeys(faults)),
        troubles=tuple(troubles),
        pauses=tuple(round(2.0 * rng.random() ** 2, 3) for _ in range(PAUSES)),
        full_for_s=round(rng.uniform(0.3, 3.0), 3),
        kinds=tuple(kinds),
    )


def kind_of(fault: Fault | Trouble) -> FaultKind:
    """Return the kind that a fault was drawn as."""
    if isinstance(fault, Trouble):
        return fault.kind
    if fault.action == "kill":
        return "kill aggregator" if fault.role == AGGREGATOR else "kill agent"
    return "fill aggregator" if fault.role == AGGREGATOR else "fill agent"


def strikes_training(fault: Fault) -> bool:
    """Whether a fault comes in the middle of a round's training."""
    return any(part in fault.point for part in TRAINING)


def _possible(kind: FaultKind, setting: Setting, disks: bool) -> FaultKind:
    if kind == "fill aggregator" and (setting.store != "SQLite" or not disks):
        return "kill aggregator"
    return "kill agent" if kind == "fill agent" and not disks else kind


def _fault(rng: random.Random, kind: FaultKind, passed: Passed) -> Fault:
    action, _, party = kind.partition(" ")
    role = AGGREGATOR if party == AGGREGATOR else rng.choice(sorted(passed.bytes))
    points = passed.points[role]
    point = rng.choice(_candidates(rng, kind, points))
    sure = SURE.get(point.partition(":")[0], points[point])
    return Fault(role, point, rng.randint(1, min(points[point], sure)), "kill" if action == "kill" else "fill")


def _candidates(rng: random.Random, kind: FaultKind, points: Mapping[str, int]) -> list[str]:
    """Return the points to draw from: of some kills of an agent those of training, half of them a step, half a file's."""
    names = sorted(points)
    if kind != "kill agent" or rng.random() >= TRAINING_SHARE:
        return names
    part = rng.choice(TRAINING)
    return [name for name in names if part in name] or names


def _trouble(rng: random.Random, kind: FaultKind, passed: Passed) -> Trouble:
    role = rng.choice(sorted(passed.bytes))
    direction: Direction = rng.choice(("up", "down"))
    after = rng.randrange(min(passed.bytes[role][direction], SURE_BYTES))
    longest = MAX_LATENCY_S if kind == "delay" else MAX_REFUSAL_S
    return Trouble(role, kind, direction, after, round(longest * rng.uniform(0.1, 1.0), 3))

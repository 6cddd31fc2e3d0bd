"""What a comparison consists of: its setting, fixed before the first cell, and its cells in order."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import site_agent.models
from experiments.comparison import extensions
from experiments.comparison.contenders import Group
from experiments.comparison.extensions import everyone
from experiments.comparison.scenarios import SCENARIOS, SHIFTED, Phantom, Real
from experiments.comparison.shots import BASES, UNSEEN
from shared.errors import InputError
from site_agent.data.cases import CASES
from site_agent.data.phantom import PhantomConfig
from site_agent.models.config import Frames

if TYPE_CHECKING:
    from experiments.comparison.cells import Bench

WEIGHTS = Path(site_agent.models.__file__).parent / "demo"
"""The demo's backbone, which was pre-trained on phantoms."""
ONE_FRAME = "one-frame-backbone"
REAL = "real"
PHANTOM_CACHE_MB, REAL_CACHE_MB = 16_384, 65_536
"""Disk for frozen activations: a run on 513 real patients has some 27 GB of them, with three views of two frames each."""
SEVERAL = 10
"""Runs of the core methods: with ten a two-sided signed-rank test can reach p = 0.002, with five no less than 0.0625."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that decides what a comparison's cells are. Fixed when its folder is made: another plan needs another folder."""

    out: Path
    weights: Path
    weights_size: str = ""
    data: Path | None = None
    """Prepared cohorts of real patients; None: the phantom."""
    runs: int = SEVERAL
    """Of the core methods; of real data, folds x shuffles."""
    other_runs: int = 5
    rounds: int = 8
    local_epochs: int = 2
    augmentation: str = "none"
    frames: Frames = "stacked"
    scale: float = 1.0
    test_cases: int = 100

    def __post_init__(self) -> None:
        PhantomConfig(scale=self.scale)  # refuses one that no cohort can have

    @property
    def synthetic(self) -> bool:
        return self.data is None

    @property
    def source(self) -> Phantom | Real:
        """Where the cells' cohorts come from."""
        if self.data is not None:
            return Real(folder=self.data)
        return Phantom(folder=self.out / "cohorts", scale=self.scale, test_cases=self.test_cases)

    @property
    def one_frame(self) -> Path:
        """Weights of a network that was pre-trained on single frames: CineMA's own, or with phantoms one that is made here."""
        return self.out / ONE_FRAME if self.synthetic else self.weights

    def bench(self, depth: int, width: int) -> "Bench":
        """Return what all cells have in common; the network's number of blocks and embedding dimension."""
        from experiments.comparison.cells import Bench  # which brings PyTorch, and lists of cells need none

        return Bench(
            weights=self.weights,
            weights_size=self.weights_size,
            one_frame=self.one_frame,
            depth=depth,
            width=width,
            cache=self.out / "activations",
            cache_mb=PHANTOM_CACHE_MB if self.synthetic else REAL_CACHE_MB,
            rounds=self.rounds,
            recipe={"local_epochs": self.local_epochs, "augmentation": self.augmentation},
            adapter={"frames": self.frames},
        )

    def settled(self) -> dict[str, Any]:
        """Return what must stay the same for finished cells to belong to this plan. Files stand by their content, not their place.

        Raises InputError if there are none.
        """
        values = asdict(self)
        del values["out"], values["runs"], values["other_runs"]
        values["weights"] = _content(self.weights, "*.safetensors")
        values["data"] = _content(self.data, f"*/{CASES}") if self.data else None
        return values

    def check(self) -> None:
        """Read the network and real cohorts' images once, before the plan is frozen. Raises InputError if the network cannot be
        read, or a patient is in twice."""
        from site_agent.training.site import load_base

        load_base(self.weights, self.weights_size, self.frames, warn=False)
        if isinstance(source := self.source, Real):
            source.check()


def _content(path: Path, pattern: str) -> str:
    """Return the SHA-256 of a file, or of a folder's files of a pattern, hex."""
    files = sorted(path.glob(pattern)) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"there is no {pattern} at {path}; correct the path")
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(hashlib.sha256(file.read_bytes()).digest())
    return hashed.hexdigest()


@dataclass(frozen=True, slots=True, order=True)
class Planned:
    """One cell to be run. Its text, `scenario/method/run`, is what `--cell` takes."""

    scenario: str
    run: int
    method: str

    @classmethod
    def parse(cls, text: str) -> "Planned":
        """Read a cell's text. Raises InputError."""
        scenario, _, rest = text.partition("/")
        method, _, run = rest.rpartition("/")
        if not (scenario and method and run.isdecimal()):
            raise InputError(f"--cell takes scenario/method/run, such as shifted/fedit-r16/3, got '{text}'")
        return cls(scenario, int(run), method)

    def __str__(self) -> str:
        return f"{self.scenario}/{self.method}/{self.run}"


def cells(plan: Plan, groups: tuple[Group, ...]) -> Iterator[Planned]:
    """Yield the cells of these groups. On phantoms the core meets all scenarios, everybody else the shifted one."""
    for scenario in SCENARIOS if plan.synthetic else (REAL,):
        for run in range(max(plan.runs, plan.other_runs)):
            for one in everyone():
                core = one.group == "core"
                met = core or scenario in (SHIFTED, REAL)
                tried = extensions.is_tried(one, plan.frames, synthetic=plan.synthetic)
                if one.group in groups and met and tried and run < (plan.runs if core else plan.other_runs):
                    yield Planned(scenario, run, one.key)
    if "extension" in groups:
        yield from (Planned(UNSEEN, run, base) for run in range(plan.other_runs) for base in BASES)

"""How many bytes it takes to get there: codecs and recipes on the phantom federation, until the model is as good as it gets.

Sites, rounds and rule are the project's own, in one process (`experiments.simulation`); bytes are those of the updates and
downloads that would travel, both ways, all sites together. Version 0 costs nothing in any row: sites draw it from its seed. The
plain row is what a protocol without any of this sends: FedAvg-LoRA, float32 both ways, every version as a whole. All data is
SYNTHETIC.
"""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments import output
from experiments.demo import commands
from experiments.demo.commands import SITES, DemoConfig
from experiments.output import Target

SHARE_OF_BEST = 0.98
FEWER = 8.0
FEWEST_COHORTS = 5
"""Of fewer the interval of the gap says too little to call anything no loss."""
PLAIN = ("fedavg-lora", "f32")
RECIPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fedavg-lora": ("med-duallora", {"rank_local": 0}),
    "med-duallora": ("med-duallora", {}),
    "ffa-lora": ("ffa-lora", {}),
    "fedsa-lora": ("fedsa-lora", {}),
    "rolora": ("rolora", {}),
}
"""Rows of the table: an installed recipe and its numbers. All but the first also train a local part."""
CODECS = ("f32", "bf16+zstd", "int8+zstd", "int4+zstd", "topk+zstd")
"""Each is used both ways."""


@dataclass(frozen=True, slots=True)
class Course:
    """One federation: after each round the mean AUC over the sites' held-out cases, and bytes up and down in that round."""

    seed: int
    recipe: str
    codec: str
    auc: list[float]
    up: list[int]
    down: list[int]
    down_plain: list[int]
    """What the downloads are as a whole, in float32."""
    seconds: float

    def bytes_to(self, auc: float, plain: bool) -> int | None:
        """Return the bytes until the first round that is as good as `auc`; None if there is none."""
        down = self.down_plain if plain else self.down
        for number, reached in enumerate(self.auc, 1):
            if reached >= auc:
                return sum(self.up[:number]) + sum(down[:number])
        return None


def run(
    seeds: Sequence[int],
    rounds: int,
    scale: float,
    recipes: Sequence[str],
    codecs: Sequence[str],
    jobs: int,
    out: Path,
) -> bool:
    """Measure what has not been yet, show, and return whether the targets were met."""
    machine, began = output.machine(), time.monotonic()
    wanted = dict.fromkeys([PLAIN, *((recipe, codec) for recipe in recipes for codec in codecs)])
    courses: list[Course] = []
    with ProcessPoolExecutor(jobs) as pool:
        parts = [pool.submit(of_cohort, seed, rounds, scale, list(wanted), out / "target") for seed in seeds]
        for done in as_completed(parts):
            courses += done.result()
    courses.sort(key=lambda course: course.seed)
    lines, targets, facts = judged(courses, list(wanted))
    note = f"SYNTHETIC. {len(seeds)} cohorts, {rounds} rounds, 4 sites; {time.monotonic() - began:.0f} s"
    facts |= {"machine": machine, "synthetic": True, "rounds": rounds, "scale": scale}
    return output.show("target", [note, *lines], targets, facts, out)


def of_cohort(seed: int, rounds: int, scale: float, wanted: Sequence[tuple[str, str]], out: Path) -> list[Course]:
    """Return the courses of one cohort, running those that are not in `out` yet."""
    import torch

    torch.set_num_threads(1)
    folder = out / f"seed{seed}-rounds{rounds}-scale{scale:g}"
    folder.mkdir(parents=True, exist_ok=True)
    runner, found = None, []
    for recipe, codec in wanted:
        path = folder / f"{recipe}-{codec}.json"
        if not path.exists():
            runner = runner or Runner(seed, rounds, _cohort(seed, scale, folder))
            course = runner.course(recipe, codec)
            path.with_suffix(".part").write_text(json.dumps(asdict(course)), encoding="utf-8")
            path.with_suffix(".part").rename(path)
            print(f"seed {seed} {recipe} {codec}: AUC {course.auc[-1]:.3f}, {course.seconds:.0f} s", flush=True)
        found.append(Course(**json.loads(path.read_text(encoding="utf-8"))))
    return found


def _cohort(seed: int, scale: float, folder: Path) -> Path:
    """Return the folder of a prepared cohort, made by the project's own commands as the demo makes it."""
    config = DemoConfig(out=folder, weights=_weights(), seed=seed, scale=scale)
    if not (folder / "prepared" / "done").exists():
        for command in (commands.phantom(config), commands.prepare(config)):
            subprocess.run(command.words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (folder / "prepared" / "done").touch()
    return folder / "prepared"


def _weights() -> Path:
    import site_agent.models

    return Path(site_agent.models.__file__).parent / "demo"


class Runner:
    """Runs federations of one cohort. What does not depend on the recipe, the frozen activations, is computed once."""

    def __init__(self, seed: int, rounds: int, cohort: Path) -> None:
        self._seed, self._rounds, self._cohort = seed, rounds, cohort

    def course(self, recipe: str, codec: str) -> Course:
        """Run one federation."""
        from aggregator import downloads
        from aggregator.store.changes import Step
        from experiments import simulation
        from shared import recipe as recipes
        from site_agent.training import metrics

        began = time.monotonic()
        name, numbers = RECIPES[recipe]
        made = recipes.make(name, {**numbers, "codec": codec, "broadcast_codec": codec})
        setting = simulation.Setting(self._cohort, _weights(), self._seed, self._rounds, made)
        contract, held = setting.start(len(SITES))
        trainers = dict(self._trainers(setting, contract))
        course = Course(self._seed, recipe, codec, [], [], [], [], 0.0)
        for step in simulation.federate(contract, held, trainers):
            number, way = step.version.version, None
            if step.change is not None:
                way = [Step(number, number, len(step.change.payload))], step.change.payload
            download = downloads.smallest(step.version, held, way)
            course.up.append(sum(len(update.payload) for update in step.updates.values()))
            course.down.append(len(SITES) * len(download.payload))
            course.down_plain.append(len(SITES) * len(step.version.payload))
            scored = [t.score(step.version, step.private[site], t.cohort.test()) for site, t in trainers.items()]
            course.auc.append(sum(metrics.auc(one.scores, one.labels) for one in scored) / len(scored))
            held = step.version
        return Course(**{**asdict(course), "seconds": round(time.monotonic() - began, 1)})

    def _trainers(self, setting: Any, contract: Any) -> Iterator[tuple[str, Any]]:
        from site_agent.data.cohort import Cohort

        for site in SITES:
            yield site, setting.trainer(site, contract, Cohort.load(self._cohort / site))


@dataclass(frozen=True, slots=True)
class Row:
    """One codec and recipe over all cohorts."""

    recipe: str
    codec: str
    plain: bool
    """Whether versions are sent as a whole, in float32."""
    to_target: list[int | None]
    """Bytes of each cohort until its target; None where it is not reached."""
    fewer: float
    """Median over cohorts of how many times fewer bytes that is than the plain row takes."""
    a_round: float
    """Bytes of a round, all sites together."""
    auc: list[float]
    """After the last round."""
    gap: float
    """Mean of the final AUC less that of FedAvg-LoRA in float32, cohort by cohort."""
    interval: tuple[float, float]
    """95 % interval of that mean, by Student's t."""

    @property
    def reached(self) -> int:
        """In how many cohorts the target was reached."""
        return sum(cost is not None for cost in self.to_target)

    @property
    def is_good(self) -> bool:
        """Whether every cohort reached its target, and the interval of the gap holds no loss alone."""
        enough = len(self.to_target) >= FEWEST_COHORTS
        return enough and self.reached == len(self.to_target) and self.interval[1] >= 0

    def cells(self) -> list[object]:
        """Return it as a line of the table."""
        return [
            self.recipe,
            f"{self.codec}{', whole' if self.plain else ''}",
            self.a_round / 1000,
            output.median([cost for cost in self.to_target if cost is not None]) / 1000,
            self.fewer,
            f"{self.reached} of {len(self.to_target)}",
            f"{sum(self.auc) / len(self.auc):.3f}",
            f"{self.gap:+.3f}",
            f"{self.interval[0]:+.3f} to {self.interval[1]:+.3f}",
        ]


HEAD = ("recipe", "codec", "kB a round", "kB to target", "x fewer", "reached", "final AUC", "gap", "95 % of the gap")


def judged(
    courses: Sequence[Course], wanted: Sequence[tuple[str, str]]
) -> tuple[list[str], list[Target], dict[str, Any]]:
    """Return the table, the targets, and everything as JSON values.

    The target of a cohort is 98 % of the best mean AUC that FedAvg-LoRA in float32 reaches on it.
    """
    by = {(course.seed, course.recipe, course.codec): course for course in courses}
    seeds = sorted({course.seed for course in courses})
    first = {seed: by[seed, *PLAIN] for seed in seeds}
    aim = {seed: SHARE_OF_BEST * max(course.auc) for seed, course in first.items()}
    rows = [
        _row([by[seed, recipe, codec] for seed in seeds], first, aim, plain)
        for recipe, codec, plain in [(*PLAIN, True), *((recipe, codec, False) for recipe, codec in wanted)]
    ]
    best = max((row.fewer for row in rows if row.is_good), default=0.0)
    what = "bytes to target: times fewer than plain FedAvg-LoRA, best setting without loss"
    facts = {
        "rows": [asdict(row) | {"reached": row.reached, "is_good": row.is_good} for row in rows],
        "aim": aim,
        "courses": [asdict(course) for course in courses],
    }
    return output.table(HEAD, [row.cells() for row in rows]), [Target(what, best, FEWER, "x", least=True)], facts


def _row(mine: Sequence[Course], first: Mapping[int, Course], aim: Mapping[int, float], plain: bool) -> Row:
    costs = [course.bytes_to(aim[course.seed], plain) for course in mine]
    whole = [first[course.seed].bytes_to(aim[course.seed], True) or 0 for course in mine]
    gaps = [course.auc[-1] - first[course.seed].auc[-1] for course in mine]
    passed = sum(sum(course.up) + sum(course.down_plain if plain else course.down) for course in mine)
    return Row(
        recipe=mine[0].recipe,
        codec=mine[0].codec,
        plain=plain,
        to_target=costs,
        fewer=output.median([all_ / cost for all_, cost in zip(whole, costs, strict=True) if cost]),
        a_round=passed / sum(len(course.auc) for course in mine),
        auc=[course.auc[-1] for course in mine],
        gap=sum(gaps) / len(gaps),
        interval=_interval(gaps),
    )


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean by Student's t; infinitely wide for one value."""
    from scipy import stats

    if len(values) < 2:
        return float("-inf"), float("inf")
    mean, error = sum(values) / len(values), stats.sem(values)
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(0.95, len(values) - 1, mean, error)
    return float(low), float(high)

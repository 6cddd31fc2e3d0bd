"""The cohorts that contenders meet: SYNTHETIC ones in four scenarios, or real prepared cohorts cut into folds.

A run gives every site its cases with split and fold set: trained on are the training cases outside fold VALIDATION_FOLD, thresholds
come from that fold, and what is reported is the test split.
"""

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from shared.errors import InputError
from site_agent.data import cohort as cohorts
from site_agent.data import folds
from site_agent.data.cases import CASES
from site_agent.data.cohort import Cohort
from site_agent.data.phantom import VENDORS, PhantomConfig, write_cohort
from site_agent.data.prepare import PrepareOptions, prepare

VALIDATION_FOLD = 0
SCENARIOS: dict[str, tuple[str, PhantomConfig]] = {
    "homogeneous": ("sites differ in size alone", PhantomConfig(style=0.0, label_shift=0.0, mix_shift=0.0)),
    "shifted": ("vendor style, healthy share and disease mix differ", PhantomConfig()),
    "convention": ("shifted, and sites disagree on what to call mild disease", PhantomConfig(label_convention=True)),
    "wall-bias": ("shifted, and vendors show walls of other thickness", PhantomConfig(wall_bias=1.0)),
}
"""Name → what differs between sites, and the phantom: the demo's but for that. Fixed before the first comparison."""
SHIFTED = "shifted"
TUNING_SEED, FIRST_SEED, SEEDS_APART = 903, 5000, 1000
TUNING_TEST_CASES, TEST_CASES = 400, 100
PILOT_SEEDS = (900, 901)
TUNING_SHUFFLE = 1000


def first_seed(scenario: str) -> int:
    """Return the seed of a scenario's first run: no two scenarios share a cohort. Raises InputError for an unknown scenario."""
    if scenario not in SCENARIOS:
        raise InputError(f"no scenario is called '{scenario}'; there are: {', '.join(SCENARIOS)}")
    return FIRST_SEED + SEEDS_APART * list(SCENARIOS).index(scenario)


@dataclass(frozen=True, slots=True)
class Sites:
    """One run's cohorts by site, and the seed of everything that is drawn in it. `fold`: which one is held out; 0 for a phantom."""

    cohorts: Mapping[str, Cohort]
    seed: int
    fold: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """Where synthetic cohorts lie, or are made. `scale`: of the vendors' numbers of training cases."""

    folder: Path
    scale: float = 1.0
    test_cases: int = TEST_CASES

    def sites(self, scenario: str, run: int) -> Sites:
        """Return a run's fresh cohort: training and held-out cases of its own. Raises InputError for an unknown scenario."""
        return self._made(scenario, first_seed(scenario) + run, self.test_cases)

    def tuning_sites(self) -> Sites:
        """Return the cohort that settings are chosen on, which no run of the comparison sees; many are held out."""
        return self._made(SHIFTED, TUNING_SEED, round(self.test_cases * TUNING_TEST_CASES / TEST_CASES))

    def pilot_sites(self, scenario: str, seed: int) -> Sites:
        """Return a cohort to look for a recipe on, which neither tuning nor a run sees; as many are held out as for tuning."""
        return self._made(scenario, seed, round(self.test_cases * TUNING_TEST_CASES / TEST_CASES))

    def _made(self, scenario: str, seed: int, test_cases: int) -> Sites:
        place = self.folder / f"{scenario}-seed{seed}"
        with locked(place):
            if not (place / "done").exists():
                self._make(place, scenario, seed, test_cases)
        return Sites({site: Cohort.load(place / "prepared" / site) for site in VENDORS}, seed)

    def _make(self, place: Path, scenario: str, seed: int, test_cases: int) -> None:
        shutil.rmtree(place, ignore_errors=True)
        config = replace(SCENARIOS[scenario][1], seed=seed, scale=self.scale, test_cases=test_cases)
        write_cohort(config, place / "raw", jobs=1)
        options = PrepareOptions(spacing_mm=config.spacing, size=config.shape[:2], jobs=1)
        prepare([place / "raw"], place / "prepared", options)
        shutil.rmtree(place / "raw")
        (place / "done").touch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Real:
    """Prepared cohorts of real patients, a folder a vendor, as `site-agent prepare` writes them."""

    folder: Path

    def sites(self, scenario: str, run: int) -> Sites:
        """Return run number `run`: fold run % FOLDS of shuffle run // FOLDS held out, the next one for thresholds.

        Folds are of patients, and stratified by vendor and label: every vendor's cases are dealt out by label. Cases that their
        data set calls test cases are dealt out with the rest. Raises InputError if a vendor has too few of a class.
        """
        del scenario
        shuffle, held_out = divmod(run, folds.FOLDS)
        dealt = {vendor: _dealt(one, shuffle, held_out) for vendor, one in self._loaded().items()}
        return Sites(dealt, FIRST_SEED + run, held_out)

    def check(self) -> None:
        """Read every image once. Raises InputError if there are no cohorts, or two cases have the same images."""
        _check_distinct(self._loaded())

    def _loaded(self) -> dict[str, Cohort]:
        vendors = sorted(path.parent.name for path in self.folder.glob(f"*/{CASES}"))
        if not vendors:
            raise InputError(
                f"{self.folder} holds no prepared cohorts; run `site-agent prepare RAW --out {self.folder}`"
            )
        return {vendor: Cohort.load(self.folder / vendor) for vendor in vendors}

    def tuning_sites(self) -> Sites:
        """Return one fold of a further shuffle. Its patients are held out in other folds too, which the report says."""
        return self.sites("", TUNING_SHUFFLE * folds.FOLDS)


def _dealt(one: Cohort, shuffle: int, held_out: int) -> Cohort:
    """Return a cohort with one fold held out and the others counted from VALIDATION_FOLD on."""
    by_label = {label: sum(case.label == label for case in one.cases) for label in (0, 1)}
    for label, count in by_label.items():
        if count < folds.FOLDS:
            name = cohorts.CLASS_NAMES[label]
            raise InputError(
                f"vendor {one.vendor} has {count} {name} case(s), and {folds.FOLDS} folds need one each; leave the vendor out"
            )
    drawn = folds.assign({case.key: case.label for case in one.cases}, shuffle)
    cases = tuple(
        replace(case, split="test", fold=None)
        if drawn[case.key] == held_out
        else replace(case, split="train", fold=(drawn[case.key] - held_out - 1) % folds.FOLDS)
        for case in one.cases
    )
    return replace(one, cases=cases)


def _check_distinct(loaded: Mapping[str, Cohort]) -> None:
    """Raise InputError if a patient is in twice: data sets share scans, and one must not be trained on and tested."""
    seen: dict[str, str] = {}
    for vendor, one in loaded.items():
        for case in one.cases:
            digest, name = cohorts.image_digest(cohorts.load_frames(case)), f"{vendor}/{case.key}"
            if digest in seen:
                raise InputError(f"cases {seen[digest]} and {name} have the same images; remove one row from cases.csv")
            seen[digest] = name


@contextmanager
def locked(place: Path) -> Iterator[int]:
    """One process at a time makes what is to lie at a place; the others wait for it. Yields the lock's file number."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()

"""What a synthetic cohort is made of: its knobs, the vendors' case profile, and the list of cases to draw.

Counts and healthy shares are those of M&Ms and ACDC together by scanner vendor; the disease mix per vendor is invented
(`docs/phantom.md`). Everything here is a pure function of the configuration.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from shared.errors import InputError

Vendor = Literal["siemens", "philips", "ge", "canon"]
Diagnosis = Literal["NOR", "DCM", "HCM", "MINF", "ARV"]
Split = Literal["train", "test"]
Layout = Literal["acdc", "mnms", "both"]

VENDORS: tuple[Vendor, ...] = get_args(Vendor)
DIAGNOSES: tuple[Diagnosis, ...] = get_args(Diagnosis)
DISEASES: tuple[Diagnosis, ...] = DIAGNOSES[1:]

TRAIN_CASES: dict[Vendor, int] = {"siemens": 273, "philips": 125, "ge": 77, "canon": 50}
HEALTHY_SHARE: dict[Vendor, float] = {"siemens": 0.20, "philips": 0.52, "ge": 0.27, "canon": 0.28}
DISEASE_MIX: dict[Vendor, tuple[float, float, float, float]] = {
    "siemens": (0.27, 0.30, 0.25, 0.18),
    "philips": (0.38, 0.45, 0.05, 0.12),
    "ge": (0.40, 0.28, 0.12, 0.20),
    "canon": (0.25, 0.30, 0.35, 0.10),
}
"""Shares of DCM, HCM, MINF and ARV among a vendor's diseased cases."""
COMMON_DISEASE_MIX = (0.30, 0.33, 0.20, 0.17)

MILD = 0.4
"""Severity of a mild case, as a part of the cohort's severity (label convention only)."""
CALLS_MILD_DISEASED: frozenset[Vendor] = frozenset({"siemens", "ge"})
MIN_TRAIN_CASES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomConfig:
    """All knobs. The defaults are the demo's fixed setting; none of them is chosen to favour a method."""

    seed: int = 0
    shape: tuple[int, int, int] = (64, 64, 8)
    """Voxels in x, y and slices of the raw files."""
    spacing: tuple[float, float, float] = (2.0, 2.0, 10.0)
    """mm; the third is the slice distance."""
    n_frames: int = 2
    """2 writes ED and ES only; more gives a beating cycle that starts at ED."""
    severity: float = 1.6
    """Distance of the disease means from the normal ones, in units of the physiology table."""
    noise: float = 0.6
    """Factor on the Rician noise of the style table."""
    jitter: float = 0.6
    """Factor on position (4 mm) and rotation (0.25 rad)."""
    style: float = 1.0
    """0: every vendor has the average look; 1: the style table."""
    label_shift: float = 1.0
    """0: every vendor has the pooled healthy share; 1: its own."""
    mix_shift: float = 1.0
    """0: every vendor has the common disease mix; 1: its own."""
    label_convention: bool = False
    """Mild disease is called diseased by Siemens and GE and healthy by Philips and Canon."""
    wall_bias: float = 0.0
    """1: apparent wall +1.2 mm at Philips, -0.8 mm at GE, +2.0 mm at Canon (a protocol difference)."""
    scale: float = 1.0
    """Factor on the number of training cases."""
    test_cases: int = 100
    """Held-out cases per vendor, half of them healthy."""
    vendors: tuple[Vendor, ...] = VENDORS
    layout: Layout = "both"
    """`both`: a part of Siemens in the ACDC layout, everything else in the M&Ms layout."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        for name in ("style", "label_shift", "mix_shift"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{name} must lie between 0 and 1, got {value}")
        for name in ("severity", "noise", "jitter", "wall_bias"):
            value = getattr(self, name)
            if not 0.0 <= value <= 10.0:
                raise InputError(f"{name} must lie between 0 and 10, got {value}")
        unknown = [vendor for vendor in self.vendors if vendor not in VENDORS]
        if unknown or not self.vendors or len(set(self.vendors)) != len(self.vendors):
            raise InputError(f"vendors must be some of {', '.join(VENDORS)}, each once, got {list(self.vendors)}")
        if self.layout not in get_args(Layout):
            raise InputError(f"layout must be one of {', '.join(get_args(Layout))}, got {self.layout!r}")
        if self.layout == "acdc" and self.vendors != ("siemens",):
            raise InputError(f"ACDC holds Siemens scans only: use --vendors siemens, got {', '.join(self.vendors)}")


def _check_sizes(config: PhantomConfig) -> None:
    if config.seed < 0:
        raise InputError(f"seed must not be negative, got {config.seed}")
    if len(config.shape) != 3 or any(n < 1 for n in config.shape) or max(config.shape) > 1024:
        raise InputError(f"shape must be three sizes between 1 and 1024, got {config.shape}")
    if len(config.spacing) != 3 or not all(0.1 <= step <= 50.0 for step in config.spacing):
        raise InputError(f"spacing must be three lengths between 0.1 and 50 mm, got {config.spacing}")
    if not 2 <= config.n_frames <= 99:
        raise InputError(f"n_frames must lie between 2 and 99, got {config.n_frames}")
    if not 0.0 < config.scale <= 100.0:
        raise InputError(f"scale must lie above 0 and be at most 100, got {config.scale}")
    if not 0 <= config.test_cases <= 10_000:
        raise InputError(f"test_cases must lie between 0 and 10000, got {config.test_cases}")


@dataclass(frozen=True, slots=True)
class PlannedCase:
    """One case to draw. `diagnosis` is what the site's records say; `condition` is what is in the images."""

    split: Split
    vendor: Vendor
    index: int
    diagnosis: Diagnosis
    condition: Diagnosis
    severity: float
    """Mean severity of the draw; without meaning for a normal heart."""


def train_count(config: PhantomConfig, vendor: Vendor) -> int:
    return max(MIN_TRAIN_CASES, round(TRAIN_CASES[vendor] * config.scale))


def healthy_share(config: PhantomConfig, vendor: Vendor) -> float:
    """Return the share of normal cases in a vendor's training part."""
    pooled = sum(TRAIN_CASES[v] * HEALTHY_SHARE[v] for v in VENDORS) / sum(TRAIN_CASES.values())
    return pooled + config.label_shift * (HEALTHY_SHARE[vendor] - pooled)


def disease_mix(config: PhantomConfig, vendor: Vendor) -> tuple[float, ...]:
    """Return the shares of DCM, HCM, MINF and ARV among the diseased."""
    own = DISEASE_MIX[vendor]
    return tuple(
        common + config.mix_shift * (mine - common) for common, mine in zip(COMMON_DISEASE_MIX, own, strict=True)
    )


def apportion(total: int, shares: tuple[float, ...]) -> list[int]:
    """Split `total` in whole cases closest to the shares (largest remainders; the earlier share wins a tie)."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(part) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def generator(seed: int, split: Split, vendor: Vendor, index: int) -> np.random.Generator:
    """Return the generator of one case; it depends on nothing else, so order and process count do not matter."""
    # index 0 belongs to the vendor's plan, the cases follow
    return np.random.default_rng(
        np.random.SeedSequence((seed, ("train", "test").index(split), VENDORS.index(vendor), index))
    )


def plan(config: PhantomConfig, split: Split, vendor: Vendor) -> list[PlannedCase]:
    """List the cases of one vendor and split: exact counts per class, in an order drawn from the seed."""
    total = train_count(config, vendor) if split == "train" else config.test_cases
    if total == 0:
        return []
    healthy = round(total * healthy_share(config, vendor)) if split == "train" else (total + 1) // 2
    healthy = min(max(healthy, 1), max(total - 1, 1))
    counts = [healthy, *apportion(total - healthy, disease_mix(config, vendor))]
    labels = [diagnosis for diagnosis, count in zip(DIAGNOSES, counts, strict=True) for _ in range(count)]
    rng = generator(config.seed, split, vendor, 0)
    shuffled = [labels[i] for i in rng.permutation(total)]
    mild = _mild_cases(config, vendor, shuffled, rng)
    return [
        PlannedCase(
            split=split,
            vendor=vendor,
            index=index,
            diagnosis=diagnosis,
            condition=mild.get(index, diagnosis),
            severity=config.severity * (MILD if index in mild else 1.0),
        )
        for index, diagnosis in enumerate(shuffled, start=1)
    ]


def _mild_cases(
    config: PhantomConfig, vendor: Vendor, labels: list[Diagnosis], rng: np.random.Generator
) -> dict[int, Diagnosis]:
    """Return case index (from 1) → disease drawn mildly, for half of the cases on the vendor's side of the line."""
    if not config.label_convention:
        return {}
    diseased_side = vendor in CALLS_MILD_DISEASED
    pool = [i for i, label in enumerate(labels, start=1) if (label != "NOR") == diseased_side]
    chosen = sorted(pool[i] for i in rng.permutation(len(pool))[: len(pool) // 2])
    if diseased_side:
        return {i: labels[i - 1] for i in chosen}
    drawn = rng.choice(len(DISEASES), size=len(chosen), p=np.asarray(disease_mix(config, vendor)))
    return {i: DISEASES[int(k)] for i, k in zip(chosen, drawn, strict=True)}

"""Synthetic ED/ES pairs to pre-train on: the phantom of the cohorts, drawn more widely, from seeds of its own.

Labels make hearts of every kind and are never used. Vendors and classes come in equal shares; severity is the physiology
table's own (1.0, not the demo's 1.6); noise, pose, apparent wall and a blend of two vendors' looks vary more than in any
cohort. No case of a cohort can occur: every pair has its own seed key (`pair_seed`), which `check_disjoint` proves by comparing.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from shared.errors import InputError
from site_agent.data.phantom import DIAGNOSES, VENDORS, PhantomConfig, imaging, profile, sample_pair

Part = Literal["train", "validation"]
Pairs = npt.NDArray[np.uint8]
"""(n, 2, x, y, slices): ED and ES with the grey values `prepare` would give them."""

DEMO_SEEDS = range(10)
GAMMA_SD = 0.2
"""Of log gamma, per view."""
SHIFT = 4
"""Voxels in plane, each way; the border is repeated."""
BLEND_SHARE = 0.3
"""Of the pairs, whose look lies between two vendors'."""
WALL_SD = 0.8
"""mm of apparent wall that mean nothing."""
NOISE = (0.3, 1.0)
JITTER = 1.0
SEVERITY = 1.0


def pair_seed(seed: int, part: Part, index: int) -> np.random.SeedSequence:
    """Return the key of one pair. It has six words (seed, 0, 0, 0, part, index), a cohort's case has four.

    The words must differ, not only the tuples: `SeedSequence((a, b))` is the same as `SeedSequence((a, b, 0, 0))`.
    """
    return np.random.SeedSequence(seed, spawn_key=(get_args(Part).index(part), index))


def check_disjoint(keys: Sequence[np.random.SeedSequence]) -> None:
    """Raise InputError if a pair shares its random stream with another one or with a case of a demo cohort."""
    streams = {_fingerprint(key) for key in keys}
    if len(streams) < len(keys) or streams & {_fingerprint(key) for key in _cohort_seeds()}:
        raise InputError("this seed would draw a case twice, or a case of a demo cohort; choose another --seed")


def _fingerprint(key: np.random.SeedSequence) -> bytes:
    return key.generate_state(8).tobytes()


def _cohort_seeds() -> list[np.random.SeedSequence]:
    """Keys of all cases of the demo cohorts, and of their plans (index 0)."""
    keys = []
    for config in (PhantomConfig(seed=seed) for seed in DEMO_SEEDS):
        for number, vendor in enumerate(VENDORS):
            for split, count in enumerate((profile.train_count(config, vendor), config.test_cases)):
                keys += [np.random.SeedSequence((config.seed, split, number, index)) for index in range(count + 1)]
    return keys


def draw_pair(seed: int, part: Part, index: int) -> Pairs:
    """Draw one pair (2, x, y, slices), a pure function of its arguments."""
    rng = np.random.default_rng(pair_seed(seed, part, index))
    vendor, other = (VENDORS[int(k)] for k in rng.integers(len(VENDORS), size=2))
    diagnosis = DIAGNOSES[int(rng.integers(len(DIAGNOSES)))]
    share = float(rng.uniform()) if rng.uniform() < BLEND_SHARE else 0.0
    config = PhantomConfig(severity=SEVERITY, jitter=JITTER, noise=float(rng.uniform(*NOISE)))
    look = imaging.blend(imaging.vendor_look(vendor), imaging.vendor_look(other), share)
    wall_offset = float(rng.normal(0.0, WALL_SD))
    return np.ascontiguousarray(sample_pair(config, vendor, diagnosis, rng, look=look, wall_offset=wall_offset))


def draw_pairs(seed: int, part: Part, count: int, jobs: int) -> Pairs:
    """Draw the first `count` pairs of a part; the same whatever `jobs` is."""
    draw = partial(draw_pair, seed, part)
    if jobs == 1:
        return np.stack([draw(index) for index in range(count)])
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return np.stack(list(pool.map(draw, range(count), chunksize=32)))


def view(pair: Pairs, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return a random view of a pair, grey values in 0..1: shifted in plane and with another gamma, both frames alike."""
    shift = rng.integers(-SHIFT, SHIFT + 1, size=2)
    columns, rows = (np.clip(np.arange(n) + by, 0, n - 1) for n, by in zip(pair.shape[1:3], shift, strict=True))
    curve = (np.arange(256) / 255.0) ** float(np.exp(GAMMA_SD * rng.normal()))
    return np.asarray(curve.astype(np.float32)[pair[:, columns][:, :, rows]])

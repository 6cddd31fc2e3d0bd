"""Makes mutations until there are enough: guided by the code they reach (atheris on libFuzzer), or blindly where that is not
installed. libFuzzer ends the process itself, so whoever counts must have counted before the last case returns."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.target import Target

IS_GUIDED = find_spec("atheris") is not None
WATCHED = ["shared", "aggregator", "site_agent"]
LONGEST_CASE_BYTES = 3 << 19
LONGEST_CASE_S = 60
"""A case that does not return at all ends the process after this; libFuzzer keeps its bytes."""
FRESH, FRESH_IF_LARGE = 0.1, 0.95
"""Shares of mutations that begin at a seed again; what is large takes long, and there are sizes to spare among the mutations."""
LARGE_BYTES = 30_000


def watched_imports() -> AbstractContextManager[Any]:
    """Return a context in which what is imported reports the code that cases reach."""
    if not IS_GUIDED:
        return nullcontext()
    import atheris  # type: ignore[import-untyped, unused-ignore]

    watched: AbstractContextManager[Any] = atheris.instrument_imports(include=WATCHED)
    return watched


def guided(target: "Target", heard: Callable[[bytes], None], seed: int, kept: Path) -> None:
    """Make mutations and tell `heard` of each, until it ends the process. What has reached new code is mutated further."""
    import atheris  # type: ignore[import-untyped, unused-ignore]

    seeds = target.seeds()

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        rng = Random(number)
        fresh = FRESH_IF_LARGE if len(data) > LARGE_BYTES else FRESH
        start = data if data and rng.random() > fresh else rng.choice(seeds)
        return target.mutated(start, rng)[:max_size]

    options = {
        "seed": seed + 1,  # 0 would be the clock
        "max_len": LONGEST_CASE_BYTES,
        "timeout": LONGEST_CASE_S,
        "rss_limit_mb": 4096,
        "len_control": 0,
        "verbosity": 0,
        "artifact_prefix": f"{kept}/",
    }
    atheris.Setup(["fuzz", *(f"-{name}={value}" for name, value in options.items())], heard, custom_mutator=mutate)
    atheris.Fuzz()


def blind(target: "Target", heard: Callable[[bytes], None], seed: int, count: int) -> None:
    """Make so many mutations of the seeds, and of mutations of them, and tell `heard` of each."""
    rng, known = Random(seed), target.seeds()
    for number in range(count):
        data = target.mutated(rng.choice(known), rng)
        heard(data)
        if number % 50 == 0 and len(data) < 100_000:
            known = [*known[-200:], data]

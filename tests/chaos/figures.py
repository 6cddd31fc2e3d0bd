"""The figures beside the seeded runs: each is measured in a place of its own that is removed afterwards."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.postgres import PostgresServer


@dataclass(frozen=True, slots=True)
class Shown:
    """What was measured, as lines to print, and whether it is as good as it must be."""

    lines: tuple[str, ...]
    is_good: bool


def cuts(uploads: int, seed: int) -> Shown:
    """Cut the connection of 6 MB uploads at random points."""
    from tests.chaos import cut_uploads

    found = cut_uploads.run(uploads, seed)
    return Shown(tuple(found.lines()), found.is_good)


def restarts(seed: int) -> Shown:
    """Restart the aggregator while agents wait."""
    from tests.chaos import restarts as restarted

    found = restarted.run(seed=seed)
    return Shown(tuple(found.lines()), found.is_good)


def races(rounds: int, seed: int) -> Shown:
    """Let two replicas race to close the same rounds."""
    from tests.chaos import races as raced

    with _folder() as folder, _database() as url:
        found = raced.run(url, folder, rounds, seed)
    return _shown(found.lines(), found.problems())


def endurance(rounds: int, seed: int) -> Shown:
    """Run many rounds and watch the aggregator's memory."""
    from tests.chaos import endurance as endured

    with _folder() as folder:
        found = endured.run(folder, rounds=rounds, seed=seed)
    return _shown(found.lines(), found.problems())


def sites(count: int, seed: int) -> Shown:
    """Close a round of many simulated sites, on plain connections and with mutual TLS."""
    from tests.chaos import sites as crowded

    lines: list[str] = []
    problems: list[str] = []
    for mtls in (False, True):
        with _folder() as folder:
            found = crowded.run(folder, count, mtls=mtls, seed=seed)
        lines += found.lines()
        problems += found.problems()
    return _shown(lines, problems)


def _shown(lines: Sequence[str], problems: Sequence[str]) -> Shown:
    return Shown((*lines, *(f"FAILED: {problem}" for problem in problems)), not problems)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        yield Path(folder)


@contextmanager
def _database() -> Iterator[str]:
    """Yield the URL of an empty database of a server of its own."""
    postgres = PostgresServer()
    try:
        postgres.start()
        with postgres.database() as url:
            yield url
    finally:
        postgres.close()

"""From which epoch on keeping activations pays, worked out from what its pieces take. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Pieces:
    """Seconds of one case in an epoch.

    new: with the cache, of a view seen for the first time: frozen blocks, writing, training. seen: of one read from the cache.
    uncached: of any, without it.
    """

    new: float
    seen: float
    uncached: float


def new_share(slots: int, epoch: int) -> float:
    """Expected share of cases whose view has not been seen before, in an epoch counted from 1.

    A case shows one of its `slots` views, each as likely as another: ((slots - 1) / slots) ^ (epoch - 1).
    """
    return float(((slots - 1) / slots) ** (epoch - 1))


def cached(pieces: Pieces, slots: int, epochs: int) -> list[float]:
    """Return the expected seconds per case of each epoch with the cache."""
    shares = [new_share(slots, epoch) for epoch in range(1, epochs + 1)]
    return [share * pieces.new + (1 - share) * pieces.seen for share in shares]


def saving(pieces: Pieces, slots: int, epochs: int) -> float:
    """Return how many times less so many epochs take with the cache than without it."""
    return epochs * pieces.uncached / sum(cached(pieces, slots, epochs))


def first_cheaper(with_cache: Sequence[float], without: Sequence[float]) -> int | None:
    """Return the first epoch, from 1, by whose end the cache has taken less in all than doing without; None if there is none."""
    sums = zip(accumulate(with_cache), accumulate(without), strict=True)
    return next((epoch for epoch, (a, b) in enumerate(sums, 1) if a < b), None)

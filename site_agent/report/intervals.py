"""95 % intervals for what few cases can say: of rates, of the AUC, and of paired differences of both. Closed forms, numpy only.

None of them collapses to a point where no error was made or all pairs are ordered: twelve of twelve is not certainty. An interval
is about which cases happened to be in the test set, not about what another seed or another federation would change.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Z = 1.959963984540054
"""Quantile 0.975 of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval."""

    value: float
    low: float
    high: float

    def to_jsonable(self) -> dict[str, float]:
        """Return it as JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Pairs:
    """The same n cases under two models: how many both get right, the first alone, the second alone, and neither."""

    both: int
    first: int
    second: int
    neither: int

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> "Pairs":
        """Count. first, second: bool (n,), whether each case is right."""
        counts = ((first & second), (first & ~second), (~first & second), (~first & ~second))
        return cls(*(int(one.sum()) for one in counts))

    @property
    def count(self) -> int:
        """n."""
        return self.both + self.first + self.second + self.neither


def rate(right: int, of: int) -> Estimate:
    """Return a proportion with Wilson's score interval. Source: Wilson 1927, doi:10.1080/01621459.1927.10502953."""
    p, z2 = right / of, Z * Z
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = Z / (1 + z2 / of) * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    return Estimate(p, 0.0 if right == 0 else middle - half, 1.0 if right == of else middle + half)


def rate_difference(pairs: Pairs) -> Estimate:
    """Return the first proportion minus the second, of the same cases.

    Source: Newcombe 1998, Statistics in Medicine 17:2635-2650, method 10: Wilson's limits, squared and added with the correlation
    of the two, continuity-corrected.
    """
    n, first, second = pairs.count, pairs.both + pairs.first, pairs.both + pairs.second
    one, other, phi = rate(first, n), rate(second, n), _correlation(pairs)
    down = _added(one.value - one.low, other.high - other.value, -phi)
    up = _added(one.high - one.value, other.value - other.low, -phi)
    difference = one.value - other.value
    return Estimate(difference, max(-1.0, difference - down), min(1.0, difference + up))


def _correlation(pairs: Pairs) -> float:
    first, second, n = pairs.both + pairs.first, pairs.both + pairs.second, pairs.count
    spread = first * (n - first) * second * (n - second)
    if not spread:
        return 0.0
    excess = pairs.both * pairs.neither - pairs.first * pairs.second
    corrected = max(excess - n / 2, 0.0) if excess > 0 else excess
    return corrected / math.sqrt(spread)


def _added(a: float, b: float, correlation: float = 0.0) -> float:
    """Return the length of two distances of which each is a share of a normal interval."""
    return math.sqrt(max(a * a + b * b + 2 * correlation * a * b, 0.0))


def mean(a: Estimate, b: Estimate) -> Estimate:
    """Return the mean of two figures of different cases: a balanced accuracy of its two rates, or a difference of two.

    Source: variances recovered from limits, Zou and Donner 2008, doi:10.1002/sim.3095.
    """
    value = (a.value + b.value) / 2
    low = value - _added(a.value - a.low, b.value - b.low) / 2
    return Estimate(value, low, value + _added(a.high - a.value, b.high - b.value) / 2)


# --- the area under the ROC curve -----------------------------------------------------------------------------------------


def auc(scores: np.ndarray, labels: np.ndarray) -> Estimate | None:
    """Return the AUC; None if a class is missing. scores, labels: (n,).

    Source: variance of DeLong et al. 1988, doi:10.2307/2531595, taken to the logit scale (Pepe 2003, section 5.2.4) so that limits
    stay in [0, 1]. Where it is 0, as for a perfect order, Newcombe 2006, doi:10.1002/sim.2324, method 5, which needs none.
    """
    found = _placements(scores, labels)
    if found is None:
        return None
    value, variance = _mean_placement(found), _covariance(found, found)
    if variance <= 0 or not 0 < value < 1 or min(map(len, found)) < 2:
        return _by_ranks(value, len(found[0]), len(found[1]))
    logit, half = math.log(value / (1 - value)), Z * math.sqrt(variance) / (value * (1 - value))
    return Estimate(value, _logistic(logit - half), _logistic(logit + half))


def auc_difference(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> Estimate | None:
    """Return the AUC of the first scores minus that of the second, of the same cases; None if a class is missing. (n,) each.

    Source: DeLong et al. 1988, their covariance of two placements. Where that is 0, for both order every pair alike, it says
    nothing of how they would differ on other cases: at most by 3 / n then, n cases of the rarer class, as of what was never seen
    in n (the rule of three). With one case of a class nothing bounds it.
    """
    one, other = _placements(first, labels), _placements(second, labels)
    if one is None or other is None:
        return None
    difference = _mean_placement(one) - _mean_placement(other)
    variance = _covariance(one, one) + _covariance(other, other) - 2 * _covariance(one, other)
    rarer = min(len(one[0]), len(one[1]))
    half = Z * math.sqrt(variance) if variance > 0 and rarer > 1 else 3 / rarer
    return Estimate(difference, max(-1.0, difference - half), min(1.0, difference + half))


Placements = tuple[np.ndarray, np.ndarray]
"""For each diseased case the share of normal ones below it, (m,), and for each normal one the share of diseased above, (n,)."""


def _placements(scores: np.ndarray, labels: np.ndarray) -> Placements | None:
    diseased, normal = scores[labels == 1], scores[labels == 0]
    if not len(diseased) or not len(normal):
        return None
    return _below(normal, diseased), 1 - _below(diseased, normal)


def _below(ground: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the share of `ground` below each value, ties counting half."""
    ordered = np.sort(ground)
    under, upto = (np.searchsorted(ordered, values, side=side) for side in _SIDES)
    return np.asarray((under + upto) / (2 * len(ordered)))


_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


def _mean_placement(found: Placements) -> float:
    return float(found[0].mean())


def _covariance(one: Placements, other: Placements) -> float:
    """Return the covariance of two AUCs of the same cases; a class of a single case has none to add."""
    parts = [(a - a.mean()) @ (b - b.mean()) / (len(a) * max(len(a) - 1, 1)) for a, b in zip(one, other, strict=True)]
    return float(sum(parts))


def _by_ranks(value: float, diseased: int, normal: int) -> Estimate:
    """Solve |value - t| = z sqrt(v(t)), v(t) Hanley and McNeil's variance with (m + n) / 2 - 1 in place of m - 1 and n - 1."""
    pairs = (diseased + normal) / 2 - 1

    def beyond(t: float) -> float:
        v = t * (1 - t) * (1 + pairs * ((1 - t) / (2 - t) + t / (1 + t))) / (diseased * normal)
        return abs(value - t) - Z * math.sqrt(v)

    return Estimate(value, _edge(beyond, value, 0.0), _edge(beyond, value, 1.0))


def _edge(beyond: Callable[[float], float], inside: float, outside: float) -> float:
    """Return where `beyond` turns positive between a point inside the interval and an end of the scale, by bisection."""
    if inside == outside:
        return outside
    outside += 1e-12 if outside == 0.0 else -1e-12
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if beyond(middle) <= 0 else (inside, middle)
    return (inside + outside) / 2


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0

"""The norm gate: an update that is far larger than the others of its round is quarantined. Pure.

How large is measured apart for what the low-rank part moves and for everything else that travels, so that neither hides behind the
other; and in what the recipe's rule adds up: products, or numbers as they are. Below five updates nothing is said: of four, two may
be forged, and the median is theirs. An update that is small is harmless and is let through; one that is as long as the others and
points elsewhere is for the robust rules (aggregator/robust.py).
"""

import math
import statistics
from collections.abc import Iterable, Mapping

import numpy as np

from aggregator import products, rules
from aggregator.robust import change, inner_products
from shared.layout import TensorSpec
from shared.methods import Rule
from shared.recipe import factor_of

FEWEST = 5
LOW_RANK, OTHERS = "low-rank", "others"


def norms(
    rule: Rule, base: Mapping[str, np.ndarray], tensors: Iterable[tuple[TensorSpec, np.ndarray]]
) -> dict[str, float]:
    """Return the Frobenius norms of an update's two parts, of those that it has.

    For rules on factors || (A_k - A, B_k - B) || over all modules, for others || B_k A_k - B A ||.
    """
    squared: dict[str, float] = {}
    for unit in rules.units(rule, tensors):
        name = next(iter(unit))
        part = LOW_RANK if factor_of(name) else OTHERS
        if factor_of(name) and rule != "factors":
            with products.one_thread():
                found = float(inner_products([change(base, unit)])[0, 0])
        else:
            found = sum(float(np.sum(np.square(array, dtype=np.float64))) for array in unit.values())
        squared[part] = squared.get(part, 0.0) + max(found, 0.0)
    return {part: math.sqrt(value) for part, value in sorted(squared.items())}


def too_large(sizes: Mapping[str, Mapping[str, float]], most: float) -> dict[str, str]:
    """Return the sites of a round that are more than `most` times as large as the median site, in words. None if `most` is 0.

    As large as: in the part in which it is largest, in units of that part's median. So fewer than half can be.
    """
    if not most or len(sizes) < FEWEST:
        return {}
    parts = sorted({part for norms in sizes.values() for part in norms})
    medians = {part: statistics.median(norms.get(part, 0.0) for norms in sizes.values()) for part in parts}
    times = {
        site: max(((_times(norms.get(part, 0.0), medians[part]), part) for part in parts), default=(0.0, ""))
        for site, norms in sorted(sizes.items())
    }
    limit = most * max(1.0, statistics.median_high(value for value, _ in times.values()))
    return {
        site: f"{part} part has norm {sizes[site][part]:.3g}, the median is {medians[part]:.3g} and the gate {limit:.3g} times that"
        for site, (value, part) in times.items()
        if value > limit
    }


def _times(norm: float, median: float) -> float:
    return norm / median if median else (math.inf if norm else 0.0)

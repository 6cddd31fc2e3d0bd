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
from aggregator.robust import inner_products
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
                found = float(inner_products(base, tuple(unit), [unit])[0, 0])
        else:
            found = sum(float(np.sum(np.square(array, dtype=np.float64))) for array in unit.values())
        squared[part] = squared.get(part, 0.0) + max(found, 0.0)
    return {part: math.sqrt(value) for part, value in sorted(squared.items())}


def too_large(sizes: Mapping[str, Mapping[str, float]], most: float) -> dict[str, str]:
    """Return the sites of a round with a norm above `most` times the median of all sites', in words. None if `most` is 0."""
    if not most or len(sizes) < FEWEST:
        return {}
    found: dict[str, str] = {}
    for part in sorted({part for norms in sizes.values() for part in norms}):
        median = statistics.median(norms.get(part, 0.0) for norms in sizes.values())
        for site, norms in sorted(sizes.items()):
            if site not in found and norms.get(part, 0.0) > most * median:
                found[site] = (
                    f"{part} part has norm {norms[part]:.3g}, the median is {median:.3g} and the gate {most:g} times that"
                )
    return dict(sorted(found.items()))

"""Robust rules: what a few sites that send anything at all can do to a round is bounded.

Rules on products judge D_k = (dW_k, dh_k): by how much site k would move every product dW = B A, and every other number that
travels, the head's. They see inner products alone, which r x r Gram matrices give, and return weights; what is made of the
products with these weights is the rule `products` (aggregator/rules.py), and the head takes the same ones. So factors written
otherwise, B R^-1 and R A, change nothing.

trimmed-distance   the mean without the f sites whose D_k has the largest median distance from the others'
geometric-median   argmin_z sum_k w_k || z - D_k ||, by Weiszfeld's iteration (RFA: Pillutla et al. 2022, arXiv:1912.13445)
krum, multi-krum   the D_k with the smallest sum of squared distances to its K - f - 2 nearest, or the mean of the K - f - 2 best
                   (Blanchard et al. 2017, arXiv:1703.02757)
cosine-gate        the mean without the sites whose median cosine with the others is below `cosine_least`

Rules on factors take every number by itself: the median, or the mean without the f largest and smallest (Yin et al. 2018,
arXiv:1803.01498). A site may write the same product in other numbers, and moves them so. Pure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from aggregator import products, rules
from shared.layout import TensorSpec
from shared.recipe import Recipe, factor_of

Tensors = Iterator[tuple[TensorSpec, np.ndarray]]

CLOSE, MOST_STEPS = 1e-9, 1000
"""Weiszfeld's iteration ends when no weight moves by more, or after so many steps."""
SMOOTH = 1e-6
"""Distances below this share of the median one count as it: a point may be one of the D_k."""


def withstood(recipe: Recipe, sites: int) -> int:
    """Return how many attackers the recipe's rule withstands in a round of so many sites: fewer than it was told, if evictions
    have left too few."""
    needed = 3 if recipe.robust in ("krum", "multi-krum") else 1
    return max(0, min(recipe.attackers, (sites - needed) // 2))


def cut(recipe: Recipe, sites: int) -> int:
    """Return how many of the largest and of the smallest values of every number are left out by a rule on factors."""
    if recipe.robust == "median":
        return (sites - 1) // 2
    return withstood(recipe, sites) if recipe.robust == "trimmed-mean" else 0


def weights(recipe: Recipe, gram: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return the sites' weights under a rule on products, (K,), adding up to 1.

    gram: <D_k, D_l>, (K, K), see `geometry`. shares: what their weights would be in a mean. Equal sites are told apart by their
    order alone.
    """
    mean, count = np.asarray(shares, dtype=np.float64), withstood(recipe, len(shares))
    if len(mean) == 1:
        return mean
    found: np.ndarray = _RULES[recipe.robust](gram, mean, count, recipe)
    return found


def geometry(base: Mapping[str, np.ndarray], deltas: Mapping[str, Tensors]) -> np.ndarray:
    """Return <D_k, D_l> between all sites in the order of their names, (K, K) float64.

    Products and the other tensors count the same: each of the two is divided by the median of its squared norms over the sites.
    One unit of every site is in memory at a time.
    """
    sites = sorted(deltas)
    low_rank, plain = np.zeros((len(sites), len(sites))), np.zeros((len(sites), len(sites)))
    for together in zip(*(rules.units("products", deltas[site]) for site in sites), strict=True):
        names = tuple(together[0])
        with products.one_thread():
            if factor_of(names[0]):
                low_rank += inner_products(base, names, together)
            else:
                flat = np.stack([unit[names[0]].ravel() for unit in together], dtype=np.float64)
                plain += flat @ flat.T
    found: np.ndarray = _scaled(low_rank) + _scaled(plain)
    return found


def inner_products(
    base: Mapping[str, np.ndarray], names: Sequence[str], units: Sequence[Mapping[str, np.ndarray]]
) -> np.ndarray:
    """Return the inner products of B_k A_k - B_0 A_0 of one module, B_0 and A_0 being the version before.

    With tr((B_i A_i)^T B_j A_j) = sum((B_i^T B_j) * (A_i A_j^T)); a factor that does not travel is the version's at every site.
    """
    module, _, of = names[0].partition(".lora_")
    ending = of[1:]
    factors = {}
    for factor in ("A", "B"):
        name = f"{module}.lora_{factor}{ending}"
        before = base[name].astype(np.float64)
        factors[factor] = [before, *(before + unit[name] if name in unit else before for unit in units)]
    rows, columns = np.concatenate(factors["A"], axis=0), np.concatenate(factors["B"], axis=1)
    rank, count = len(factors["A"][0]), len(units) + 1
    both = (rows @ rows.T) * (columns.T @ columns)
    inner = both.reshape(count, rank, count, rank).sum(axis=(1, 3))
    moved: np.ndarray = inner[1:, 1:] - inner[1:, :1] - inner[:1, 1:] + inner[:1, :1]
    return moved


def _scaled(gram: np.ndarray) -> np.ndarray:
    norms = np.maximum(np.diag(gram), 0.0)
    unit = float(np.median(norms)) or float(norms.max())
    scaled: np.ndarray = gram / unit if unit else gram
    return scaled


def _distances(gram: np.ndarray) -> np.ndarray:
    """Return || D_k - D_l ||^2."""
    norms = np.diag(gram)
    found: np.ndarray = np.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(found, 0.0)
    return found


def _others(pairs: np.ndarray) -> np.ndarray:
    """Return every site's values with the others, (K, K - 1)."""
    count = len(pairs)
    found: np.ndarray = pairs[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    return found


def _of_kept(kept: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the mean's weights among those that are kept."""
    found = np.where(kept, mean, 0.0)
    shares: np.ndarray = found / found.sum()
    return shares


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Return whether a site is among those with the smallest scores."""
    kept = np.zeros(len(scores), dtype=bool)
    kept[np.argsort(scores, kind="stable")[:count]] = True
    return kept


def _trimmed_distance(gram: np.ndarray, mean: np.ndarray, count: int, recipe: Recipe) -> np.ndarray:
    del recipe
    scores = np.median(_others(np.sqrt(_distances(gram))), axis=1)
    return _of_kept(_best(scores, len(mean) - count), mean)


def _krum_scores(gram: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Return Krum's scores, and K - f - 2, at least 1."""
    near = max(1, len(gram) - count - 2)
    return np.sort(_others(_distances(gram)), axis=1)[:, :near].sum(axis=1), near


def _krum(gram: np.ndarray, mean: np.ndarray, count: int, recipe: Recipe) -> np.ndarray:
    del recipe
    scores, _ = _krum_scores(gram, count)
    return _of_kept(_best(scores, 1), mean)


def _multi_krum(gram: np.ndarray, mean: np.ndarray, count: int, recipe: Recipe) -> np.ndarray:
    del recipe
    scores, near = _krum_scores(gram, count)
    return _of_kept(_best(scores, near), mean)


def _cosine_gate(gram: np.ndarray, mean: np.ndarray, count: int, recipe: Recipe) -> np.ndarray:
    """If nobody agrees with the others, whoever does most is kept: a round is of somebody."""
    del count
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    scale = np.outer(norms, norms)
    cosines = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
    agreeing = np.median(_others(cosines), axis=1)
    kept = agreeing >= recipe.cosine_least
    return _of_kept(kept if kept.any() else _best(-agreeing, 1), mean)


def _geometric_median(gram: np.ndarray, mean: np.ndarray, count: int, recipe: Recipe) -> np.ndarray:
    """z is always a weighted mean of the D_k, so that its weights say all: v_k ~ w_k / || z - D_k ||."""
    del count, recipe
    found: np.ndarray = mean
    for _ in range(MOST_STEPS):
        with products.one_thread():
            apart = np.sqrt(np.maximum(np.diag(gram) - 2 * gram @ found + found @ gram @ found, 0.0))
        floor = SMOOTH * float(np.median(apart))
        if not apart.max():
            return found
        closer: np.ndarray = mean / np.maximum(apart, floor or SMOOTH * float(apart.max()))
        closer /= closer.sum()
        if np.abs(closer - found).max() <= CLOSE:
            return closer
        found = closer
    return found


_RULES: dict[str, Callable[[np.ndarray, np.ndarray, int, Recipe], np.ndarray]] = {
    "trimmed-distance": _trimmed_distance,
    "geometric-median": _geometric_median,
    "krum": _krum,
    "multi-krum": _multi_krum,
    "cosine-gate": _cosine_gate,
}

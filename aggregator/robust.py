"""Robust rules: what a few sites that send anything at all can do to a round is bounded.

Rules on products judge D_k = (dW_k, dh_k): by how much site k would move every product dW = B A, and every other number that
travels, the head's. They see inner products alone, which small Gram matrices give, and return weights; what is made of the
products with these weights is the rule `products` (aggregator/rules.py), and the head takes the same ones. So factors written
otherwise, B R^-1 and R A, change nothing.

trimmed-distance   the mean without the f sites whose D_k has the largest median distance from the others'
geometric-median   argmin_z sum_k w_k || z - D_k ||, by Weiszfeld's iteration (RFA: Pillutla et al. 2022, arXiv:1912.13445)
krum, multi-krum   the D_k with the smallest sum of squared distances to its K - f - 2 nearest, or the mean of the K - f - 2 best
                   (Blanchard et al. 2017, arXiv:1703.02757)
cosine-gate        the mean without the sites whose median cosine with the others is below `cosine_least`, in products or elsewhere

Rules on factors take every number by itself: the median, or the mean without the f largest and smallest (Yin et al. 2018,
arXiv:1803.01498). A site may write the same product in other numbers, and moves them so. Pure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aggregator import products, rules
from aggregator.products import LowRank
from shared import compatibility
from shared.layout import TensorSpec
from shared.recipe import Recipe, factor_of

Tensors = Iterator[tuple[TensorSpec, np.ndarray]]

CLOSE, MOST_STEPS = 1e-9, 1000
"""Weiszfeld's iteration ends when no weight moves by more, or after so many steps."""
DIGITS = 9
"""Of scores that are compared: equal sites are equal on every machine."""
SMOOTH = 1e-6
"""Distances below this share of the median one count as it: a point may be one of the D_k."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """<D_k, D_l> between all sites, (K, K) float64: of what is low-rank, and of everything else that travels. Each of the two is in
    units of the median of its squared norms over the sites, so that both count the same; zero where nothing of it travels."""

    low_rank: np.ndarray
    others: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """Of both together."""
        found: np.ndarray = self.low_rank + self.others
        return found

    @property
    def parts(self) -> list[np.ndarray]:
        """Those in which any site has moved anything."""
        return [part for part in (self.low_rank, self.others) if part.any()]


def withstood(recipe: Recipe, sites: int) -> int:
    """Return how many attackers the recipe's rule withstands in a round of so many sites: fewer than it was told, if evictions
    or the norm gate have left too few."""
    return max(0, min(recipe.attackers, (sites - compatibility.honest_more(recipe)) // 2))


def cut(recipe: Recipe, sites: int) -> int:
    """Return how many of the largest and of the smallest values of every number are left out by a rule on factors."""
    if recipe.robust == "median":
        return (sites - 1) // 2
    return withstood(recipe, sites) if recipe.robust == "trimmed-mean" else 0


def weights(recipe: Recipe, seen: Geometry, shares: Sequence[float]) -> np.ndarray:
    """Return the sites' weights under a rule on products, (K,), adding up to 1.

    shares: what their weights would be in a mean. Equal sites are told apart by their order alone.
    """
    mean, count = np.asarray(shares, dtype=np.float64), withstood(recipe, len(shares))
    if len(mean) == 1:
        return mean
    found: np.ndarray = _RULES[recipe.robust](seen, mean, count, recipe)
    return found


def geometry(base: Mapping[str, np.ndarray], deltas: Mapping[str, Tensors]) -> Geometry:
    """Return what the rules on products see of the sites, in the order of their names.

    One unit of every site is in memory at a time.
    """
    sites = sorted(deltas)
    low_rank, plain = np.zeros((len(sites), len(sites))), np.zeros((len(sites), len(sites)))
    for together in zip(*(rules.units("products", deltas[site]) for site in sites), strict=True):
        name = next(iter(together[0]))
        with products.one_thread():
            if factor_of(name):
                low_rank += inner_products([change(base, unit) for unit in together])
            else:
                flat = np.stack([unit[name].ravel() for unit in together], dtype=np.float64)
                plain += flat @ flat.T
    return Geometry(_scaled(low_rank), _scaled(plain))


def change(base: Mapping[str, np.ndarray], unit: Mapping[str, np.ndarray]) -> LowRank:
    """Return B_k A_k - B A of one module as U V^T with orthonormal V (its `a`, transposed), B and A being the version before.

    It is dB_k A_k + B dA_k, the factors of both side by side. Their columns may be as long as they like and cancel: only from
    orthonormal ones, whose small core R_f R_g^T has done the cancelling, are norms and inner products right to the last digits.
    Gram matrices of the factors as they were sent would square what cancels, and a forged update could have any norm.
    """
    module, _, of = next(iter(unit)).partition(".lora_")
    before = {factor: base[f"{module}.lora_{factor}{of[1:]}"].astype(np.float64) for factor in "AB"}
    moved = {f: unit.get(f"{module}.lora_{f}{of[1:]}", np.zeros_like(before[f])).astype(np.float64) for f in "AB"}
    columns = np.concatenate([moved["B"], before["B"]], axis=1)
    rows = np.concatenate([before["A"] + moved["A"], moved["A"]])
    left, upper = np.linalg.qr(columns)
    right, lower = np.linalg.qr(rows.T)
    return LowRank(right.T, left @ (upper @ lower.T))


def inner_products(changes: Sequence[LowRank]) -> np.ndarray:
    """Return <D_k, D_l> of one module by tr((U_k V_k^T)^T U_l V_l^T) = sum((U_k^T U_l) * (V_k^T V_l)): matrices of twice the rank,
    never an out x in one."""
    rows, columns = np.concatenate([one.a for one in changes]), np.concatenate([one.b for one in changes], axis=1)
    rank, count = changes[0].rank, len(changes)
    both = (rows @ rows.T) * (columns.T @ columns)
    inner = both.reshape(count, rank, count, rank).sum(axis=(1, 3))
    symmetric: np.ndarray = (inner + inner.T) / 2
    return symmetric


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
    """Return every site's values with the others in ascending order, (K, K - 1)."""
    count = len(pairs)
    found: np.ndarray = np.sort(pairs[~np.eye(count, dtype=bool)].reshape(count, count - 1), axis=1)
    return found


def _of_kept(kept: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the mean's weights among those that are kept."""
    found = np.where(kept, mean, 0.0)
    shares: np.ndarray = found / found.sum()
    return shares


def _smallest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return whether a site is among those with the smallest scores. What differs in the last digits alone is the same to it."""
    largest = float(np.abs(scores).max()) or 1.0
    kept = np.zeros(len(scores), dtype=bool)
    kept[np.argsort(np.round(scores / largest, DIGITS), kind="stable")[:count]] = True
    return kept


def _trimmed_distance(seen: Geometry, mean: np.ndarray, count: int, recipe: Recipe) -> np.ndarray:
    """The lower of two middle distances: of 2 f others f may be forged, and one of the middle two theirs."""
    del recipe
    apart = _others(_distances(seen.whole))
    return _of_kept(_smallest(apart[:, (apart.shape[1] - 1) // 2], len(mean) - count), mean)


def _krum_scores(gram: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Return Krum's scores, and K - f - 2, at least 1."""
    near = max(1, len(gram) - count - 2)
    return _others(_distances(gram))[:, :near].sum(axis=1), near


def _krum(seen: Geometry, mean: np.ndarray, count: int, recipe: Recipe) -> np.ndarray:
    del recipe
    scores, _ = _krum_scores(seen.whole, count)
    return _of_kept(_smallest(scores, 1), mean)


def _multi_krum(seen: Geometry, mean: np.ndarray, count: int, recipe: Recipe) -> np.ndarray:
    del recipe
    scores, near = _krum_scores(seen.whole, count)
    return _of_kept(_smallest(scores, near), mean)


def _cosine_gate(seen: Geometry, mean: np.ndarray, count: int, recipe: Recipe) -> np.ndarray:
    """A site must agree in each part by itself. The upper of two middle cosines, as the lower of distances. If nobody agrees with
    the others, whoever does most is kept: a round is of somebody."""
    del count
    agreeing = np.min([_agreement(part) for part in seen.parts] or [np.ones(len(mean))], axis=0)
    kept = agreeing >= recipe.cosine_least
    return _of_kept(kept if kept.any() else _smallest(-agreeing, 1), mean)


def _agreement(gram: np.ndarray) -> np.ndarray:
    """Return every site's median cosine with the others; 0 for one that has not moved."""
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    scale = np.outer(norms, norms)
    cosines = _others(np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0))
    found: np.ndarray = cosines[:, cosines.shape[1] // 2]
    return found


def _geometric_median(seen: Geometry, mean: np.ndarray, count: int, recipe: Recipe) -> np.ndarray:
    """z is always a weighted mean of the D_k, so that its weights say all: v_k ~ w_k / || z - D_k ||."""
    del count, recipe
    gram, found = seen.whole, mean
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


_RULES: dict[str, Callable[[Geometry, np.ndarray, int, Recipe], np.ndarray]] = {
    "trimmed-distance": _trimmed_distance,
    "geometric-median": _geometric_median,
    "krum": _krum,
    "multi-krum": _multi_krum,
    "cosine-gate": _cosine_gate,
}

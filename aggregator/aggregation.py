"""The weighted mean of deltas, and what can be said about how well it went. Pure numpy on values.

Source: McMahan et al. 2017, arXiv:1602.05629 (federated averaging), applied to low-rank factors one by one as in
Med-DualLoRA, arXiv:2603.10967.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from shared.errors import InputError
from shared.layout import TensorSpec

MAX_DIAGNOSED_SITES = 64
"""Figures about pairs of sites cost sites squared, and a tensor of every site in memory; above this many they are left out."""

Tensors = Iterator[tuple[TensorSpec, np.ndarray]]
Finish = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(a tensor of the parent version, the weighted mean of its deltas) to what the round makes of it."""


def weights(patients: Mapping[str, int], weighting: str) -> dict[str, float]:
    """Return each site's weight: n_k / sum n for "patients", 1 / K for "uniform". They sum to 1."""
    if weighting == "uniform":
        return {site: 1.0 / len(patients) for site in sorted(patients)}
    if weighting != "patients":
        raise InputError(f"weighting '{weighting}' is neither patients nor uniform")
    total = sum(patients.values())
    return {site: patients[site] / total for site in sorted(patients)}


def weighted_mean(deltas: Sequence[np.ndarray], weight: Sequence[float]) -> np.ndarray:
    """Return sum_k w_k delta_k in float64, summed in the order given.

    All arrays have one shape. Element-wise operations in a fixed order: bit for bit the same everywhere.
    """
    total = np.zeros(deltas[0].shape, np.float64)
    for share, delta in zip(weight, deltas, strict=True):
        total += share * delta.astype(np.float64)
    return total


def aggregate(
    base: Mapping[str, np.ndarray], deltas: Mapping[str, Tensors], weight: Mapping[str, float], finish: Finish
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return what `finish` makes of base and weighted mean of every tensor that was sent, and the round's diagnostics by name.

    `deltas` yields each site's tensors in one common order. Up to MAX_DIAGNOSED_SITES one tensor of every site is in memory
    at a time, with more the sum and one tensor of one site: the same bytes either way. Sites are summed in sorted order
    whatever order they come in.
    """
    sites = sorted(deltas)
    if len(sites) > MAX_DIAGNOSED_SITES:
        return _site_by_site(base, deltas, weight, finish)
    shares = [weight[s] for s in sites]
    result: dict[str, np.ndarray] = {}
    diagnosis = _Diagnosis(sites, shares)
    for together in zip(*(deltas[s] for s in sites), strict=True):
        name = together[0][0].name
        arrays = [array for _, array in together]
        result[name] = finish(base[name], weighted_mean(arrays, shares))
        diagnosis.add(name, base[name], arrays)
    diagnosis.add_unmoved(base)
    return result, diagnosis.figures()


def _site_by_site(
    base: Mapping[str, np.ndarray], deltas: Mapping[str, Tensors], weight: Mapping[str, float], finish: Finish
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    totals: dict[str, np.ndarray] = {}
    figures: dict[str, float] = {}
    for site in sorted(deltas):
        squared = 0.0
        for spec, delta in deltas[site]:
            total = totals.setdefault(spec.name, np.zeros(delta.shape, np.float64))
            total += weight[site] * delta.astype(np.float64)
            squared += float(np.sum(np.square(delta, dtype=np.float64)))
        figures[f"update_norm/{site}"] = math.sqrt(squared)
    result = {name: finish(base[name], total) for name, total in totals.items()}
    return result, figures


def aggregation_error(a: Sequence[np.ndarray], b: Sequence[np.ndarray], weight: Sequence[float]) -> tuple[float, float]:
    """Return (|| sum_k w_k B_k A_k - B A ||^2, || sum_k w_k B_k A_k ||^2) in the Frobenius norm, for one module.

    A = sum w_k A_k and B = sum w_k B_k are the plainly averaged factors, sum w_k = 1. A_k: (r, in), B_k: (out, r). As the
    weights sum to 1 the first is || sum_k w_k (B_k - B)(A_k - A) ||^2. With tr((B_i A_i)^T B_j A_j) = sum((B_i^T B_j) *
    (A_i A_j^T)) only r x r products are formed, all of them as blocks of one Gram matrix of the factors side by side, never an
    out x in one. The gap is what averaging factors instead of products costs: Sun et al. 2024, arXiv:2403.12313, section 3.
    """
    rows, columns = np.concatenate(a, axis=0, dtype=np.float64), np.concatenate(b, axis=1, dtype=np.float64)
    gram_a, gram_b = rows @ rows.T, columns.T @ columns  # every A_i A_j^T and B_i^T B_j, side by side
    rank = len(gram_a) // len(weight)
    shares = np.repeat(np.asarray(weight), rank)
    ideal = shares @ (gram_a * gram_b) @ shares
    centred_a, centred_b = _centred(gram_a, weight, rank), _centred(gram_b, weight, rank)
    gap = shares @ (centred_a * centred_b) @ shares
    return max(float(gap), 0.0), max(float(ideal), 0.0)


def _centred(gram: np.ndarray, weight: Sequence[float], rank: int) -> np.ndarray:
    """Return the products of the factors less their weighted mean."""
    mean = np.kron(np.asarray(weight)[None, :], np.eye(rank))  # (r, sites r)
    rows = (gram.reshape(len(weight), rank, -1) - mean @ gram).reshape(gram.shape)
    columns = rows @ mean.T
    both: np.ndarray = rows.reshape(len(gram), len(weight), rank) - columns[:, None, :]
    return both.reshape(gram.shape)


@dataclass
class _Diagnosis:
    """Adds up the round's figures tensor by tensor; holds one module's A factors until its B factors come."""

    sites: list[str]
    weight: list[float]
    gap: float = 0.0
    ideal: float = 0.0
    waiting: dict[str, tuple[str, list[np.ndarray]]] = field(default_factory=dict)
    gram: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.gram = np.zeros((len(self.sites), len(self.sites)))

    def add(self, name: str, base: np.ndarray, deltas: Sequence[np.ndarray]) -> None:
        """Take one tensor of every site."""
        flat = np.stack([d.ravel() for d in deltas], dtype=np.float64)
        self.gram += flat @ flat.T
        module, _, factor = name.rpartition(".lora_")
        if not module:
            return
        trained = [base + d for d in deltas]
        other = self.waiting.pop(module, None)
        if other is None:
            self.waiting[module] = factor, trained
        else:
            self._compare(factor, trained, other[1])

    def _compare(self, factor: str, trained: list[np.ndarray], other: list[np.ndarray]) -> None:
        a, b = (other, trained) if factor.startswith("B") else (trained, other)
        gap, ideal = aggregation_error(a, b, self.weight)
        self.gap += gap
        self.ideal += ideal

    def add_unmoved(self, base: Mapping[str, np.ndarray]) -> None:
        """Take the factors whose other one did not travel: that one is the same at every site, unless it is private and zero
        in every version."""
        for module, (factor, trained) in sorted(self.waiting.items()):
            other = base.get(f"{module}.lora_{'A' if factor.startswith('B') else 'B'}{factor[1:]}")
            if other is not None:
                self._compare(factor, trained, [other] * len(trained))
        self.waiting.clear()

    def figures(self) -> dict[str, float]:
        """Return update_norm/<site>, cosine/<a>/<b>, and aggregation_error where there are modules."""
        norms = np.sqrt(np.diag(self.gram))
        result = {f"update_norm/{site}": float(norm) for site, norm in zip(self.sites, norms, strict=True)}
        for i, first in enumerate(self.sites):
            for j in range(i + 1, len(self.sites)):
                scale = norms[i] * norms[j]
                result[f"cosine/{first}/{self.sites[j]}"] = float(self.gram[i, j] / scale) if scale > 0 else 0.0
        if self.ideal > 0:
            result["aggregation_error"] = math.sqrt(self.gap / self.ideal)
        return result

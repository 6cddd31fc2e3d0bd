"""What can be said about a round besides its result: how large the updates are, how they agree, what averaging factors costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


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
class Diagnosis:
    """Adds up the round's figures tensor by tensor; holds one module's A factors until its B factors come."""

    sites: list[str]
    weight: list[float]
    by_factor: bool = True
    """Whether factors are averaged one by one: then the figures say what that costs."""
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
        if not module or not self.by_factor:
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

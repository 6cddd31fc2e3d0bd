"""Matrices kept as two thin factors: their sums, norms and best approximations, without ever forming one of them.

The QR of factors side by side and the SVD of the small matrix between them (compare FLoRIST, Ramesh and Dass 2025,
arXiv:2506.09199, which takes SVDs of the stacked factors and chooses the rank). Pure, in float64. What LAPACK makes of a matrix
depends on its version, on the processor, and on how many threads share a sum: it runs on one, so that one machine always gives
the same bits. On another the last ones may differ.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

_alone = threading.Lock()


@dataclass(frozen=True, slots=True)
class LowRank:
    """The matrix B A. a: (q, in), b: (out, q), float64."""

    a: np.ndarray
    b: np.ndarray

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> "LowRank":
        """Return the product of factors of any float type."""
        return cls(a.astype(np.float64), b.astype(np.float64))

    @property
    def rank(self) -> int:
        """q: the most that the matrix's rank can be."""
        return len(self.a)

    @property
    def norm(self) -> float:
        """|| B A || in the Frobenius norm, from tr(A^T B^T B A) = sum((B^T B) * (A A^T)): right to about 1e-8 of its parts."""
        with one_thread():
            squared = float(np.sum((self.b.T @ self.b) * (self.a @ self.a.T)))
        return math.sqrt(max(squared, 0.0))

    def __neg__(self) -> "LowRank":
        return LowRank(self.a, -self.b)


def total(*parts: LowRank) -> LowRank:
    """Return the sum of matrices of one shape: their factors side by side."""
    return LowRank(np.concatenate([part.a for part in parts]), np.concatenate([part.b for part in parts], axis=1))


def truncated(matrix: LowRank, rank: int, floor: float = 0.0) -> LowRank:
    """Return the best approximation of at most this rank in the Frobenius norm (Eckart and Young), B = U sqrt(S), A = sqrt(S) V^T.

    Singular values up to `floor` are left out, so that the result may have fewer rows. Each column of U has its largest entry
    positive, which makes the factors unique where the singular values differ.
    """
    with one_thread():
        left, upper = np.linalg.qr(matrix.b)  # (out, p), (p, q), p = min(out, q)
        right, lower = np.linalg.qr(matrix.a.T)  # (in, p'), (p', q)
        u, s, vt = np.linalg.svd(upper @ lower.T, full_matrices=False)
        kept = min(rank, int(np.count_nonzero(s > floor)))
        columns, rows = left @ u[:, :kept], vt[:kept] @ right.T
    largest = np.argmax(np.abs(columns), axis=0)
    scale = np.sqrt(s[:kept])
    signed = scale * np.where(columns[largest, np.arange(kept)] < 0, -1.0, 1.0)
    return LowRank(signed[:, None] * rows, columns * signed)


def compressed(matrix: LowRank) -> LowRank:
    """Return the same matrix with no more rows in A than its smaller side has entries."""
    return truncated(matrix, min(len(matrix.b), matrix.a.shape[1]))


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, BLAS runs on one thread. That is a setting of the process: the lock keeps it until the last one has left."""
    with _alone, _blas().limit(limits=1, user_api="blas"):
        yield


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()

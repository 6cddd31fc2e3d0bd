"""Error feedback: what a lossy codec cannot say now is not lost but owed, and added to what is sent next.

Source: Seide et al. 2014, Interspeech (1-bit SGD); Karimireddy et al. 2019, arXiv:1901.09847. A site does so with its updates,
the aggregator with the changes it broadcasts (both ends: Tang et al. 2019, arXiv:1905.05957).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from shared.layout import Layout

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Sent:
    """A payload, what whoever reads it gets (float32), and what is owed now (float64)."""

    payload: bytes
    values: Tensors
    residual: Tensors


def send(
    layout: Layout, values: Mapping[str, np.ndarray], residual: Mapping[str, np.ndarray], seed: bytes = b""
) -> Sent:
    """Write `values` + `residual` as the layout's codec does, drawing what it draws from `seed`.

    values: float32 or float64 arrays of the layout's names and shapes. Then

        sent + new residual == values + residual

    exactly, as long as each of these sums needs at most float64's 53 bits (true whenever the last bit of everything ever
    added lies within 2^52 of the sum); beyond that, to one rounding of float64. The residual of a tensor that is not in the
    layout stays as it is. Raises InvalidAdapter naming the first tensor that is missing, extra, of another shape or not finite.
    """
    owed = {name: value + residual.get(name, np.zeros_like(value, np.float64)) for name, value in values.items()}
    payload = layout.join({name: value.astype(np.float32) for name, value in owed.items()}, seed)
    sent = layout.split(payload)
    return Sent(payload, sent, {**residual, **{name: value - sent[name] for name, value in owed.items()}})

"""How large a site's local part is beside the global one, and whether it points the same way. From r x r Gram matrices."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]
GLOBAL, LOCAL = "base_model.model.", "local."


def ratio_and_cosine(
    shared: Tensors, private: Tensors, scale_shared: float, scale_private: float
) -> tuple[float, float] | None:
    """Return || dW_l || / || dW_g || and the cosine between them, all adapted layers as one vector; None if one of them is zero.

    shared: tensors of a global version; private: a site's own. dW = scale B A.
    """
    gram = np.zeros((2, 2))
    for (a_g, b_g), (a_l, b_l) in _layers(shared, private):
        parts = ((scale_shared, a_g, b_g), (scale_private, a_l, b_l))
        for i, (s_i, a_i, b_i) in enumerate(parts):
            for j, (s_j, a_j, b_j) in enumerate(parts):
                gram[i, j] += s_i * s_j * float(np.sum((b_i.T @ b_j) * (a_i @ a_j.T)))
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    if not norms.all():
        return None
    return float(norms[1] / norms[0]), float(gram[0, 1] / math.prod(norms))


def _layers(shared: Tensors, private: Tensors) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], ...]]:
    """Yield ((A_g, B_g), (A_l, B_l)) of every layer that has both, float64."""
    for name in sorted(shared):
        path, factor, _ = name.removeprefix(GLOBAL).partition(".lora_A.weight")
        if factor and f"{LOCAL}{path}.lora_A.weight" in private:
            yield tuple(
                (
                    of[f"{start}{path}.lora_A.weight"].astype(np.float64),
                    of[f"{start}{path}.lora_B.weight"].astype(np.float64),
                )
                for start, of in ((GLOBAL, shared), (LOCAL, private))
            )

"""Norm ratio and cosine of local and global part, against products written out."""

import numpy as np
import pytest

from experiments.comparison import geometry

LAYERS, SCALES = ("blocks.4.attn.q", "blocks.5.attn.q"), (2.0, 0.5)


def drawn(prefix, rank, seed):
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in LAYERS:
        tensors[f"{prefix}{layer}.lora_A.weight"] = rng.normal(size=(rank, 7)).astype(np.float32)
        tensors[f"{prefix}{layer}.lora_B.weight"] = rng.normal(size=(5, rank)).astype(np.float32)
    return tensors


def products(tensors, prefix, scale):
    factors = [(tensors[f"{prefix}{n}.lora_B.weight"], tensors[f"{prefix}{n}.lora_A.weight"]) for n in LAYERS]
    return np.concatenate([(scale * (b.astype(float) @ a.astype(float))).ravel() for b, a in factors])


def cosine_of(first, second):
    return first @ second / np.linalg.norm(first) / np.linalg.norm(second)


def test_they_are_those_of_the_products_of_all_layers_as_one_vector():
    shared, private = drawn(geometry.GLOBAL, 3, 1), drawn(geometry.LOCAL, 2, 2)
    of_global, of_local = products(shared, geometry.GLOBAL, SCALES[0]), products(private, geometry.LOCAL, SCALES[1])
    ratio, cosine = geometry.ratio_and_cosine(shared, private, *SCALES)
    assert ratio == pytest.approx(np.linalg.norm(of_local) / np.linalg.norm(of_global), rel=1e-12)
    assert cosine == pytest.approx(cosine_of(of_global, of_local), rel=1e-10)


def test_another_factorisation_of_the_same_products_has_the_same():
    shared, private = drawn(geometry.GLOBAL, 3, 1), drawn(geometry.LOCAL, 2, 2)
    turn = np.array([[2.0, 1.0], [0.5, -1.0]])
    turned = {
        name: (np.linalg.inv(turn) @ value if "lora_A" in name else value @ turn) for name, value in private.items()
    }
    before, after = (geometry.ratio_and_cosine(shared, one, *SCALES) for one in (private, turned))
    assert after == pytest.approx(before, rel=1e-9)


def test_there_is_neither_where_one_part_is_nothing():
    shared, private = drawn(geometry.GLOBAL, 3, 1), drawn(geometry.LOCAL, 2, 2)
    nothing = {name: value * ("lora_A" in name) for name, value in private.items()}
    assert geometry.ratio_and_cosine(shared, nothing, *SCALES) is None
    assert geometry.ratio_and_cosine(shared, {}, *SCALES) is None

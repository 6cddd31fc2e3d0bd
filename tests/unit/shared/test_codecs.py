"""Codecs against torch's own bfloat16 and against numbers worked by hand."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shared import codecs
from shared.errors import InvalidAdapter
from shared.layout import Layout
from shared.recipe import Recipe
from tests.support import adapters

floats = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=0, max_dims=3, max_side=5),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (1.0, 0x3F80),
        (-2.5, 0xC020),
        (1.00390625, 0x3F80),  # 1 + 2^-8: half way, down to the even neighbour
        (1.01171875, 0x3F82),  # 1 + 3 * 2^-8: half way, up to the even neighbour
        (1.0039063692092896, 0x3F81),  # just above half way
        (1e-40, 0x0001),  # a subnormal number
        (3.4028234663852886e38, 0x7F80),  # the largest float32 is nearer to infinity
        (float("inf"), 0x7F80),
    ],
)
def test_bf16_rounds_to_nearest_and_ties_to_even(value: float, bits: int) -> None:
    encoded = codecs.encode("BF16", np.array([value], np.float32))
    assert encoded.tobytes() == struct.pack("<H", bits)


@given(floats)
@settings(max_examples=300, deadline=None)
def test_bf16_is_torch_s_bfloat16_bit_for_bit(array: np.ndarray) -> None:
    encoded = codecs.encode("BF16", array)
    reference = torch.from_numpy(array.copy()).to(torch.bfloat16)
    assert encoded.tobytes() == reference.view(torch.uint16).numpy().astype("<u2").tobytes()
    assert encoded.shape == array.shape
    decoded = codecs.decode("BF16", encoded)
    assert (decoded.dtype, decoded.shape) == (np.float32, array.shape)
    np.testing.assert_array_equal(decoded, reference.float().numpy())


@given(floats)
@settings(max_examples=100, deadline=None)
def test_what_was_decoded_is_encoded_to_the_same_bytes(array: np.ndarray) -> None:
    for dtype in codecs.DTYPES:
        encoded = codecs.encode(dtype, array)
        assert codecs.encode(dtype, codecs.decode(dtype, encoded)).tobytes() == encoded.tobytes()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFC00000])
def test_a_nan_stays_one(bits: int) -> None:
    array = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(codecs.decode("BF16", codecs.encode("BF16", array))).all()


def test_bf16_halves_an_update_and_a_broadcast_stays_as_it_is() -> None:
    manifest = adapters.adapter().manifest
    recipe = Recipe(codec="bf16")
    upload = recipe.upload_layout(manifest, 1, 3)
    assert 2 * upload.size == manifest.layout.size
    assert {spec.dtype for spec in upload.tensors} == {"BF16"}
    assert upload.digest != manifest.layout.digest
    assert recipe.broadcast_layout(manifest, 1) == manifest.layout
    assert Recipe().upload_layout(manifest, 1, 3) == manifest.layout


def test_a_payload_comes_back_as_float32_and_a_number_too_large_is_refused_by_name() -> None:
    layout = Layout.of(adapters.tensors()).written_as("BF16")
    found = layout.split(layout.join(adapters.tensors()))
    for name, array in adapters.tensors().items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], array, rtol=2**-8)
    first = layout.tensors[0]
    tensors = {**adapters.tensors(), first.name: np.full(first.shape, 3.4e38, np.float32)}
    with pytest.raises(InvalidAdapter, match=f"tensor '{first.name}' has 12 non-finite values"):
        layout.split(layout.join(tensors))


def test_only_lossless_codecs_leave_nothing_behind() -> None:
    assert {codec: codecs.is_lossy(codec) for codec in codecs.CODECS} == {"f32": False, "bf16": True}

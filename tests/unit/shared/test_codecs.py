"""Codecs against torch's own bfloat16, against numbers worked by hand, and against hostile bytes."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shared import codecs
from shared.codecs import CODECS, Encoding
from shared.errors import InvalidAdapter
from shared.layout import Layout
from shared.recipe import Recipe
from tests.support import adapters

floats = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=0, max_dims=3, max_side=5),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def of(codec: str, share: float = 0.25) -> Encoding:
    found = codecs.encoding(codecs.dtype(codec, share))
    assert found is not None
    return found


BF16 = of("bf16")


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
    assert BF16.encode(np.array([value], np.float32), b"") == struct.pack("<H", bits)


@given(floats)
@settings(max_examples=300, deadline=None)
def test_bf16_is_torch_s_bfloat16_bit_for_bit(array: np.ndarray) -> None:
    encoded = BF16.encode(array, b"")
    reference = torch.from_numpy(array.copy()).to(torch.bfloat16)
    assert encoded == reference.view(torch.uint16).numpy().astype("<u2").tobytes()
    decoded = BF16.decode(encoded, array.shape)
    assert (decoded.dtype, decoded.shape) == (np.float32, array.shape)
    np.testing.assert_array_equal(decoded, reference.float().numpy())


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFC00000])
@pytest.mark.parametrize("codec", ["f32", "bf16", "int8", "int4"])
def test_a_nan_stays_one_and_is_refused_where_numbers_must_be_finite(codec: str, bits: int) -> None:
    array = np.array([bits], np.uint32).view(np.float32)
    assert np.isnan(of(codec).decode(of(codec).encode(array, b""), (1,))).all()


@pytest.mark.parametrize("codec", CODECS)
@given(array=floats, seed=st.binary(max_size=8))
@settings(max_examples=100, deadline=None)
def test_every_codec_gives_the_shape_back_within_its_size_and_the_same_bytes_for_one_seed(
    codec: str, array: np.ndarray, seed: bytes
) -> None:
    one = of(codec)
    encoded = one.encode(array, seed)
    assert encoded == one.encode(array, seed)
    assert len(encoded) == one.size(array.shape) if one.fixed else 0 < len(encoded) <= one.size(array.shape)
    decoded = one.decode(encoded, array.shape)
    assert (decoded.dtype, decoded.shape) == (np.float32, array.shape)
    if not codecs.is_lossy(codec):
        assert decoded.tobytes() == array.tobytes()


@pytest.mark.parametrize("codec", ["f32+zstd", "bf16+zstd", "int8+zstd", "int4+zstd", "topk+zstd"])
def test_compression_loses_nothing_and_pays(codec: str) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((64, 96)).astype(np.float32) for name in "ab"}
    plain, packed = (
        Layout.of(tensors).written_as(codecs.dtype(one, 0.25)) for one in (codec.removesuffix("+zstd"), codec)
    )
    assert len(packed.join(tensors, b"s")) < len(plain.join(tensors, b"s"))
    found, expected = packed.split(packed.join(tensors, b"s")), plain.split(plain.join(tensors, b"s"))
    assert all(np.array_equal(found[name], expected[name]) for name in tensors)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if not of(codec).fixed])
@given(data=st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_whatever_bytes_come_they_are_a_tensor_or_refused(codec: str, data: bytes) -> None:
    try:
        found = of(codec).decode(data, (5, 7))
    except InvalidAdapter:
        return
    assert (found.dtype, found.shape) == (np.float32, (5, 7))


@pytest.mark.parametrize("codec", ["int8", "int4", "topk"])
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_true_payload_with_a_byte_changed_cut_or_added_is_a_tensor_or_refused(
    codec: str, data: st.DataObject
) -> None:
    array = np.random.default_rng(1).standard_normal((6, 9)).astype(np.float32)
    encoded = bytearray(of(codec).encode(array, b""))
    place = data.draw(st.integers(0, len(encoded) - 1))
    match data.draw(st.sampled_from(["change", "cut", "add"])):
        case "change":
            encoded[place] ^= data.draw(st.integers(1, 255))
        case "cut":
            del encoded[place:]
        case _:
            encoded[place:place] = b"\x55"
    try:
        found = of(codec).decode(bytes(encoded), array.shape)
    except InvalidAdapter:
        return
    assert found.shape == array.shape


@pytest.mark.parametrize(
    "dtype", ["F64", "f32", "int8", "TOPK@", "TOPK@0", "TOPK@1.5", "TOPK@.5", "TOPK@nan", "F32+zstd+zstd", "+zstd"]
)
def test_a_type_that_is_none_or_is_spelled_another_way_is_none(dtype: str) -> None:
    assert codecs.encoding(dtype) is None


def test_bf16_halves_an_update() -> None:
    manifest = adapters.adapter().manifest
    upload = Recipe(codec="bf16").upload_layout(manifest, 1, 3)
    assert 2 * upload.size == manifest.layout.size
    assert {spec.dtype for spec in upload.tensors} == {"BF16"}
    assert upload.digest != manifest.layout.digest
    assert Recipe().upload_layout(manifest, 1, 3) == manifest.layout
    assert Recipe(broadcast_codec="bf16").change_layout(manifest, 1) == upload


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
    assert [codec for codec in codecs.CODECS if not codecs.is_lossy(codec)] == ["f32", "f32+zstd"]

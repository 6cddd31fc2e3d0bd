"""Tensors come out of payload bytes however they are cut, and nothing else does."""

import tracemalloc

import numpy as np
import pytest
import zstandard

from aggregator import payload
from shared.errors import InvalidAdapter, InvalidUpdate
from shared.layout import Layout
from tests.support import adapters

LAYOUT = Layout.of(adapters.tensors())
BYTES = adapters.delta(LAYOUT, seed=1)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_pieces_of_any_size_give_the_same_tensors(size: int) -> None:
    expected = LAYOUT.split(BYTES)
    found = {spec.name: array for spec, array in payload.tensors(LAYOUT, cut(BYTES, size))}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_payload_that_ends_early_names_the_tensor() -> None:
    with pytest.raises(InvalidUpdate, match=r"ends inside tensor '.*pred_head_dict\.cls\.weight'"):
        list(payload.tensors(LAYOUT, [BYTES[:-1]]))


def test_a_payload_that_goes_on_is_refused() -> None:
    with pytest.raises(InvalidUpdate, match="goes on after the last tensor"):
        list(payload.tensors(LAYOUT, [BYTES, b"x"]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_value_is_refused_by_tensor_name(value: float) -> None:
    tensors = {name: array.copy() for name, array in LAYOUT.split(BYTES).items()}
    name = LAYOUT.tensors[3].name
    tensors[name].flat[1] = value
    with pytest.raises(InvalidUpdate, match=rf"tensor '{name}' has 1 non-finite values"):
        payload.check_delta(LAYOUT, [b"".join(tensors[s.name].tobytes() for s in LAYOUT.tensors)])


def test_a_value_that_could_overflow_a_sum_is_refused() -> None:
    tensors = {name: array.copy() for name, array in LAYOUT.split(BYTES).items()}
    tensors[LAYOUT.tensors[0].name].flat[0] = 3e38
    with pytest.raises(InvalidUpdate, match=r"value of size 3e\+38"):
        payload.check_delta(LAYOUT, [LAYOUT.join(tensors)])


def test_what_a_codec_wrote_comes_out_as_float32_however_it_is_cut() -> None:
    layout = LAYOUT.written_as("BF16")
    payload_bytes = layout.join(LAYOUT.split(BYTES))
    expected = layout.split(payload_bytes)
    found = {spec.name: array for spec, array in payload.tensors(layout, cut(payload_bytes, 7))}
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(("bits", "message"), [(0x7FC0, "non-finite values"), (0x7F7F, "value of size 3.39e")])
def test_codes_that_mean_no_number_or_an_absurd_one_are_refused(bits: int, message: str) -> None:
    layout = LAYOUT.written_as("BF16")
    payload_bytes = bytearray(layout.join(LAYOUT.split(BYTES)))
    payload_bytes[:2] = bits.to_bytes(2, "little")
    with pytest.raises(InvalidUpdate, match=message):
        payload.check_delta(layout, [bytes(payload_bytes)])


LARGE = Layout.of({f"{block:02}.lora_A.weight": np.zeros((8, 5_000), np.float32) for block in range(16)})


def block(size: int) -> bytes:
    """A compressed block of which zstd makes `size` zeros."""
    packed = zstandard.ZstdCompressor().compress(bytes(size))
    return len(packed).to_bytes(4, "little") + packed


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        ("INT8", b"\xff\xff\xff\xff" + bytes(1000)),
        ("INT8", (50_000).to_bytes(4, "little") + bytes(1000)),
        ("INT8+zstd", block(1 << 30)),
        ("INT8+zstd", block(1 << 17) * 200),
        ("F32+zstd", block(1 << 30)),
        ("F32+zstd", block(1 << 17) * 200),
        ("TOPK@0.05+zstd", block(1 << 30)),
        ("TOPK@0.05", b"\x00\x00\x00\x00"),
        ("TOPK@1.0", (60_000).to_bytes(4, "little") + bytes(60_000)),
    ],
)
def test_no_payload_makes_the_aggregator_take_more_memory_than_a_version_has(codec: str, data: bytes) -> None:
    layout = LARGE.written_as(codec)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidUpdate):
            payload.check_delta(layout, [data[i : i + 1000] for i in range(0, len(data), 1000)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LARGE.size + (1 << 20)


@pytest.mark.parametrize("codec", ["INT8", "INT4+zstd", "TOPK@0.1+zstd", "BF16+zstd"])
def test_tensors_of_any_length_come_out_of_pieces_cut_anywhere(codec: str) -> None:
    layout = LAYOUT.written_as(codec)
    data = layout.join({n: np.asarray(a) for n, a in LAYOUT.split(BYTES).items()}, b"seed")
    expected = layout.split(data)
    for step in (1, 7, 100, len(data)):
        pieces = [data[i : i + step] for i in range(0, len(data), step)]
        found = {spec.name: array for spec, array in payload.tensors(layout, pieces)}
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(InvalidUpdate):
            payload.check_delta(layout, [wrong])


ONE = Layout.of({"a.lora_A.weight": np.zeros((8, 100_000), np.float32)})


@pytest.mark.parametrize(
    "dtype", ["F32+zstd", "BF16", "BF16+zstd", "INT8", "INT8+zstd", "INT4", "INT4+zstd", "TOPK@0.05", "TOPK@0.5"]
)
@pytest.mark.parametrize("spread", [1.0, 1e4], ids=["one scale", "a scale each"])
def test_one_large_tensor_is_decoded_in_little_more_than_twice_its_memory(dtype: str, spread: float) -> None:
    """The tensor itself, its bytes, and what the check needs of it; sparse ones three times, for the places."""
    layout, rng = ONE.written_as(dtype), np.random.default_rng(0)
    scales = np.geomspace(1, spread, 8)[:, None]
    data = layout.join({"a.lora_A.weight": (rng.standard_normal((8, 100_000)) * scales).astype(np.float32)})
    pieces = [data[i : i + (1 << 16)] for i in range(0, len(data), 1 << 16)]
    tracemalloc.start()
    try:
        for _ in payload.tensors(layout, pieces):
            continue
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3.3 * ONE.size


def test_types_that_are_none_are_not_remembered() -> None:
    """A layout that comes over the wire may name any: none of them is kept."""
    with pytest.raises(InvalidAdapter, match=r"has type x{40}"):
        Layout.from_jsonable([["a", [1], "x" * 1_000_000]])

"""Compressed blocks: nothing is lost, little is added, and nothing that comes in takes more memory than a block."""

import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shared import blocks
from shared.blocks import BLOCK_BYTES, Source
from shared.errors import InvalidAdapter


def unpacked(data: bytes, step: int = 1 << 30) -> bytes:
    return b"".join(blocks.unpack(data[i : i + step] for i in range(0, len(data), step)))


@given(st.binary(max_size=500), st.integers(0, 3), st.integers(1, 300))
def test_what_is_packed_comes_out_of_pieces_cut_anywhere(data: bytes, copies: int, step: int) -> None:
    data = data * copies
    assert unpacked(blocks.pack(data), step) == data
    assert len(blocks.pack(data)) <= blocks.most(len(data))


def test_a_large_payload_is_several_blocks_and_each_is_small_or_stored() -> None:
    import random

    noise = random.Random(0).randbytes(BLOCK_BYTES + 10)
    data = bytes(2 * BLOCK_BYTES) + noise
    packed = blocks.pack(data)
    assert unpacked(packed, 1000) == data
    assert len(packed) < len(noise) + 100
    assert [len(block) for block in blocks.unpack([packed])] == [BLOCK_BYTES] * 3 + [10]


def frame(said: int | None, holds: int) -> bytes:
    """A frame of zeros that says it holds `said` bytes (None: says nothing) and holds others."""
    writer = zstandard.ZstdCompressor(write_content_size=said is not None)
    if said is None:
        stream = writer.compressobj()
        return stream.compress(bytes(holds)) + stream.flush()
    made = bytearray(writer.compress(bytes(holds)))
    place = made.index(struct.pack("<I", holds))
    made[place : place + 4] = struct.pack("<I", said)
    return bytes(made)


def block(data: bytes, header: int | None = None) -> bytes:
    return struct.pack("<I", len(data) if header is None else header) + data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0", "ends inside the length of a block"),
        (block(b""), "says 0 bytes"),
        (block(b"", 0x80000000), "says 0 bytes"),
        (block(b"", BLOCK_BYTES + 1), f"says {BLOCK_BYTES + 1} bytes"),
        (block(b"", 0xFFFFFFFF), "says 2147483647 bytes"),
        (block(b"abc", 4), "ends inside a block"),
        (block(b"no frame at all"), "no zstd frame"),
        (block(frame(1 << 20, 1 << 20)), f"says 1048576 bytes, allowed are 0 to {BLOCK_BYTES}"),
        (block(frame(None, 1 << 20)), f"says -1 bytes, allowed are 0 to {BLOCK_BYTES}"),
        (block(frame(100_000, 1 << 20)), "no zstd frame"),
        (block(frame(100_000, 100_000) + b"more"), "no zstd frame"),
    ],
)
def test_what_is_no_block_is_refused_before_it_takes_memory(data: bytes, message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        unpacked(data)


@given(st.binary(max_size=60))
def test_whatever_bytes_come_they_are_blocks_or_refused(data: bytes) -> None:
    try:
        assert len(unpacked(data)) <= BLOCK_BYTES * len(data)
    except InvalidAdapter:
        return


def test_bytes_that_come_one_or_two_at_a_time_take_no_more_memory_than_they_are() -> None:
    size = 1 << 20
    tracemalloc.start(1)
    try:
        taken = Source(b"ab" for _ in range(size // 2)).take(size, "a tensor")
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert taken == b"ab" * (size // 2)
    assert peak < 3 * size

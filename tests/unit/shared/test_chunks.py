"""Payloads in pieces."""

import pytest
from med_duallora.v1 import federation_pb2 as pb

from shared import chunks
from shared.errors import BadOffset, UpdateTooLarge
from shared.protocol import CHUNK_BYTES


def test_pieces_carry_their_position() -> None:
    assert [(c.offset, c.data) for c in chunks.split(b"abcdefg", chunk_bytes=3)] == [
        (0, b"abc"),
        (3, b"def"),
        (6, b"g"),
    ]


def test_a_cut_upload_goes_on_from_its_offset() -> None:
    assert [(c.offset, c.data) for c in chunks.split(b"abcdefg", 4, 3)] == [(4, b"efg")]
    assert list(chunks.split(b"abcdefg", 7)) == []


def test_a_piece_fits_grpcs_default_message_limit() -> None:
    largest = pb.UploadDeltaRequest(chunk=next(chunks.split(bytes(2 * CHUNK_BYTES))))
    assert len(largest.chunk.data) == 1 << 20
    assert largest.ByteSize() < 4 << 20


@pytest.mark.parametrize("offset", [0, 9, 11])
def test_a_piece_that_does_not_continue_says_where_to_begin_again(offset: int) -> None:
    with pytest.raises(BadOffset, match=f"chunk starts at byte {offset}, expected 10; begin again"):
        chunks.check(pb.Chunk(offset=offset, data=b"x"), 10, 100)


def test_more_than_was_announced_is_refused() -> None:
    chunks.check(pb.Chunk(offset=10, data=b"12"), 10, 12)
    with pytest.raises(UpdateTooLarge, match="chunk of 3 bytes at 10: announced were 12 bytes in all"):
        chunks.check(pb.Chunk(offset=10, data=b"123"), 10, 12)


def test_an_empty_piece_is_refused_or_a_stream_of_them_would_never_end() -> None:
    with pytest.raises(UpdateTooLarge, match="chunk of 0 bytes at 10"):
        chunks.check(pb.Chunk(offset=10), 10, 12)

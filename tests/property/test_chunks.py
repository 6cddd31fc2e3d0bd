"""Laws of chunking: joining undoes splitting, from any offset, and a stream out of order never passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import chunks
from shared.errors import BadOffset, UpdateTooLarge

payloads = st.binary(max_size=300)
sizes = st.integers(1, 40)


def joined(pieces: list[chunks.pb.Chunk], offset: int, size: int) -> bytes:
    """What a receiver holds after checking every piece."""
    received = b""
    for piece in pieces:
        chunks.check(piece, offset + len(received), size)
        received += piece.data
    return received


@given(payloads, sizes, st.data())
def test_joining_undoes_splitting_from_any_offset(payload: bytes, chunk_bytes: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(payload)))
    pieces = list(chunks.split(payload, offset, chunk_bytes))
    assert joined(pieces, offset, len(payload)) == payload[offset:]
    assert all(0 < len(piece.data) <= chunk_bytes for piece in pieces)
    assert len(pieces) == -(-(len(payload) - offset) // chunk_bytes)


@given(payloads.filter(lambda p: len(p) > 1), sizes, st.data())
def test_a_stream_cut_anywhere_goes_on_to_the_same_bytes(payload: bytes, chunk_bytes: int, data: st.DataObject) -> None:
    pieces = list(chunks.split(payload, 0, chunk_bytes))
    first = joined(pieces[: data.draw(st.integers(0, len(pieces)))], 0, len(payload))
    rest = list(chunks.split(payload, len(first), data.draw(sizes)))
    assert first + joined(rest, len(first), len(payload)) == payload


@given(payloads, sizes, st.data())
def test_a_piece_dropped_repeated_or_swapped_never_passes(
    payload: bytes, chunk_bytes: int, data: st.DataObject
) -> None:
    pieces = list(chunks.split(payload, 0, chunk_bytes))
    order = data.draw(st.lists(st.sampled_from(range(len(pieces))), max_size=8) if pieces else st.just([]))
    if order == list(range(len(order))):
        assert joined([pieces[i] for i in order], 0, len(payload)) == payload[: sum(len(pieces[i].data) for i in order)]
    else:
        with pytest.raises(BadOffset):
            joined([pieces[i] for i in order], 0, len(payload))


@given(st.integers(0, 1000), st.binary(min_size=1, max_size=50), st.integers(0, 1100))
def test_no_byte_past_the_announced_size_is_taken(offset: int, piece: bytes, size: int) -> None:
    chunk = chunks.pb.Chunk(offset=offset, data=piece)
    if offset + len(piece) > size:
        with pytest.raises(UpdateTooLarge):
            chunks.check(chunk, offset, size)
    else:
        chunks.check(chunk, offset, size)

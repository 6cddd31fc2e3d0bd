"""Payloads in pieces: both ends of every stream of tensor bytes."""

from collections.abc import Iterator

from med_duallora.v1 import federation_pb2 as pb

from shared.errors import BadOffset, UpdateTooLarge
from shared.protocol import CHUNK_BYTES


def split(payload: bytes, offset: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[pb.Chunk]:
    """Yield the payload from `offset` in order, in pieces of at most `chunk_bytes`. Nothing if the offset is its end."""
    for start in range(offset, len(payload), chunk_bytes):
        yield pb.Chunk(offset=start, data=payload[start : start + chunk_bytes])


def check(chunk: pb.Chunk, expected_offset: int, size: int) -> None:
    """Raise BadOffset unless the chunk continues at `expected_offset`; UpdateTooLarge if it is empty or passes `size`."""
    if chunk.offset != expected_offset:
        raise BadOffset(f"chunk starts at byte {chunk.offset}, expected {expected_offset}; begin again")
    if not chunk.data or chunk.offset + len(chunk.data) > size:
        raise UpdateTooLarge(f"chunk of {len(chunk.data)} bytes at {chunk.offset}: announced were {size} bytes in all")

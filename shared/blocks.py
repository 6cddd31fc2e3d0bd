"""Bytes in compressed blocks: what the codec stage "+zstd" makes of a payload.

A payload is cut into blocks of 128 KiB. Each travels as four little-endian bytes and what they count: a zstd frame (RFC 8878),
or, if the highest bit is set, the block as it is, because zstd made it no smaller. Small tensors share a block, and so a table
of Huffman codes; a payload is never in memory as a whole.
"""

import struct
from collections.abc import Iterable, Iterator

import zstandard

from shared.errors import InvalidAdapter

BLOCK_BYTES = 1 << 17
"""What zstd itself cuts its input into."""
_LEVEL = 3
_HEADER = struct.Struct("<I")
_STORED = 1 << 31


def most(size: int) -> int:
    """Return the most bytes that `size` bytes can take in blocks."""
    return size + _HEADER.size * -(-size // BLOCK_BYTES)


def pack(data: bytes) -> bytes:
    """Return bytes in blocks."""
    parts = []
    for start in range(0, len(data), BLOCK_BYTES):
        block = data[start : start + BLOCK_BYTES]
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(block)
        small = len(packed) < len(block)
        parts += [_HEADER.pack(len(packed) if small else len(block) | _STORED), packed if small else block]
    return b"".join(parts)


def unpack(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of each block from pieces cut anywhere.

    Raises InvalidAdapter for what is no block, before it takes more memory than one.
    """
    source = Source(pieces)
    while not source.is_empty():
        (header,) = _HEADER.unpack(source.take(_HEADER.size, "the length of a block"))
        length = header & ~_STORED
        if not 0 < length <= BLOCK_BYTES:
            raise InvalidAdapter(f"a block says {length} bytes, allowed are 1 to {BLOCK_BYTES}")
        data = source.take(length, "a block")
        yield data if header & _STORED else decompressed(data, BLOCK_BYTES)


def decompressed(data: bytes, most: int) -> bytes:
    """Return what one zstd frame holds, at most `most` bytes. Raises InvalidAdapter before more memory than that is taken."""
    try:
        said = zstandard.frame_content_size(data)
        if not 0 <= said <= most:
            raise InvalidAdapter(f"a zstd frame says {said} bytes, allowed are 0 to {most}")
        reader = zstandard.ZstdDecompressor(max_window_size=max(1 << 10, 1 << max(most - 1, 1).bit_length()))
        return reader.decompress(data, max_output_size=most, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidAdapter(f"bytes are no zstd frame: {error}") from error


class Source:
    """Bytes taken from pieces that are cut elsewhere."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces, self._held, self._start = iter(pieces), b"", 0

    def take(self, count: int, what: str) -> bytes:
        """Return the next bytes. Raises InvalidAdapter if there are fewer, saying inside of what they end."""
        if self._start + count > len(self._held):
            self._hold(count, what)
        self._start += count
        return self._held[self._start - count : self._start]

    def _hold(self, count: int, what: str) -> None:
        """Take pieces until so many bytes are held. Not as a list of them: a sender of single bytes would fill memory with it."""
        held, self._start = self._held[self._start :], 0
        self._held = held if held else self._next(what)
        if len(self._held) < count:
            joined = bytearray(self._held)
            while len(joined) < count:
                joined += self._next(what)
            self._held = bytes(joined)

    def _next(self, what: str) -> bytes:
        piece = next(self._pieces, None)
        if piece is None:
            raise InvalidAdapter(f"the payload ends inside {what}")
        return piece

    def is_empty(self) -> bool:
        """Return whether nothing is left."""
        while self._start == len(self._held):
            piece = next(self._pieces, None)
            if piece is None:
                return True
            self._held, self._start = piece, 0
        return False

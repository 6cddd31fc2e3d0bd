"""Mutations of update payloads under every codec.

A case: a byte for the codec, a byte for how the payload is cut into pieces, and the payload.
"""

from collections.abc import Iterator
from random import Random

import numpy as np
import zstandard

from shared import blocks
from shared.codecs import CODECS, dtype
from shared.errors import InvalidAdapter
from shared.layout import Layout
from tests.fuzz import octets
from tests.support import adapters

PIECES = (1 << 20, 1, 7, 1000)
LAYOUTS = {codec: adapters.adapter(width=70).manifest.layout.written_as(dtype(codec, 0.05)) for codec in CODECS}


def layout_of(data: bytes) -> Layout:
    """Return the layout that a case is read by."""
    return LAYOUTS[CODECS[data[0] % len(CODECS)]]


def pieces(data: bytes) -> Iterator[bytes]:
    """Return the payload of a case as it comes: cut."""
    size = PIECES[data[1] % len(PIECES)]
    return (data[start : start + size] for start in range(2, len(data), size))


def seeds() -> list[bytes]:
    """Return a payload for every codec."""
    rng = np.random.default_rng(0)
    made = []
    for number, layout in enumerate(LAYOUTS.values()):
        tensors = {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in layout.tensors}
        made.append(bytes([number, 0]) + layout.join(tensors, b"seed"))
    return made


def mutated(data: bytes, rng: Random) -> bytes:
    """Return a case with one to three changes."""
    if len(data) < 3:
        return rng.choice(seeds())
    codec, cut, payload = data[0], data[1], data[2:]
    for _ in range(rng.choice((1, 1, 2, 3))):
        match rng.randrange(12):
            case 0:
                codec = rng.randrange(256)
            case 1:
                cut = rng.randrange(256)
            case 2 if LAYOUTS[CODECS[codec % len(CODECS)]].compressed:
                payload = _bomb(rng) + payload[rng.randrange(len(payload) + 1) :]
            case 3 | 4 | 5 if LAYOUTS[CODECS[codec % len(CODECS)]].compressed:
                payload = _inside(payload, rng)
            case 6:
                payload = _word(payload, rng)
            case _:
                payload = octets.mutated(payload, rng)
    return bytes([codec, cut]) + payload


def _inside(payload: bytes, rng: Random) -> bytes:
    """Change what the blocks hold, and pack it again."""
    try:
        inner = b"".join(blocks.unpack([payload]))
    except InvalidAdapter:
        return octets.mutated(payload, rng)
    return blocks.pack(octets.mutated(_word(inner, rng) if rng.random() < 0.5 else inner, rng))


def _word(payload: bytes, rng: Random) -> bytes:
    """Change four bytes that may be a length, a scale or a number."""
    place = rng.randrange(max(1, len(payload) - 3))
    word = rng.choice(
        (0, 1, 0x7F800000, 0x7FC00000, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, len(payload), len(payload) + 1)
    )
    return payload[:place] + word.to_bytes(4, "little") + payload[place + 4 :]


def _bomb(rng: Random) -> bytes:
    """Return a block whose frame holds far more than it has bytes, and may say otherwise."""
    size = rng.choice((blocks.BLOCK_BYTES, blocks.BLOCK_BYTES + 1, 8 << 20))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        1, write_content_size=rng.random() < 0.5, window_log=rng.choice((10, 20, 27))
    )
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(size))
    if rng.random() < 0.3:
        frame = octets.mutated(frame, rng)
    return len(frame).to_bytes(4, "little") + frame

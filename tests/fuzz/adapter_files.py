"""Mutations of safetensors files: of the header's length, of the header, and of the tensors' bytes."""

import json
import struct
from functools import cache
from random import Random
from typing import Any

from tests.fuzz import json_texts, octets
from tests.fuzz.json_texts import Pairs, Raw

LENGTHS = (0, 1, 7, 2, 100, 1 << 16, (1 << 20) + 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
SHAPES: tuple[Any, ...] = (
    [],
    [0],
    [1],
    [-1, -1],
    [2**31] * 8,
    [2**60],
    [2**63],
    [2**31 - 1] * 9,
    [1] * 9,
    [10**20, 10**20],
    [4.0],
    ["4"],
    [1] * 50_000,
)
TYPES = (
    "F32",
    "F64",
    "F16",
    "BF16",
    "I8",
    "U8",
    "BOOL",
    "INT8",
    "INT4+zstd",
    "TOPK@0.5",
    "TOPK@5e-324",
    "",
    "f32",
    "F32+zstd",
    "F" * 99,
)


def mutated(data: bytes, rng: Random) -> bytes:
    """Return a file with one to three changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _changed(data, rng)
    return data


def _changed(data: bytes, rng: Random) -> bytes:
    if len(data) < 8 or (length := struct.unpack("<Q", data[:8])[0]) > len(data) - 8:
        return octets.mutated(data, rng)
    header, tensors = data[8 : 8 + length], data[8 + length :]
    match rng.randrange(12):
        case 0:
            return struct.pack("<Q", _length(length, rng)) + data[8:]
        case 1:
            return octets.mutated(data, rng)
        case 2:
            return file_of(header, _numbers(tensors, rng))
        case 3:
            return data[: rng.randrange(len(data) + 1)]
        case 4:
            return data + bytes(rng.choice((1, 4, 4096, 100_000)))
        case 5 | 6:
            return file_of(json_texts.mutated(header, rng), tensors)
        case 7 if rng.random() < 0.05:
            return _crowd(rng)
        case _:
            return file_of(_entries(header, rng), tensors)


def file_of(header: bytes, tensors: bytes) -> bytes:
    """Return the file of a header and the bytes after it."""
    return struct.pack("<Q", len(header)) + header + tensors


def _length(length: int, rng: Random) -> int:
    return rng.choice((*LENGTHS, length + 1, length - 1, length + 8, length // 2)) % (1 << 64)


def _numbers(tensors: bytes, rng: Random) -> bytes:
    """Return the data section with a number that is none, or is far out."""
    if len(tensors) < 4:
        return bytes(4)
    place = 4 * rng.randrange(len(tensors) // 4)
    bits = rng.choice((0x7FC00000, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 1, 0x80000000))
    return tensors[:place] + struct.pack("<I", bits) + tensors[place + 4 :]


def _entries(header: bytes, rng: Random) -> bytes:
    """Return the header with one tensor's, or the metadata's, entry changed in a way that means something."""
    try:
        return _entry(header, rng)
    except (ValueError, RecursionError):
        return octets.mutated(header, rng)


def _entry(header: bytes, rng: Random) -> bytes:
    value = json_texts.read(header.decode())
    if not isinstance(value, Pairs) or not value:
        return json_texts.mutated(header, rng)
    place = rng.randrange(len(value))
    name, entry = value[place]
    if not isinstance(entry, Pairs) or not entry:
        return json_texts.mutated(header, rng)
    value[place] = (name, Pairs(_field(name, entry, rng)))
    match rng.randrange(8):
        case 0:
            value.insert(rng.randrange(len(value)), value[place])
        case 1:
            rng.shuffle(value)
        case 2:
            value[place] = (name + rng.choice(("x", "\x1b[2J", "\u202e", "x" * 600)), entry)
    return json_texts.written(value).encode("utf-8", "surrogatepass")


def _field(name: str, entry: Pairs, rng: Random) -> list[tuple[str, Any]]:
    """Return an entry with one of its fields changed."""
    if name == "__metadata__":
        key, text = rng.choice(entry)
        inner = rng.choice(
            (
                json.dumps(rng.choice(json_texts.TEXTS)),
                rng.choice(json_texts.RAWS),
                json_texts.deep(rng),
                str(text)[:-1],
            )
        )
        return [(k, inner if k == key else v) for k, v in entry]
    values = dict(entry)
    offsets = values.get("data_offsets")
    if isinstance(offsets, list) and len(offsets) == 2 and all(type(end) is int for end in offsets):
        begin, end = offsets
        lies = (
            [begin, end + 4],
            [begin - 4, end],
            [end, begin],
            [-4, end],
            [begin, 2**64 - 1],
            [2**63, 2**63 + 4],
            [begin],
        )
        values["data_offsets"] = rng.choice(
            (*lies, [begin, end, end], Raw(json_texts.deep(rng)), values["data_offsets"])
        )
    if rng.random() < 0.5:
        shape = values.get("shape")
        values["shape"] = rng.choice(
            (*SHAPES, Raw(json_texts.deep(rng)), shape[::-1] if isinstance(shape, list) else shape)
        )
    if rng.random() < 0.2:
        values["dtype"] = rng.choice(TYPES)
    return list(values.items())


def _crowd(rng: Random) -> bytes:
    """Return a file of a great many tensors with one number each; its metadata says that it is an adapter."""
    return _crowd_of(rng.choice((500, 1000, 1025, 4096, 4097, 8000)), rng.choice((5, 60, 200)))


@cache
def _crowd_of(count: int, width: int) -> bytes:
    entries = Pairs([("__metadata__", Pairs([("format", "med-duallora-adapter/1"), ("version", "0")]))])
    for number in range(count):
        fields = Pairs([("dtype", "F32"), ("shape", []), ("data_offsets", [4 * number, 4 * number + 4])])
        entries.append((f"{number:0{width}}", fields))
    return file_of(json_texts.written(entries).encode(), bytes(4 * count))

"""Mutations of protobuf messages: of a field by its type, of what no field is, and of the bytes."""

import math
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tests.fuzz import json_texts, octets

WHOLE = (0, 1, 2, 3, 7, 10, 99, 255, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)
LONG = (*WHOLE, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
REAL = (0.0, -0.0, 1.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e308, 5e-324, 1e-9)
TEXTS: tuple[str, ...] = (
    "",
    "x",
    "demo",
    "elsewhere",
    "ge",
    "philips",
    "\0",
    "\x1b[2J",
    "ä",
    "1.2",
    "1.0",
    "9.9",
    "1." + "9" * 400,
    "0" * 64,
    "f" * 64,
)
TEXTS += (
    "f32",
    "topk+zstd",
    "auc",
    "train_loss",
    "a" * 65,
    "a" * 5000,
    "a" * 300_000,
    "'; DROP TABLE sites; --",
    "../../x",
    "\n",
    "%d",
)
INT32, BYTES = FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.TYPE_BYTES
BIG_BYTES = (1 << 20) + 1


def mutated(data: bytes, kind: type[Message], rng: Random) -> bytes:
    """Return a message of this kind with one to three changes."""
    if rng.random() < 0.12:
        return _as_bytes(data, rng)
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return octets.mutated(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change(message, rng)
    made = message.SerializeToString() + (_unknown(rng) if rng.random() < 0.1 else b"")
    return made if len(made) <= BIG_BYTES + 1000 else data


def _as_bytes(data: bytes, rng: Random) -> bytes:
    match rng.randrange(6):
        case 0:
            return data + _unknown(rng)
        case 1:
            return data + data
        case 2:
            return rng.randbytes(rng.randrange(60))
        case 3:
            return data + b"\x0a\x02\xff\xfe"  # field 1, two bytes: text that is no UTF-8
        case 4:
            return data + b"\x0b" * rng.choice((1, 50, 200, 5000))  # groups within groups
        case _:
            return octets.mutated(data, rng)


def _unknown(rng: Random) -> bytes:
    """Return a field that no release knows."""
    return b"\xfa\x7f" + _varint(size := rng.choice((0, 3, 1000, 100_000))) + bytes(size)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def _change(message: Message, rng: Random) -> None:
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    there = [field for field, _ in message.ListFields()]
    field: Any = rng.choice(there if there and rng.random() < 0.6 else list(fields))
    if rng.random() < 0.08:
        message.ClearField(field.name)
    elif field.message_type and field.message_type.GetOptions().map_entry:
        _change_map(getattr(message, field.name), rng)
    elif field.is_repeated:
        _change_list(message, field, rng)
    elif field.message_type:
        inner = getattr(message, field.name)
        if rng.random() < 0.2:
            inner.SetInParent()
        else:
            _change(inner, rng)
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), rng))


def _change_map(values: Any, rng: Random) -> None:
    """Every map of the protocol is from text to a number."""
    for number in range(rng.choice((1, 1, 2, 33, 2000))):
        values[rng.choice((*TEXTS[:-8], f"m{number}"))] = rng.choice(REAL)


def _change_list(message: Message, field: FieldDescriptor, rng: Random) -> None:
    values: Any = getattr(message, field.name)
    if field.message_type:
        for _ in range(rng.choice((1, 1, 3, 100, 5000))):
            _change(values.add(), rng)
        return
    if values and rng.random() < 0.3:
        del values[rng.randrange(len(values)) :]
    else:
        one = _value(field, "", rng) if rng.random() < 0.7 else ""
        values.extend([one] * rng.choice((1, 3, 100) if len(one) > 20 else (1, 3, 100, 20_000, 300_000)))


def _value(field: FieldDescriptor, now: Any, rng: Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return not now
        case FieldDescriptor.CPPTYPE_ENUM | FieldDescriptor.CPPTYPE_INT32:
            return rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 99, -1, (1 << 31) - 1))
        case FieldDescriptor.CPPTYPE_UINT32:
            return rng.choice((*WHOLE, max(now - 1, 0), min(now + 1, (1 << 32) - 1)))
        case FieldDescriptor.CPPTYPE_UINT64:
            return rng.choice((*LONG, max(now - 1, 0), min(now + 1, (1 << 64) - 1), min(now + 4, (1 << 64) - 1)))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(REAL)
    if field.type == BYTES:
        return _octets(now, rng)
    if now and rng.random() < 0.3:
        return octets.mutated(now.encode(), rng).decode(errors="replace")
    return rng.choice(TEXTS)


def _octets(now: bytes, rng: Random) -> bytes:
    match rng.randrange(8):
        case 0:
            return b""
        case 1 if rng.random() < 0.05:
            return bytes(BIG_BYTES)
        case 2:
            return rng.randbytes(rng.choice((1, 40, 1000)))
        case 3 | 4 | 5:
            return json_texts.mutated(now or b"[]", rng)
        case _:
            return octets.mutated(now, rng)

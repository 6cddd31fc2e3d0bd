"""Mutations of JSON: of values where they stand, and of the text.

An object is a list of pairs in here, so that a name can stand twice; `Raw` is text that stands for a value.
"""

import json
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from random import Random
from typing import Any

from tests.fuzz import octets


@dataclass(frozen=True, slots=True)
class Raw:
    """JSON text, or what claims to be."""

    text: str


class Pairs(list[tuple[str, Any]]):
    """An object's names and values, in order."""


DEPTHS = (2, 40, 300, 490, 700, 900, 990, 5000)
COUNTS = (3, 100, 2000, 20000)
NUMBERS = (0, -1, 1, 2, 7, 4096, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**60, 2**63, 2**64, 10**30, 10**300, -(2**63))
TEXTS: tuple[str, ...] = (
    "",
    "x",
    "F32",
    "BF16",
    "TOPK@0.05",
    "TOPK@1e-300",
    "INT8+zstd",
    "1",
    "\0",
    "ä",
    "😀",
    "__metadata__",
    "x" * 600,
)
TEXTS += ("x" * 50_000, "../../etc/passwd", "%s%n", "1e999", "true", "[1]", "9" * 4400)
RAWS: tuple[str, ...] = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-0",
    "-0.0",
    "1E400",
    "9" * 5000,
    "1." + "0" * 5000,
    '"\\ud800"',
    '"\\u0000"',
)
RAWS += ("null", "true", "false", "[]", "{}", "", "'x'", "0x10", "01", "+1", "1_000", "[1,]", '{"a":1,"a":2}', "/**/1")


def read(text: str) -> Any:
    """Return the value of a text with its objects as pairs. Raises ValueError or RecursionError."""
    return json.loads(text, object_pairs_hook=Pairs)


def written(value: Any) -> str:
    """Return a value's text."""
    match value:
        case Raw():
            return value.text
        case Pairs():
            return "{" + ",".join(f"{encode_basestring_ascii(name)}:{written(inner)}" for name, inner in value) + "}"
        case list():
            return "[" + ",".join(written(inner) for inner in value) + "]"
        case str():
            return encode_basestring_ascii(value)
        case _:
            return json.dumps(value)


def mutated(data: bytes, rng: Random) -> bytes:
    """Return JSON bytes with one to four changes; mostly of values, sometimes of the text."""
    if rng.random() < 0.85:
        try:
            value = read(data.decode())
            for _ in range(rng.choice((1, 1, 2, 4))):
                value = changed(value, rng)
            data = written(value).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            return octets.mutated(data, rng)
    if rng.random() < 0.15:
        data = _as_text(data, rng)
    return data


def changed(value: Any, rng: Random) -> Any:
    """Return a value with one change, somewhere in it."""
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        if isinstance(value, Pairs):
            return Pairs(_pairs_changed(value, place, rng))
        return _list_changed(value, place, rng)
    return another(value, rng)


def _pairs_changed(pairs: Pairs, place: int, rng: Random) -> list[tuple[str, Any]]:
    name, inner = pairs[place]
    one = slice(place, place + 1)
    found = list(pairs)
    match rng.randrange(10):
        case 0:
            found[one] = []
        case 1:
            found[one] = [(name, inner), (name, changed(inner, rng))]
        case 2:
            found[one] = [(rng.choice((*TEXTS, name + "x", name[:-1])), inner)]
        case 3:
            other = rng.randrange(len(found))
            found[place], found[other] = found[other], found[place]
        case 4:
            found.append((rng.choice(TEXTS), another(inner, rng)))
        case _:
            found[one] = [(name, changed(inner, rng))]
    return found


def _list_changed(values: list[Any], place: int, rng: Random) -> list[Any]:
    match rng.randrange(6):
        case 0:
            return values[:place] + values[place + 1 :]
        case 1:
            return values[:place] + [values[place]] * rng.choice(COUNTS[:2]) + values[place:]
        case 2:
            return [*values[:place], another(None, rng), *values[place:]]
        case _:
            return [*values[:place], changed(values[place], rng), *values[place + 1 :]]


def another(value: Any, rng: Random) -> Any:
    """Return a value to stand in the place of another."""
    match rng.randrange(12):
        case 0 | 1 | 2:
            return rng.choice(NUMBERS)
        case 3 | 4:
            return rng.choice(TEXTS)
        case 5 | 6:
            return Raw(rng.choice(RAWS))
        case 7:
            return Raw(deep(rng))
        case 8 if rng.random() < 0.2:
            return Raw(many(rng))
        case 9 if isinstance(value, int | float):
            return value + rng.choice((-1, 1, 4, 0.5, -value))
        case 9 if isinstance(value, str):
            return octets.mutated(value.encode("utf-8", "surrogatepass"), rng).decode(errors="replace")
        case 10:
            return rng.random()
        case _:
            return [value]


def deep(rng: Random) -> str:
    """Return values within values; some of them are never closed."""
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"":', "}]")))
    depth = rng.choice(DEPTHS)
    return opening * depth + "1" + closing * (depth if rng.random() < 0.8 else 0)


def many(rng: Random) -> str:
    """Return a great number of small values."""
    one = rng.choice(("[]", "{}", "0", '"a"', '"é"', "1.5", "12345", '{"a":[]}', '["",{}]'))
    return "[" + ",".join([one] * rng.choice((*COUNTS, 300_000 // len(one)))) + "]"


def _as_text(data: bytes, rng: Random) -> bytes:
    match rng.randrange(7):
        case 0:
            return b"\xef\xbb\xbf" + data
        case 1:
            return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-16-le", "utf-32")))
        case 2:
            return b" " * rng.choice((1, 1000, 300_000)) + data
        case 3:
            return data + rng.choice((b" ", b"x", b"\0", data, b"}"))
        case _:
            return octets.mutated(data, rng)

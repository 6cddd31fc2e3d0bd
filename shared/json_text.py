"""JSON that somebody else wrote: measured before anything is made of it.

A value takes a hundred bytes in memory and three in the text, so a bound on the text alone is none on memory; and text nested a
thousand deep breaks whoever prints what it holds. What this system sends is flat, ASCII (`shared.canonical`) and has every name
once.
"""

import json
import re
from itertools import accumulate
from typing import Any

MAX_DEPTH = 8
MAX_VALUES = 10_000
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b"[]{},")


def read(data: bytes | memoryview, most_bytes: int, most_values: int = MAX_VALUES) -> Any:
    """Return the value of a JSON text. Raises ValueError, whose text says what of it is wrong and goes on from its name."""
    if len(data) > most_bytes:
        raise ValueError(f"of {len(data)} bytes is over the limit of {most_bytes}")
    try:
        text = str(data, "ascii")
    except UnicodeDecodeError:
        raise ValueError("has characters other than ASCII") from None
    marks = _marks(data, 2 * most_values)
    if 1 + len(marks) - marks.count(b"]") - marks.count(b"}") > most_values:
        raise ValueError(f"has more than {most_values} values")
    depth = max(accumulate((1 if mark in b"[{" else -1 for mark in marks if mark != ord(",")), initial=0))
    if depth > MAX_DEPTH:
        raise ValueError(f"is nested {depth} deep, the limit is {MAX_DEPTH}")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from error


def _marks(data: bytes | memoryview, enough: int) -> bytearray:
    """Return the brackets and commas of a text outside its strings, piece by piece: a list of all pieces would be large.

    It stops after `enough`: they are too many values then, or more is closed than was opened, which the parser refuses there.
    """
    marks, end = bytearray(), 0
    for string in _STRING.finditer(data):
        marks += bytes(data[end : string.start()]).translate(None, _NO_MARKS)
        end = string.end()
        if len(marks) > enough:
            return marks
    marks += bytes(data[end:]).translate(None, _NO_MARKS)
    return marks


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"names '{name[:80]}' twice")
        result[name] = value
    return result

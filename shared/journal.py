"""Hash-chained journals: JSON lines of which each holds the SHA-256 of the one before.

A line that is changed, left out, put in or moved breaks the chain where it stands. What a chain cannot show by itself: lines that
are missing at its end, and a chain that was written anew from some line on. Who must be able to show that too notes the digest of
the last line elsewhere (on paper, at a partner's) from time to time: `Chain.heads` of the journal must hold it for ever.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.canonical import canonical_json, sha256_hex
from shared.errors import InputError

GENESIS = "0" * 64
"""What the first line names in place of a line before it."""
FEWEST_DIGITS = 12
"""Of a noted digest."""
OWN = ("n", "at", "event", "previous")
"""Fields of every line: its number from 1, seconds since 1970, what happened, the digest of the line before."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain stands: how many lines it has, and the SHA-256 of the last one, hex."""

    count: int = 0
    digest: str = GENESIS


@dataclass(frozen=True, slots=True)
class Entry:
    """One line, read back. `facts` are its other fields."""

    n: int
    at: float
    event: str
    facts: Mapping[str, Any]


def line(head: Head, at: float, event: str, facts: Mapping[str, Any]) -> bytes:
    """Return the line that follows `head`, without a line break. Facts are JSON values under names other than OWN."""
    if taken := sorted(facts.keys() & set(OWN)):
        raise ValueError(f"'{taken[0]}' is a field of the journal's own")
    return canonical_json({"n": head.count + 1, "at": at, "event": event, "previous": head.digest, **facts})


def after(head: Head, written: bytes) -> Head:
    """Return where the chain stands after a line that `line` made."""
    return Head(head.count + 1, sha256_hex(written))


def read(head: Head, written: bytes) -> Entry:
    """Return the entry in a line that is to follow `head`.

    Raises InputError naming the line and what is wrong with it: no entry, another number, or not the line before it.
    """
    number = head.count + 1
    try:
        value = json.loads(written)
        if not isinstance(value, dict) or canonical_json(value) != written:
            raise ValueError("not as it was written")
        own = {name: value.pop(name) for name in OWN}
    except (ValueError, KeyError, RecursionError) as error:
        raise InputError(f"line {number} is no entry of a journal ({_reason(error)}): it was changed") from error
    if own["n"] != number:
        raise InputError(f"line {number} has number {own['n']}: a line was taken out, put in or moved")
    if own["previous"] != head.digest:
        raise InputError(
            f"line {number} follows a line with digest {str(own['previous'])[:12]}, the one before it has {head.digest[:12]}: that "
            "one was changed"
        )
    return Entry(n=number, at=own["at"], event=own["event"], facts=value)


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)[:80]


@dataclass(frozen=True)
class Chain:
    """A journal that holds together."""

    entries: tuple[Entry, ...]
    heads: tuple[str, ...]
    """The digest of every line, in order: each was the journal's head once."""

    @property
    def head(self) -> Head:
        return Head(len(self.heads), self.heads[-1]) if self.heads else Head()


def check_noted(noted: str) -> str:
    """Return what somebody noted of a head, in lower case. Raises InputError for so few digits that any journal would have them."""
    found = noted.strip().lower()
    if not FEWEST_DIGITS <= len(found) <= len(GENESIS) or not set(found) <= set("0123456789abcdef"):
        raise InputError(
            f"--head is a line's digest as it was noted: {FEWEST_DIGITS} to {len(GENESIS)} hexadecimal digits, got '{noted[:80]}'"
        )
    return found


def verify(lines: Iterable[bytes], noted: str = "") -> Chain:
    """Return all of a journal's entries.

    noted: the beginning of a digest that was the head once, as somebody wrote it down. Raises InputError naming the first line at
    which the chain breaks, or if `noted` is nobody's.
    """
    head, entries, heads = Head(), list[Entry](), list[str]()
    for written in lines:
        entries.append(read(head, written))
        head = after(head, written)
        heads.append(head.digest)
    if noted and not any(digest.startswith(noted) for digest in heads):
        raise InputError(
            f"no line has digest {noted[:64]}, which was the last one's once: lines are missing at the end, or the journal was "
            "written anew"
        )
    return Chain(tuple(entries), tuple(heads))

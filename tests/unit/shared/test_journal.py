"""A journal shows every change of its lines but two, which a digest noted elsewhere shows."""

import json

import pytest

from shared import journal
from shared.canonical import canonical_json, sha256_hex
from shared.errors import InputError
from shared.journal import GENESIS, Head


def chained(count: int = 5, start: Head = Head()) -> list[bytes]:
    """Lines that follow each other; line k tells of k things."""
    head, lines = start, []
    for k in range(count):
        lines.append(journal.line(head, 1000.0 + k, "thing", {"things": k}))
        head = journal.after(head, lines[-1])
    return lines


def test_a_journal_reads_back_as_it_was_written() -> None:
    chain = journal.verify(chained())
    assert [(one.n, one.at, one.event, one.facts) for one in chain.entries] == [
        (k + 1, 1000.0 + k, "thing", {"things": k}) for k in range(5)
    ]
    assert chain.head == Head(5, sha256_hex(chained()[-1]))
    assert journal.verify([]).head == Head(0, GENESIS)


def test_a_line_is_canonical_json_with_the_digest_of_the_one_before() -> None:
    first, second = chained(2)
    assert json.loads(first) == {"n": 1, "at": 1000.0, "event": "thing", "previous": "0" * 64, "things": 0}
    assert json.loads(second)["previous"] == sha256_hex(first)
    assert canonical_json(json.loads(second)) == second


@pytest.mark.parametrize("place", range(4))
def test_any_line_but_the_last_that_is_changed_breaks_the_chain_after_it(place: int) -> None:
    lines = chained()
    lines[place] = lines[place].replace(b'"thing"', b'"think"')
    with pytest.raises(InputError, match=f"^line {place + 2} follows a line .*: that one was changed$"):
        journal.verify(lines)


@pytest.mark.parametrize("place", range(4))
def test_a_line_that_is_left_out_is_seen(place: int) -> None:
    lines = chained()
    del lines[place]
    with pytest.raises(InputError, match=f"^line {place + 1} has number {place + 2}: a line was taken out"):
        journal.verify(lines)


def test_lines_that_changed_places_are_seen() -> None:
    lines = chained()
    lines[1], lines[2] = lines[2], lines[1]
    with pytest.raises(InputError, match=r"^line 2 has number 3"):
        journal.verify(lines)


def test_a_line_put_in_with_the_right_number_is_seen() -> None:
    lines = chained()
    lines.insert(2, journal.line(Head(2, GENESIS), 0.0, "forged", {}))
    with pytest.raises(InputError, match=r"^line 3 follows a line with digest 000000000000"):
        journal.verify(lines)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"1",
        b"{",
        b'{"n":1}',
        b"\xff",
        b"[" * 100_000,
        canonical_json({"n": 1, "at": 1.0, "event": "x", "previous": GENESIS}) + b" ",
        b'{"n":1,"event":"x","at":1.0,"previous":"' + GENESIS.encode() + b'"}',
        b'{"at":NaN,"event":"x","n":1,"previous":"' + GENESIS.encode() + b'"}',
    ],
)
def test_what_is_no_line_of_a_journal_is_refused(line: bytes) -> None:
    with pytest.raises(InputError, match=r"^line 1 is no entry of a journal \(.+\): it was changed$"):
        journal.verify([line])


def test_what_a_chain_cannot_show_a_noted_head_does() -> None:
    """Lines cut off at the end, and a chain written anew, hold together by themselves."""
    lines = chained()
    noted = journal.verify(lines).head.digest
    journal.verify(lines[:3])
    with pytest.raises(InputError, match="lines are missing at the end, or the journal was written anew"):
        journal.verify(lines[:3], noted)
    anew = [*lines[:4], journal.line(Head(4, sha256_hex(lines[3])), 5.0, "other", {})]
    journal.verify(anew)
    with pytest.raises(InputError, match="written anew"):
        journal.verify(anew, noted)
    assert journal.verify([*lines, *chained(3, Head(5, noted))], noted[:12]).head.count == 8


@pytest.mark.parametrize("noted", ["f", "3f0c9a8e41d", "3f0c9a8e41dz", "0" * 65, "..."])
def test_a_few_digits_are_no_head_that_was_noted(noted: str) -> None:
    with pytest.raises(InputError, match="12 to 64 hexadecimal digits, got"):
        journal.check_noted(noted)
    assert journal.check_noted(" 3F0C9A8E41D2\n") == "3f0c9a8e41d2"


@pytest.mark.parametrize("name", journal.OWN)
def test_facts_cannot_pass_for_the_journals_own_fields(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' is a field of the journal's own"):
        journal.line(Head(), 0.0, "x", {name: 1})

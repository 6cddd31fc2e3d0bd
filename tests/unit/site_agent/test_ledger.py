"""The egress ledger: written before anything leaves, whole after a kill and on a full disk, and adding up."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from shared import journal
from shared.errors import InputError
from site_agent import ledger
from site_agent.ledger import LEDGER, Leaving, Ledger, Sums

UPDATE = Leaving(round=3, digest="ab" * 32, payload_bytes=400, tensors=("a", "b"), facts={"training_patients": 10})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / LEDGER


def test_a_call_is_on_disk_before_it_is_made_and_its_end_after(path: Path) -> None:
    opened = Ledger(path, Clock())
    number = opened.leaving("UploadDelta", 1, UPDATE)
    written = journal.verify(path.read_bytes().splitlines()).entries
    assert [(one.n, one.at, one.event) for one in written] == [(1, 1000.0, "leaving")]
    assert dict(written[0].facts) == {
        "rpc": "UploadDelta", "attempt": 1, "round": 3, "payload_bytes": 400, "digest": "ab" * 32, "tensors": ["a", "b"],
        "says": {"training_patients": 10}, "contract": "",
    }  # fmt: skip
    opened.left(number, "UploadDelta", "OK", 489, 400)
    opened.close()
    last = ledger.read(path).entries[-1]
    assert (last.event, dict(last.facts)) == (
        "left",
        {"line": 1, "rpc": "UploadDelta", "code": "OK", "bytes": 489, "payload_bytes": 400},
    )


def test_updates_of_which_tensors_left_are_known_under_any_contract(path: Path) -> None:
    opened = Ledger(path)
    for contract, number in (("a", 1), ("a", 1), ("a", 2), ("b", 1)):
        opened.contract = contract
        opened.leaving("UploadDelta", 1, replace(UPDATE, round=number))
    nothing = opened.leaving("UploadDelta", 1, replace(UPDATE, round=7))
    opened.left(nothing, "UploadDelta", "UNAVAILABLE", 80, 0)
    opened.leaving("Join", 1, Leaving())
    assert opened.updates == {("a", 1), ("a", 2), ("b", 1)}
    opened.close()
    assert ledger.updates(ledger.read(path)) == opened.updates


def test_it_is_readable_by_its_owner_only(path: Path) -> None:
    Ledger(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_ledger_goes_on_where_it_was(path: Path) -> None:
    for k in range(3):
        opened = Ledger(path)
        assert opened.head.count == k
        opened.note("held", {"round": k})
        opened.close()
    assert [one.facts["round"] for one in ledger.read(path).entries] == [0, 1, 2]


def test_calls_that_say_nothing_of_the_data_are_sums(path: Path) -> None:
    clock = Clock()
    opened = Ledger(path, clock)
    for _ in range(10):
        opened.control("AwaitRound", 40)
    opened.control("FetchAdapter", 90)
    assert path.read_bytes() == b""
    clock.now += ledger.CONTROL_EVERY_S
    opened.control("AwaitRound", 40)
    assert dict(ledger.read(path).entries[0].facts["calls"]) == {
        "AwaitRound": {"calls": 11, "bytes": 440},
        "FetchAdapter": {"calls": 1, "bytes": 90},
    }
    opened.control("AwaitRound", 40)
    opened.leaving("UploadDelta", 0, UPDATE)
    assert [one.event for one in ledger.read(path).entries] == ["control", "control", "leaving"]
    opened.control("Probe", 7)
    opened.close()
    assert ledger.totals(ledger.read(path)).by_rpc == {
        "AwaitRound": Sums(12, 480),
        "FetchAdapter": Sums(1, 90),
        "Probe": Sums(1, 7),
    }


def test_totals_add_up_finished_calls_and_name_those_nobody_saw_the_end_of(path: Path) -> None:
    opened = Ledger(path)
    cut = opened.leaving("UploadDelta", 0, UPDATE)
    opened.left(cut, "UploadDelta", "UNAVAILABLE", 120, 100)
    again = opened.leaving("UploadDelta", 1, UPDATE)
    opened.left(again, "UploadDelta", "OK", 489, 400)
    lost = opened.leaving("UploadDelta", 2, UPDATE)
    found = ledger.totals(ledger.read(path))
    assert found.by_rpc == {"UploadDelta": Sums(2, 609, 500)}
    assert found.unfinished == {lost: 400}
    opened.close()


def test_what_has_left_is_counted_by_contract_also_after_a_restart(path: Path) -> None:
    opened = Ledger(path)
    opened.contract = "c1"
    cut = opened.leaving("UploadDelta", 0, UPDATE)
    opened.left(cut, "UploadDelta", "UNAVAILABLE", 120, 100)
    opened.leaving("UploadDelta", 1, UPDATE)  # and the agent is killed
    opened.leaving("UploadDelta", 0, Leaving(round=4, payload_bytes=50))
    again = Ledger(path)
    for one in (opened, again):
        one.contract = "c1"
        assert (one.spent(3).for_round, one.spent(3).in_all, one.spent(3).rounds) == (500, 550, {3, 4})
        one.contract = "c2"
        assert (one.spent(3).for_round, one.spent(3).in_all, one.spent(3).rounds) == (0, 0, frozenset())
    with pytest.raises(ValueError, match="0 or more bytes of tensors out, got -1"):
        opened.leaving("UploadDelta", 0, Leaving(round=3, payload_bytes=-1))


@pytest.mark.parametrize("kept", [1, 10, 200])
def test_half_a_line_at_the_end_is_removed_and_the_next_line_says_so(path: Path, kept: int) -> None:
    opened = Ledger(path)
    opened.note("held", {"round": 1})
    opened.leaving("UploadDelta", 0, UPDATE)
    opened.close()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + kept])
    assert len(ledger.read(path).entries) == 1
    Ledger(path).close()
    entries = ledger.read(path).entries
    assert [(one.event, dict(one.facts)) for one in entries[1:]] == [("torn_line_removed", {"bytes": kept})]


def test_a_changed_ledger_stops_the_agent_and_says_what_to_do(path: Path) -> None:
    opened = Ledger(path)
    for k in range(3):
        opened.note("held", {"round": k})
    opened.close()
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":7'))
    with pytest.raises(InputError, match=r"egress\.jsonl: line 3 follows a line .* Keep the file as evidence"):
        Ledger(path)
    with pytest.raises(InputError, match="line 3"):
        ledger.read(path)


def test_a_full_disk_leaves_nothing_half_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Ledger(path)
    opened.note("held", {"round": 1})
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:20]))
    with pytest.raises(OSError) as raised:
        opened.leaving("UploadDelta", 0, UPDATE)
    assert raised.value.errno == errno.ENOSPC
    monkeypatch.setattr(os, "write", real)
    assert opened.leaving("UploadDelta", 0, UPDATE) == 2
    opened.close()
    assert [one.event for one in ledger.read(path).entries] == ["held", "leaving"]


def test_a_line_after_the_end_goes_into_no_other_file(path: Path) -> None:
    """The number of a closed file is given to the next one that is opened: a socket, say."""
    opened = Ledger(path)
    opened.control("AwaitRound", 40)
    opened.close()
    opened.close()
    with (path.parent / "other").open("wb+") as other:
        for write in (lambda: opened.note("held", {}), lambda: opened.left(1, "Join", "OK", 1, 0)):
            with pytest.raises(OSError):
                write()
        other.seek(0)
        assert other.read() == b""
    assert [one.event for one in ledger.read(path).entries] == ["control"]


def test_there_is_no_ledger_where_no_agent_was(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the egress ledger .*: No such file"):
        ledger.read(tmp_path / LEDGER)

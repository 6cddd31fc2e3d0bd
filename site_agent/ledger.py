"""The egress ledger: what left this site, when and how much, in a hash-chained file that is written before anything leaves.

Every call that says something about the site's data (Join, BeginUpload, UploadDelta, ReportEvaluation) has two lines: `leaving`,
durable before its first byte is handed to the network, and `left`, with how it ended and the exact bytes. A kill between the two
leaves the first alone: then at most what it names has left. Calls that say nothing of the data (waiting, downloads, probes) are
counted and written as sums, at most an hour apart, before any other line, and at the end.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared import journal
from shared.canonical import sync_folder
from shared.errors import InputError
from shared.journal import Chain, Head

LEDGER = "egress.jsonl"
CONTROL_EVERY_S = 3600.0
LEAVING, LEFT, CONTROL, TORN = "leaving", "left", "control", "torn_line_removed"
CLOSED = -1
HELD, RELEASED, WITHHELD = "held", "released", "withheld"
DEBITED = "debited"
"""Names the digest of a line of the privacy journal (site_agent/privacy/debits.py), so that one that is lost is missed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """What a call is about to take out. `payload_bytes`: of tensors; `digest`: of the update they are, hex; `facts`: what else is
    said about the site's data, by name."""

    round: int = 0
    digest: str = ""
    payload_bytes: int = 0
    tensors: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Ledger:
    """A ledger that one agent appends to. Safe to use from several threads.

    Raises InputError when opened if the chain is broken: an agent whose ledger was changed sends nothing. Half a line at the end is
    what a kill leaves: what it was about had not left, and it is removed, which the next line says.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._lock = threading.Lock()
        self._control: dict[str, list[int]] = {}
        self.contract = ""
        """SHA-256 of the contract that calls are made under, hex; empty before there is one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            whole = path.read_bytes()
            end = whole.rfind(b"\n") + 1
            chain = _verified(path, whole[:end].splitlines())
            self._head, self._spent = chain.head, _Accounts.of_chain(chain)
            self.debited = {str(one.facts["digest"]) for one in chain.entries if one.event == DEBITED}
            if end < len(whole):
                os.ftruncate(self._file, end)
                self._append(TORN, {"bytes": len(whole) - end}, durable=True)
        except BaseException:
            os.close(self._file)
            raise
        sync_folder(path.parent)
        self._control_since = clock()

    @property
    def head(self) -> Head:
        """Where the chain stands."""
        return self._head

    def leaving(self, rpc: str, attempt: int, what: Leaving) -> int:
        """Write that a call is about to be made, durably, and return the line's number. Raises OSError, with nothing written."""
        if what.payload_bytes < 0:
            raise ValueError(f"a call takes 0 or more bytes of tensors out, got {what.payload_bytes}")
        facts = {"rpc": rpc, "attempt": attempt, "round": what.round, "payload_bytes": what.payload_bytes}
        facts |= {"digest": what.digest, "tensors": list(what.tensors), "says": dict(what.facts)}
        number = self.note(LEAVING, {**facts, "contract": self.contract})
        self._spent.begin(number, self.contract, what.round, what.payload_bytes)
        return number

    def spent(self, round_number: int) -> "Spent":
        """Return what has left under the contract in force."""
        return self._spent.of(self.contract, round_number)

    @property
    def updates(self) -> frozenset["UpdateName"]:
        """The updates that have left, under any contract."""
        return self._spent.updates

    def left(self, number: int, rpc: str, code: str, message_bytes: int, payload_bytes: int) -> None:
        """Write how the call of a `leaving` line ended. Raises OSError; the call then counts as unfinished."""
        facts = {"line": number, "rpc": rpc, "code": code, "bytes": message_bytes, "payload_bytes": payload_bytes}
        with self._lock:
            self._append(LEFT, facts, durable=False)
            self._spent.end(number, payload_bytes)

    def control(self, rpc: str, message_bytes: int) -> None:
        """Count a call that says nothing of the site's data. Raises OSError where the sums are due and cannot be written."""
        with self._lock:
            counts = self._control.setdefault(rpc, [0, 0])
            counts[0] += 1
            counts[1] += message_bytes
            if self._clock() - self._control_since >= CONTROL_EVERY_S:
                self._write_control()

    def note(self, event: str, facts: Mapping[str, Any]) -> int:
        """Write a line durably, after the sums so far, and return its number. Raises OSError, with nothing of it written."""
        with self._lock:
            self._write_control()
            return self._append(event, facts, durable=True)

    def close(self) -> None:
        """Write the sums, and let go of the file. A line that comes later raises OSError, and goes into no other file."""
        with self._lock:
            if self._file == CLOSED:
                return
            try:
                self._write_control()
            finally:
                file, self._file = self._file, CLOSED
                os.close(file)

    def _write_control(self) -> None:
        if self._control:
            sums = {rpc: {"calls": calls, "bytes": size} for rpc, (calls, size) in sorted(self._control.items())}
            self._append(CONTROL, {"calls": sums}, durable=False)
            self._control = {}
        self._control_since = self._clock()

    def _append(self, event: str, facts: Mapping[str, Any], *, durable: bool) -> int:
        line = journal.line(self._head, self._clock(), event, facts)
        end = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line + b"\n") != len(line) + 1:
                raise OSError(28, os.strerror(28))
            if durable:
                os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, end)
            raise
        self._head = journal.after(self._head, line)
        return self._head.count


UpdateName = tuple[str, int]
"""Of an update of which tensors left: SHA-256 of its contract, hex, and its round."""


def updates(chain: Chain) -> frozenset[UpdateName]:
    """Return the updates of which tensors have left, or may have."""
    return _Accounts.of_chain(chain).updates


@dataclass(frozen=True, slots=True)
class Spent:
    """Bytes of tensors that have left under a contract: for one round, and in all; and the rounds that something left for.

    Of a call that nobody saw the end of all counts that may have left.
    """

    for_round: int
    in_all: int
    rounds: frozenset[int]


class _Accounts:
    """Bytes by contract and round, from a ledger's lines."""

    def __init__(self) -> None:
        self._bytes: dict[tuple[str, int], int] = {}
        self._begun: dict[int, tuple[tuple[str, int], int]] = {}

    @classmethod
    def of_chain(cls, chain: Chain) -> "_Accounts":
        """Read them from what was written before."""
        made = cls()
        for one in chain.entries:
            if one.event == LEAVING:
                made.begin(one.n, one.facts.get("contract", ""), one.facts["round"], one.facts["payload_bytes"])
            elif one.event == LEFT:
                made.end(one.facts["line"], one.facts["payload_bytes"])
        return made

    def begin(self, line: int, contract: str, round_number: int, size: int) -> None:
        """Count all that a call may take out."""
        key = contract, round_number
        self._bytes[key] = self._bytes.get(key, 0) + size
        self._begun[line] = key, size

    def end(self, line: int, size: int) -> None:
        """Count what it did take out."""
        if line in self._begun:
            key, most = self._begun.pop(line)
            self._bytes[key] += size - most

    @property
    def updates(self) -> frozenset[UpdateName]:
        return frozenset(name for name, size in self._bytes.items() if size)

    def of(self, contract: str, round_number: int) -> Spent:
        mine = {number: size for (held, number), size in self._bytes.items() if held == contract and size}
        return Spent(mine.get(round_number, 0), sum(mine.values()), frozenset(mine))


def read(path: Path, noted: str = "") -> Chain:
    """Return a ledger that holds together, while an agent may be writing it.

    `noted`: a digest that was the last line's once. Raises InputError if there is none, or as `shared.journal.verify`.
    """
    try:
        whole = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read the egress ledger {path}: {error.strerror}; name an agent's --state folder"
        ) from error
    return _verified(path, whole[: whole.rfind(b"\n") + 1].splitlines(), noted)


def _verified(path: Path, lines: Iterable[bytes], noted: str = "") -> Chain:
    try:
        return journal.verify(lines, noted)
    except InputError as error:
        raise InputError(
            f"egress ledger {path}: {error}. Keep the file as evidence and find out who changed it; once it is moved away, the "
            "agent begins a new one"
        ) from error


@dataclass(slots=True)
class Sums:
    """Calls and bytes of one RPC: of whole messages, and of the tensors in them."""

    calls: int = 0
    bytes: int = 0
    payload_bytes: int = 0

    def add(self, calls: int, size: int, payload: int) -> None:
        self.calls += calls
        self.bytes += size
        self.payload_bytes += payload


@dataclass(frozen=True, slots=True)
class Totals:
    """What a ledger adds up to, by RPC. `unfinished`: lines of calls that nobody saw the end of, and the most tensor bytes that
    left with each."""

    by_rpc: Mapping[str, Sums]
    unfinished: Mapping[int, int]


def totals(chain: Chain) -> Totals:
    """Add up a ledger."""
    by_rpc: dict[str, Sums] = {}
    unfinished: dict[int, int] = {}
    for one in chain.entries:
        facts = one.facts
        if one.event == LEAVING:
            unfinished[one.n] = facts["payload_bytes"]
        elif one.event == LEFT:
            unfinished.pop(facts["line"], None)
            by_rpc.setdefault(facts["rpc"], Sums()).add(1, facts["bytes"], facts["payload_bytes"])
        elif one.event == CONTROL:
            for rpc, sums in facts["calls"].items():
                by_rpc.setdefault(rpc, Sums()).add(sums["calls"], sums["bytes"], 0)
    return Totals(dict(sorted(by_rpc.items())), unfinished)


def logged(log: Path) -> dict[str, Sums]:
    """Return what the agent's log says of its calls, by RPC. Raises InputError if it cannot be read."""
    found: dict[str, Sums] = {}
    try:
        with log.open(encoding="utf-8") as file:
            events = [one for line in file if '"rpc_finished"' in line and (one := _event(line)) is not None]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{log} is no log of an agent ({error}); give the file of --log") from error
    for one in (one for one in events if one.get("side") == "site"):
        found.setdefault(one["rpc"], Sums()).add(1, one["bytes_up"], one["payload_bytes_up"])
    return found


def _event(line: str) -> dict[str, Any] | None:
    """Return a log's line; None for half of one, as a kill or a full disk leaves it."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def differences(ledger: Totals, log: Mapping[str, Sums]) -> list[str]:
    """Return where the two differ, in words, RPC by RPC. Calls nobody saw the end of are in neither."""
    lines = []
    for rpc in sorted(ledger.by_rpc.keys() | log.keys()):
        mine, theirs = ledger.by_rpc.get(rpc, Sums()), log.get(rpc, Sums())
        if mine != theirs:
            lines.append(
                f"{rpc}: the ledger has {mine.calls} calls, {mine.bytes} bytes, {mine.payload_bytes} of tensors; the log has "
                f"{theirs.calls}, {theirs.bytes}, {theirs.payload_bytes}"
            )
    return lines

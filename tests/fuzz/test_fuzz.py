"""A short run of all targets, and that the harness sees what it is there to see."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest

from shared import status
from shared.errors import AggregatorUnreachable, InvalidAdapter, MedDualLoRAError, NewerStore
from tests.fuzz import __main__ as command
from tests.fuzz import calls, loopback, targets, watch, worker
from tests.fuzz.calls import Call, Case
from tests.fuzz.target import ACCEPTED, MARGIN_BYTES, Ready, Undocumented
from tests.fuzz.watch import Fault, Seen, Tally

COUNT = 3000
ROOT = Path(__file__).resolve().parents[2]


class Planted:
    """A target whose only case does what it is told to."""

    def __init__(self, run: Callable[[], object], payload_bytes: int = 0) -> None:
        self._run, self._payload_bytes = run, payload_bytes

    def seeds(self) -> list[bytes]:
        return [b"seed"]

    def mutated(self, data: bytes, rng: Random) -> bytes:
        return data + rng.randbytes(1)

    def ready(self, data: bytes) -> Ready:
        def run() -> str:
            self._run()
            return ACCEPTED

        return Ready(self._payload_bytes, run)

    def close(self) -> None:
        """Nothing is held."""


def raising(error: Exception) -> Callable[[], object]:
    def run() -> None:
        raise error

    return run


def kinds(run: Callable[[], object], payload_bytes: int = 0) -> list[str]:
    return [fault.kind for fault in watch.run(Planted(run, payload_bytes), b"").faults]


def spin() -> None:
    end = time.process_time() + watch.HANG_S + 0.1
    while time.process_time() < end:
        continue


def test_thousands_of_mutations_of_every_target_break_nothing(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "tests.fuzz", "--count", str(COUNT), "--seed", "1", "--out", str(tmp_path)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    figures = json.loads((tmp_path / "figures.json").read_text())["targets"]
    assert figures.keys() == targets.SHARES.keys()
    assert sum(one["mutations"] for one in figures.values()) >= COUNT
    for name, one in figures.items():
        assert not one["faults"], name
        assert len(one["outcomes"]) > 1, name
        assert one["most_over_bytes"] < MARGIN_BYTES, name


@pytest.mark.parametrize("name", targets.SHARES)
def test_what_a_well_behaved_peer_sends_is_taken(name: str) -> None:
    target = targets.make(name)
    try:
        seen = [watch.run(target, data) for data in target.seeds()]
    finally:
        target.close()
    assert not [one for one in seen if one.faults]
    assert sum(one.label == ACCEPTED for one in seen) > len(seen) / 2


def test_a_crash_is_seen() -> None:
    for error in (KeyError("x"), RecursionError(), NewerStore("not for a caller"), MedDualLoRAError("nobody's")):
        assert kinds(raising(error)) == ["crash"]


def test_a_documented_refusal_is_none() -> None:
    for error in (InvalidAdapter("x"), AggregatorUnreachable("x")):
        assert kinds(raising(error)) == []


def test_a_hang_is_seen_by_the_time_of_the_cpu() -> None:
    assert kinds(spin) == ["hang"]


def test_a_hang_that_takes_no_cpu_is_seen_when_it_takes_as_long_every_time() -> None:
    assert kinds(lambda: time.sleep(watch.HANG_S + 0.1)) == ["hang"]


def test_a_case_that_was_kept_waiting_once_does_not_hang() -> None:
    waits = iter([watch.HANG_S + 0.1, 0.0])
    assert kinds(lambda: time.sleep(next(waits))) == []


def test_memory_beyond_the_manifest_and_a_megabyte_is_seen() -> None:
    assert kinds(lambda: np.zeros(MARGIN_BYTES + 4096, np.uint8)) == ["allocation"]
    assert kinds(lambda: np.zeros(MARGIN_BYTES + 4096, np.uint8), payload_bytes=10_000) == []
    assert kinds(lambda: b"x" * (MARGIN_BYTES // 2)) == []


def test_memory_that_is_given_back_at_once_counts_too() -> None:
    assert kinds(lambda: len(bytes(2 * MARGIN_BYTES))) == ["allocation"]


def test_a_fault_is_kept_with_the_command_that_replays_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tally = worker.tallied("planted", Planted(raising(KeyError("x"))), 5, 0, tmp_path, guide=False)
    assert (tally.mutations, tally.faults, tally.outcomes) == (5, {"crash": 5}, {"KeyError": 5})
    (kept,) = tmp_path.glob("planted-*.case")  # one of them: all come from the same line
    assert kept.read_bytes().startswith(b"seed")
    said = capsys.readouterr().out
    assert "FAILED planted: crash: KeyError" in said
    assert f"python -m tests.fuzz --target planted --replay {kept}" in said
    assert not Tally.from_json((tmp_path / "planted-0.json").read_text()).is_good


def test_a_kept_input_is_replayed(tmp_path: Path) -> None:
    place = tmp_path / "one.case"
    place.write_bytes(b"\x07" * 8)
    run = [sys.executable, "-m", "tests.fuzz", "--target", "files", "--replay", str(place)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "files: InvalidAdapter" in done.stdout


def test_a_process_that_dies_is_a_crash(tmp_path: Path) -> None:
    (tally,) = command.run({"no such target": 10}, 0, 1, tmp_path)
    assert (tally.mutations, tally.faults) == (0, {"crash": 1})
    assert not tally.is_good


def test_figures_of_two_processes_add_up() -> None:
    one, other = Tally("files", duration_s=2.0), Tally("files", duration_s=3.0)
    one.add(Seen(ACCEPTED, (), 0.5, 0.5, 100))
    other.add(Seen("KeyError", (Fault("crash", "x"),), 0.1, 0.1, 200))
    both = one.with_(other)
    assert (both.mutations, both.accepted, both.refused, both.faults) == (2, 1, 0, {"crash": 1})
    assert (both.most_cpu_s, both.most_over_bytes, both.duration_s) == (0.5, 200, 3.0)


def test_shares_are_whole_and_add_up() -> None:
    for total in (6, 100, 12_345, 1_000_000):
        found = targets.counts(total, list(targets.SHARES))
        assert min(found.values()) >= 1
        assert sum(found.values()) >= total


def test_a_case_of_calls_is_read_as_it_was_written() -> None:
    case = Case((Call("Join", (b"\n{}", b""), "ge", True), Call("Probe", ())), 1)
    assert calls.unpacked(calls.packed(case)) == case
    assert calls.unpacked(b"no case") is None


class Failing:
    """A channel whose uploads end in INTERNAL with this text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def stream_unary(self, path: str) -> Callable[..., Awaitable[bytes]]:
        async def call(requests: object, **options: object) -> bytes:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing, self._text)

        return call


def test_a_status_that_grpc_lost_is_told_from_an_internal_error_of_the_aggregator() -> None:
    def answered(text: str) -> str:
        channel: Any = Failing(text)
        return asyncio.run(loopback.answer(channel, Call("UploadDelta", ())))

    assert answered(loopback.LOST_STATUS) == "INTERNAL by gRPC"
    for text in (status.INTERNAL_TEXT, "Exception deserializing request!"):
        with pytest.raises(Undocumented, match="INTERNAL"):
            answered(text)


@pytest.mark.parametrize("name", ["files", "contracts", "payloads"])
def test_the_same_seed_makes_the_same_mutations(name: str) -> None:
    target = targets.make(name)
    try:
        data = target.seeds()[0]
        for seed in range(100):
            assert target.mutated(data, Random(seed)) == target.mutated(data, Random(seed))
    finally:
        target.close()

"""The benchmarks of rounds without training and of idle sites, at the smallest size there is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration


def run(out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run a benchmark; return what it wrote and what it printed. That a target is missed does not matter here."""
    command = [sys.executable, "-m", "experiments.communication", *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    written: dict[str, Any] = json.loads((out / f"{arguments[0]}.json").read_text())
    return written, done.stdout


def test_rounds_are_timed_beside_the_plain_exchange(tmp_path: Path) -> None:
    sizes = ("--sites", "3", "--size", "0.1", "--rounds", "4", "--turns", "1", "--disk", str(tmp_path))
    found, shown = run(tmp_path / "out", "orchestration", *sizes)
    (measured,) = found["measured"]
    assert [len(measured[name][0]) for name in ("rounds_s", "plain_rounds_s")] == [4, 4]
    assert measured["ratio"] == pytest.approx(measured["round_s"]["median"] / measured["plain_s"]["median"])
    assert measured["payload_bytes"] == 107_520
    assert len(found["machine"]["load_average"]) == 3
    assert "plain exchange, ms" in shown
    assert "3 sites, 0.1 MB: a round, in plain exchanges" in shown


def test_a_site_that_waits_is_counted_poll_by_poll(tmp_path: Path) -> None:
    found, shown = run(tmp_path, "idle", "--polls", "2", "--wait-s", "0.5")
    assert found["polls"] == 2
    assert found["connections"] == 1
    assert all(up > 0 and down > 0 for up, down in found["bytes_by_poll"])
    assert found["bytes_per_s"] == pytest.approx((found["bytes_up"] + found["bytes_down"]) / found["seconds"])
    assert "a site that waits" in shown
    assert found["targets"] == []  # agents ask for 30 s: polls of half a second say nothing of the target

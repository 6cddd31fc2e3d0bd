"""The demo as a person runs it: real processes, a whole summary at the end, and nothing left behind when it fails."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from experiments.demo.summaries import ARMS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
SITES = ["siemens", "philips", "ge", "canon"]
ROUNDS = 2
SMALL = ["--scale", "0.16", "--test-cases", "8", "--rounds", str(ROUNDS), "--augmentation", "none"]
"""Smaller, and Canon would have no normal case left to train on."""
BUSY = 1.5
"""What is promised of an idle machine may take so much longer on a busy one."""


@dataclass
class Ran:
    """A demo that ended: its lines with the second each came at."""

    code: int
    lines: list[tuple[float, str]]
    errors: str
    out: Path

    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "summary.json").read_text())
        return found


def start(out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.demo", "--out", str(out), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(out: Path, *options: str) -> Ran:
    began, lines = time.monotonic(), []
    with start(out, *options) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            lines.append((time.monotonic() - began, line.rstrip("\n")))
        errors = process.stderr.read()
    return Ran(process.returncode, lines, errors, out)


def still_running(out: Path) -> list[str]:
    """Command lines of processes that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(out) in words:
                found.append(words)
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    ran = run(tmp_path_factory.mktemp("demo") / "run", *SMALL)
    assert ran.code == 0, ran.errors
    return ran


def test_small_demo_ends_with_a_complete_summary(small: Ran) -> None:
    summary = small.summary()
    assert summary["synthetic"] is True
    assert (summary["seed"], summary["rounds"], summary["verified_rounds"]) == (0, ROUNDS, ROUNDS)
    assert list(summary["sites"]) == SITES
    for site in summary["sites"].values():
        assert 0 < site["healthy_share"] < 1
        assert site["training_patients"] + site["validation_patients"] == site["cases"]
        assert [entry["version"] for entry in site["history"]] == [1, 2]
        for arm in ARMS:
            figures = site["test"][arm]
            assert figures["n"] == site["test_patients"] == 8
            assert 0 <= figures["auc"] <= 1
            for point in (figures["at_half"], figures["at_validation"]):
                assert point["balanced_accuracy"] == pytest.approx((point["sensitivity"] + point["specificity"]) / 2)
            assert 0 < figures["at_validation"]["threshold"] < 1
    for arm in ARMS:
        tested = [site["test"][arm] for site in summary["sites"].values()]
        assert summary["mean"][arm]["auc"] == pytest.approx(sum(f["auc"] for f in tested) / 4)
        lowest = min(f["at_half"]["balanced_accuracy"] for f in tested)
        assert summary["worst_site"][arm]["at_half"]["balanced_accuracy"] == lowest
    assert summary["seconds"]["total"] >= max(p["wall"] for p in summary["seconds"]["phases"].values())
    assert set(summary["seconds"]["sites"]["ge"]) >= {"activations", "training", "comparing", "cpu", "wall"}
    assert {"python", "torch", "monai", "grpcio", "med-duallora"} <= set(summary["versions"])


def test_every_site_ended_with_the_adapter_that_the_summary_names(small: Ran) -> None:
    wanted = small.summary()["adapter"]
    for site in SITES:
        held = json.loads((small.out / "sites" / site / "report.json").read_text())["adapter"]
        assert {name: wanted[name] for name in held} == held
    with safe_open(small.out / "sites" / "ge" / "global.safetensors", "numpy") as file:
        assert sum(file.get_tensor(name).size for name in file.keys()) == wanted["parameters"]  # noqa: SIM118


def test_communication_is_of_whole_rounds_and_both_sides_agree(small: Ran) -> None:
    cost, adapter = small.summary()["communication"], small.summary()["adapter"]
    assert cost["updates"] == ROUNDS * len(SITES)
    assert cost["calls_agreed"] == cost["calls_compared"] == cost["calls"]
    for site in SITES:
        for number in ("1", "2"):
            assert adapter["bytes"] < cost["bytes_up"][site][number] < 1.1 * adapter["bytes"]
    total = sum(size for way in ("bytes_up", "bytes_down") for site in cost[way].values() for size in site.values())
    assert total == cost["total"]["bytes"]
    assert cost["reduction"] == pytest.approx(2 * cost["full_model_bytes"] * cost["updates"] / total)


def test_output_begins_at_once_goes_on_and_ends_with_the_table(small: Ran) -> None:
    times = [at for at, _ in small.lines]
    assert times[0] < 2.0 * BUSY
    assert max(b - a for a, b in itertools.pairwise(times)) < 5.0 * BUSY
    text = small.text()
    assert text.splitlines()[0].endswith(f"in {small.out}")
    assert "SYNTHETIC" in text.splitlines()[0]
    assert "round 2 of 2: all 4 updates accepted" in text
    assert max(len(line) for line in text[text.index("held-out cases") :].splitlines()[:-1]) <= 100
    assert text.splitlines()[-1].startswith("report: ")


class Loads(HTMLParser):
    found: list[str]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "data")]


def test_report_stands_on_its_own(small: Ran) -> None:
    page = (small.out / "report.html").read_text()
    parser = Loads()
    parser.found = []
    parser.feed(page)
    assert parser.found == []
    assert "SYNTHETIC DATA" in page
    assert small.summary()["adapter"]["digest"] in page


def test_nothing_is_left_running(small: Ran) -> None:
    assert still_running(small.out) == []


def test_a_failing_process_is_named_with_its_exit_code_and_last_words(tmp_path: Path) -> None:
    """A backbone without its config.json looks whole to the demo; `site-agent init-adapter` refuses it."""
    with safe_open(ROOT / "site_agent" / "models" / "demo" / "model.safetensors", "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (tmp_path / "weights").mkdir()
    save_file(tensors, tmp_path / "weights" / "model.safetensors")
    ran = run(tmp_path / "run", *SMALL, "--weights", str(tmp_path / "weights"))
    assert ran.code == 1
    assert "init-adapter ended with exit code 3" in ran.errors
    assert "no config.json beside it" in ran.errors
    assert not (ran.out / "summary.json").exists()
    assert still_running(ran.out) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_everything(tmp_path: Path, number: int, code: int) -> None:
    with start(tmp_path / "run", *SMALL) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "certificates: done" in line:
                break
        assert still_running(tmp_path / "run")
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert f"stopped by {signal.Signals(number).name}" in errors
    assert still_running(tmp_path / "run") == []


def test_two_demos_in_one_folder_are_refused(tmp_path: Path) -> None:
    with start(tmp_path / "run", *SMALL) as first:
        assert first.stdout is not None
        first.stdout.readline()
        second = run(tmp_path / "run", *SMALL)
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=30)
    assert second.code == 3
    assert "another demo is running in" in second.errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "nowhere"], "no backbone at nowhere"),
        (["--set", "vews=2"], "has no parameter 'vews'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_3(tmp_path: Path, options: list[str], message: str) -> None:
    ran = run(tmp_path / "run", *SMALL, *options)
    assert ran.code == 3
    assert message in ran.errors
    assert len(ran.errors.strip().splitlines()) == 1

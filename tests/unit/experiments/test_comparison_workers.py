"""Tasks in processes: a failure is its own task's, a dead process takes one, and none outlives the command."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.comparison.workers import Workers
from tests.support.running import soon_gone, wait_for
from tests.support.worker_tasks import work


def ended(tasks: list[str], jobs: int) -> dict[str, tuple[str, str | None]]:
    return {task: (line, error) for task, line, error in Workers(work, tasks, jobs).outcomes()}


@pytest.mark.parametrize("jobs", [1, 3])
def test_what_goes_wrong_with_a_task_holds_no_other_up(jobs: int) -> None:
    found = ended(["one", "refuse", "die", "fail", "two"], jobs)
    assert found["one"] == ("one done", None)
    assert found["two"] == ("two done", None)
    assert found["refuse"] == ("", "a fault of the input")
    assert found["fail"] == ("", "ValueError: a fault of ours")
    assert found["die"][1] is not None
    assert found["die"][1].startswith("BrokenProcessPool: ")


def test_nothing_to_do_starts_nothing() -> None:
    assert ended([], 2) == {}


def test_leaving_early_stops_what_is_being_done_and_begins_nothing_new(tmp_path: Path) -> None:
    files = [tmp_path / str(k) for k in range(3)]
    tasks = ["one", *(f"wait {file}" for file in files)]
    outcomes = Workers(work, tasks, 2).outcomes()
    assert next(outcomes)[0] == "one"
    pids = [int(wait_for(file)) for file in files[:2]]
    outcomes.close()
    assert soon_gone(pids)
    assert not files[2].exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(tmp_path: Path, how: signal.Signals) -> None:
    files = [tmp_path / "first", tmp_path / "second"]
    parent = subprocess.Popen([sys.executable, "-m", "tests.support.worker_tasks", *map(str, files)])
    try:
        pids = [int(wait_for(file)) for file in files]
    finally:
        parent.send_signal(how)
        parent.wait()
    assert soon_gone(pids)

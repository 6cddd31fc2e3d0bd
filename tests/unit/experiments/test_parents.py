"""Programs that end with whoever started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import parents
from tests.support.running import alive

STARTS = """
import os, subprocess, sys
from experiments import parents
child = subprocess.Popen(parents.ending_with(os.getpid(), ["sleep", "60"]))
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_ends_when_its_parent_is_killed(how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until = time.monotonic() + 20
        while "sleep" not in Path(f"/proc/{child}/comm").read_text(encoding="ascii") and time.monotonic() < until:
            time.sleep(0.02)
        assert alive(child)
        parent.send_signal(how)
        while alive(child) and time.monotonic() < until:
            time.sleep(0.02)
        assert not alive(child)


def test_a_program_is_run_as_it_is_and_says_how_it_ended() -> None:
    words = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", "--c"]
    done = subprocess.run(parents.ending_with(os.getpid(), words), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "['a b', '--c']\n")


def test_one_whose_parent_is_gone_already_does_not_begin() -> None:
    done = subprocess.run(parents.ending_with(1, ["echo", "here"]), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_where_the_kernel_has_no_such_signal_the_command_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert parents.ending_with(1, ["sleep", 60]) == ["sleep", "60"]

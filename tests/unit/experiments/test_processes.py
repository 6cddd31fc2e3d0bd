"""Children are watched, named when they fail, and none outlives the run."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from experiments.demo.processes import ChildFailed, Interrupted, Processes
from tests.support.running import alive, soon_gone, wait_for

GRACE_S = 0.3
LONG = 60


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_a_child_that_ends_well_leaves_its_output_and_its_seconds(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        child = processes.start("sum", python("print(sum(i * i for i in range(1_000_000)))"))
        processes.wait(child, LONG)
    assert child.exit_code == 0
    assert (tmp_path / "sum.out").read_text().strip() == str(999_999 * 1_000_000 * 1_999_999 // 6)
    assert 0 < child.cpu_s <= child.wall_s + 0.1


def test_a_failing_child_is_named_with_its_exit_code_and_last_lines(tmp_path: Path) -> None:
    program = "import sys; print('first\\n' * 50 + 'the reason', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ChildFailed, match=r"(?s)prepare ended with exit code 3 .*the reason"), Processes(tmp_path) as p:
        p.wait(p.start("prepare", python(program)), LONG)


def test_any_childs_failure_is_seen_while_waiting_for_another(tmp_path: Path) -> None:
    with Processes(tmp_path, grace_s=GRACE_S) as processes:
        slow = processes.start("slow", python("import time; time.sleep(60)"))
        processes.start("broken", python("raise SystemExit(7)"))
        with pytest.raises(ChildFailed, match="broken ended with exit code 7"):
            processes.wait(slow, LONG)
    assert slow.exit_code == -signal.SIGTERM


def test_a_child_ended_by_a_signal_is_named_with_it(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        child = processes.start("ge", python("import os; os.kill(os.getpid(), 9)"))
        with pytest.raises(ChildFailed, match="ge was ended by SIGKILL"):
            processes.wait(child, LONG)


def test_a_server_that_ends_by_itself_is_a_failure(tmp_path: Path) -> None:
    with Processes(tmp_path, grace_s=GRACE_S) as processes:
        processes.start("aggregator", python("pass"), goes_on=True)
        other = processes.start("other", python("import time; time.sleep(60)"))
        with pytest.raises(ChildFailed, match="aggregator ended with exit code 0, too early"):
            processes.wait(other, LONG)


def test_a_server_that_was_asked_to_end_is_not(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(60)"
    )
    with Processes(tmp_path) as processes:
        server = processes.start("aggregator", python(program), goes_on=True)
        wait_for(server.out)
        processes.stop(server, LONG)
    assert server.exit_code == 0


def test_a_stuck_child_has_a_time_limit_and_its_last_words_are_shown(tmp_path: Path) -> None:
    with Processes(tmp_path, grace_s=GRACE_S) as processes:
        program = "import time; print('at case 12', flush=True); time.sleep(60)"
        child = processes.start("phantom", python(program))
        wait_for(child.out)
        with pytest.raises(ChildFailed, match=r"(?s)phantom did not end within 0 s.*at case 12"):
            processes.wait(child, 0.2)


def test_leaving_ends_children_that_will_not_end_and_what_they_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    program = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "deaf = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'\n"
        "inner = subprocess.Popen([sys.executable, '-c', deaf])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{inner.pid}}')\n"
        "time.sleep(60)"
    )
    with Processes(tmp_path / "logs", grace_s=GRACE_S) as processes:
        processes.start("deaf", python(program))
        found = [int(pid) for pid in wait_for(pids).split()]
        assert all(map(alive, found))
    assert soon_gone(found)


def test_what_a_child_left_behind_ends_with_it(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    )
    with Processes(tmp_path) as processes:
        child = processes.start("careless", python(program))
        processes.wait(child, LONG)
        left = int(child.out.read_text())
        assert soon_gone([left])


def test_a_signal_ends_the_run_at_the_next_look_and_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Processes(tmp_path, grace_s=GRACE_S) as processes:
        child = processes.start("slow", python("import time; time.sleep(60)"))
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            processes.wait(child, LONG)
    assert caught.value.exit_code == 143
    assert "SIGTERM" in str(caught.value)
    assert child.exit_code == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_children_end_when_the_run_itself_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from experiments.demo.processes import Processes\n"
        f"with Processes(Path({str(tmp_path)!r})) as p:\n"
        "    c = p.start('inner', [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'])\n"
        "    p.wait(c, 60)"
    )
    with Processes(tmp_path / "outer") as processes:
        outer = processes.start("outer", python(program))
        inner = int(wait_for(tmp_path / "inner.out"))
        outer.popen.kill()
        with pytest.raises(ChildFailed, match="SIGKILL"):
            processes.wait(outer, LONG)
    for _ in range(40):
        if not alive(inner):
            break
        time.sleep(0.05)
    assert not alive(inner)

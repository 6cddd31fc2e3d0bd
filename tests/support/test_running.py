"""Logs are read while they are written, and processes looked at while they end."""

import subprocess
import sys
from pathlib import Path

from tests.support import running


def test_a_line_is_no_event_until_its_end_is_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert running.events(log, "joined") == []
    log.write_text('{"event": "joined", "site": "ge"}\n{"event": "left"}\n{"event": "joi')
    assert running.events(log, "joined") == [{"event": "joined", "site": "ge"}]
    with log.open("a") as file:
        file.write('ned", "site": "canon"}\n')
    assert [event["site"] for event in running.events(log, "joined")] == ["ge", "canon"]


def test_processes_are_found_by_what_they_were_started_with() -> None:
    wait, marks = "import sys; sys.stdin.read()", {"MARK": "a mark of its own", "RANK": "1"}
    with subprocess.Popen([sys.executable, "-S", "-c", wait], stdin=subprocess.PIPE, env=marks) as process:
        assert running.having("MARK=a mark of its own", "RANK=1") == [process.pid]
        assert running.having("MARK=a mark of its own", "RANK=10") == []
        assert running.alive(process.pid)
        process.communicate()
    assert not running.alive(process.pid)
    assert running.having("MARK=a mark of its own") == []

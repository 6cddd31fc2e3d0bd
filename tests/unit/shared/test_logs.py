"""Events: JSON lines in a file, short lines on a screen."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from shared import logs


class Screen(io.StringIO):
    """A terminal in front of a person."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def leave_logging_as_it_was() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()


def test_a_file_gets_one_json_object_a_line_with_the_bound_fields(tmp_path: Path) -> None:
    path, pipe = tmp_path / "logs" / "aggregator.jsonl", io.StringIO()
    logs.configure(path, terminal=pipe, side="aggregator", federation="hearts")
    log = structlog.get_logger()
    log.info("update_accepted", bytes=12, duration_s=0.5)
    log.warning("site_lost", site="ge\n{}")
    first, second = map(json.loads, path.read_text().splitlines())
    stamp = first.pop("timestamp")
    assert stamp.endswith("Z")
    assert first == {
        "event": "update_accepted",
        "level": "info",
        "side": "aggregator",
        "federation": "hearts",
        "bytes": 12,
        "duration_s": 0.5,
    }
    assert (second["level"], second["site"]) == ("warning", "ge\n{}")
    assert pipe.getvalue() == ""  # a file takes the events: a pipe stays quiet


def test_a_restart_appends(tmp_path: Path) -> None:
    for number in (1, 2):
        logs.configure(tmp_path / "log", terminal=io.StringIO())
        structlog.get_logger().info("started", round=number)
    assert [json.loads(line)["round"] for line in (tmp_path / "log").read_text().splitlines()] == [1, 2]


def test_a_pipe_gets_json_where_there_is_no_file() -> None:
    pipe = io.StringIO()
    logs.configure(terminal=pipe)
    structlog.get_logger().info("round_opened", round=3)
    assert json.loads(pipe.getvalue())["round"] == 3


def test_a_screen_beside_a_file_shows_only_what_went_wrong(tmp_path: Path) -> None:
    screen = Screen()
    logs.configure(tmp_path / "log", terminal=screen)
    log = structlog.get_logger()
    log.info("round_opened", round=3)
    log.warning("site_lost", site="ge")
    log.error("round_failed", round=3)
    shown = screen.getvalue()
    assert "round_opened" not in shown
    assert "site_lost" in shown
    assert "round_failed" in shown
    assert len((tmp_path / "log").read_text().splitlines()) == 3


def test_a_screen_alone_shows_everything() -> None:
    screen = Screen()
    logs.configure(terminal=screen)
    structlog.get_logger().info("round_opened", round=3)
    assert "round_opened" in screen.getvalue()


def test_a_traceback_is_one_field_of_one_line(tmp_path: Path) -> None:
    logs.configure(tmp_path / "log", terminal=io.StringIO())
    try:
        raise ValueError("bad")
    except ValueError:
        structlog.get_logger().exception("round_failed")
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert "ValueError: bad" in json.loads(line)["exception"]


def test_a_full_disk_costs_events_and_not_the_process(tmp_path: Path) -> None:
    """/dev/full is Linux's own full disk."""
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    logs.configure(path, terminal=io.StringIO())
    log = structlog.get_logger()
    for number in range(3):
        log.info("round_opened", round=number)


class Reader(Screen):
    """A screen that goes away for a while."""

    away = False

    def write(self, text: str) -> int:
        if self.away:
            raise BrokenPipeError
        return super().write(text)


def test_lost_events_are_counted_when_there_is_room_again() -> None:
    reader = Reader()
    reader.isatty = lambda: False  # type: ignore[method-assign]
    logs.configure(terminal=reader)
    log = structlog.get_logger()
    log.info("first")
    reader.away = True
    log.info("second")
    log.info("third")
    reader.away = False
    log.info("fourth")
    events = [json.loads(line) for line in reader.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["first", "log_events_lost", "fourth"]
    assert events[1]["count"] == 2

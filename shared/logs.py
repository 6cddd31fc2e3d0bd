"""Log events: JSON lines for machines, short lines for a terminal. Set up once per process, by its CLI.

A log that cannot be written (disk full, reader gone) never stops the process: events are lost, counted, and the count is
the first thing written when there is room again.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import structlog

from shared import log_fields


def configure(path: Path | None = None, *, terminal: TextIO = sys.stderr, **bound: Any) -> None:
    """Send events to `path` as JSON lines (appended, line by line) and to `terminal`.

    On a terminal that is a person's screen, events are short coloured lines, beside a file only warnings and errors;
    piped, they are JSON lines too, unless a file takes them. `bound` fields stand in every event.
    """
    sinks: list[_Sink] = []
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sinks.append(_Sink(_File(path), structlog.processors.JSONRenderer()))
    if terminal.isatty():
        sinks.append(_Sink(terminal, structlog.dev.ConsoleRenderer(), only_trouble=path is not None))
    elif path is None:
        sinks.append(_Sink(terminal, structlog.processors.JSONRenderer()))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            log_fields.only_allowed,
            _Write(sinks),
        ],
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**bound)


class _Stream(Protocol):
    def write(self, text: str, /) -> object: ...
    def flush(self) -> None: ...


class _File:
    """Appends whole lines, unbuffered: what could not be written is not held back to fail again when the process ends."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._torn = False

    def write(self, text: str) -> None:
        """Append; raises OSError. After half a line, the next one begins on a line of its own."""
        data = (b"\n" if self._torn else b"") + text.encode()
        written = self._file.write(data) or 0
        if written:
            self._torn = written < len(data)
        if written < len(data):
            raise OSError("the line was cut off")

    def flush(self) -> None:
        """Nothing is held back."""


@dataclass
class _Sink:
    stream: _Stream
    render: Any
    only_trouble: bool = False
    """The file keeps everything; a person's screen shows what went wrong."""
    lost: int = field(default=0, init=False)

    def take(self, event: dict[str, Any]) -> None:
        """Write one event, or count it as lost."""
        if self.only_trouble and event.get("level") not in ("warning", "error"):
            return
        try:
            if self.lost:
                stamp = {"level": "warning", "timestamp": event.get("timestamp")}
                self._print({"event": "log_events_lost", "count": self.lost, **stamp})
                self.lost = 0
            self._print(event)
        except OSError:
            self.lost += 1

    def _print(self, event: dict[str, Any]) -> None:
        self.stream.write(self.render(None, "", dict(event)) + "\n")
        self.stream.flush()


class _Write:
    """Last processor: renders one event once per sink."""

    def __init__(self, sinks: list[_Sink]) -> None:
        self._sinks = sinks

    def __call__(self, logger: Any, name: str, event: Any) -> str:
        del logger, name
        for sink in self._sinks:
            sink.take(event)
        return ""

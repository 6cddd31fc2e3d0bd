"""Log events: JSON lines for machines, short lines for a terminal. Set up once per process, by its CLI."""

import sys
from pathlib import Path
from typing import Any, TextIO

import structlog


def configure(path: Path | None = None, *, terminal: TextIO = sys.stderr, **bound: Any) -> None:
    """Send events to `path` as JSON lines (appended, line by line) and to `terminal`.

    On a terminal that is a person's screen, events are short coloured lines, beside a file only warnings and errors;
    piped, they are JSON lines too, unless a file takes them. `bound` fields stand in every event.
    """
    sinks: list[tuple[TextIO, Any]] = []
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sinks.append((path.open("a", encoding="utf-8", buffering=1), structlog.processors.JSONRenderer()))
    if terminal.isatty():
        sinks.append((terminal, structlog.dev.ConsoleRenderer()))
    elif path is None:
        sinks.append((terminal, structlog.processors.JSONRenderer()))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _Write(sinks),
        ],
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**bound)


class _Write:
    """Last processor: renders one event once per sink."""

    def __init__(self, sinks: list[tuple[TextIO, Any]]) -> None:
        self._sinks = sinks

    def __call__(self, logger: Any, name: str, event: Any) -> str:
        del logger
        for stream, render in self._sinks:
            if stream.isatty() and len(self._sinks) > 1 and event.get("level") not in ("warning", "error"):
                continue  # the file keeps everything; a person's screen shows what went wrong
            print(render(None, name, dict(event)), file=stream, flush=True)
        return ""

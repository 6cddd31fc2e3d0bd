"""The `aggregator` command in this process: the same `main`, without paying for an interpreter each time."""

import io
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from aggregator.cli import main


@dataclass(frozen=True)
class Finished:
    """What a command printed and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Finished:
    """Run a command and return what came of it."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return Finished(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def fails(code: int, text: str, *arguments: object) -> None:
    """One line on stderr with this text, no traceback, and this exit code."""
    check_failure(run(*arguments), code, text)


def check_failure(result: Finished, code: int, text: str) -> None:
    """Fail unless a command failed as it should."""
    assert result.returncode == code, result.stderr
    assert re.search(text, result.stderr), result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr

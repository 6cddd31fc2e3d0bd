"""Commands held against the programs as they are: what is not an option, a command, a target or a module any more is found."""

import contextlib
import importlib
import importlib.util
import io
import re
import runpy
import signal
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from typer._click import core

from tests.docs.pages import ELLIPSES, OURS, ROOT, Command

LEFT_OUT = (
    "invalid value",
    "missing option",
    "missing argument",
    "missing parameter",
    "requires an argument",
    "missing command",
)
"""What a command that is not shown whole may lack."""


class Parsed(BaseException):  # a program's own `except Exception` must not take it
    """Raised where the program would have begun."""


def problem(command: Command, *, whole: bool = True) -> str:
    """Return what is wrong with a command, in words; empty if its programs take it. Not `whole`: things may be left out."""
    return "; ".join(found for words in command.parts if (found := _problem(words, whole)))


def _problem(words: list[str], whole: bool) -> str:
    bare = [word for word in words if word not in ELLIPSES]
    whole = whole and len(bare) == len(words)
    program = bare[0].rpartition("/")[2]
    if bare == words[:1] and not whole:
        return ""  # a program and nothing said
    if program in OURS:
        main = importlib.import_module(f"{program.replace('-', '_')}.cli").main
        return _said(main, [program, *bare[1:]], whole)
    if program == "torchrun" and "--" in bare:
        return _problem(bare[bare.index("--") + 1 :], whole)
    if program == "make":
        return _of_make(bare[1:])
    if program.startswith("python") and bare[1:2] == ["-m"]:
        return _of_module(bare[2], bare[3:], whole)
    return ""


def _of_module(module: str, words: list[str], whole: bool) -> str:
    if module == "pytest":
        missing = [
            word for word in words if word.startswith("tests/") and not (ROOT / word.partition("::")[0]).exists()
        ]
        return f"there is no test {missing[0]}" if missing else ""
    if importlib.util.find_spec(module) is None:
        return f"there is no module {module}"
    if not module.startswith(("experiments", "tests")):
        return ""
    return _said(lambda: runpy.run_module(module, run_name="__main__"), [module, *words], whole)


@contextlib.contextmanager
def _only_parsing(words: list[str]) -> Iterator[None]:
    """Let programs read their command line and go no further."""

    def parsed(_: core.Command, context: core.Context) -> None:
        if getattr(context, "invoked_subcommand", None) is None:
            raise Parsed

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core.Command, "invoke", parsed)
        patch.setattr(sys, "argv", words)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _said(main: Any, words: list[str], whole: bool) -> str:
    """Return what a program says against these words; empty if it would begin."""
    out, errors = io.StringIO(), io.StringIO()
    with _only_parsing(words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            main()
        except Parsed:
            return ""
        except SystemExit as end:
            said = " ".join(re.sub(r"[│╭╮╰╯─]", " ", errors.getvalue()).split())
            left_out = not whole and any(text in said.lower() for text in LEFT_OUT)
            return "" if end.code in (0, None) or left_out else said or f"exit status {end.code}"
    return "it ended without beginning"


@cache
def targets() -> frozenset[str]:
    """Return the Makefile's targets that are meant for people: those with an explanation."""
    return frozenset(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def variables() -> frozenset[str]:
    """Return what of the Makefile may be set on the command line."""
    text = (ROOT / "Makefile").read_text()
    return frozenset(
        [*re.findall(r"^([A-Z_]+) \?=", text, re.MULTILINE), *re.findall(r"\$\(or \$\(([A-Z]+)\)", text), "UPGRADE"]
    )


def _of_make(words: list[str]) -> str:
    for word in words:
        name, equals, _ = word.partition("=")
        if equals and name not in variables():
            return f"the Makefile knows no {name}"
        if not equals and word not in targets():
            return f"the Makefile has no target {word} (it has {', '.join(sorted(targets()))})"
    return ""

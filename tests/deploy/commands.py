"""Command lines of `aggregator` and `site-agent` in files and pages, and whether the programs would take them."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.main

from aggregator.cli import build
from site_agent.cli import app

PROGRAM = re.compile(r"(?:/\S+/|med-duallora/)?(aggregator|site-agent)(?::\w+)?")
"""By name, by path, or as an image, whose entry point it is."""


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """Return what the real command line makes of these words, with every default. Raises its usage error; runs nothing."""
    name = Path(words[0]).name
    command: Any = typer.main.get_command({"aggregator": build, "site-agent": lambda: app}[name]())
    context = command.make_context(name, list(words[1:]))
    while rest := [*getattr(context, "_protected_args", []), *context.args]:
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    found: dict[str, Any] = context.params
    return found


def in_shell(text: str) -> Iterator[list[str]]:
    """Yield the command lines of the two programs in a piece of shell, without what comes before them (sudo, if, ...)."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for part in _split(words, {"||", "&&", ";", "|", ">", ">>", "<", "then", "else", "fi"}):
            if "exec" in part:  # docker compose exec SERVICE ..., kubectl exec POD -- ...
                part = part[part.index("exec") + 2 :]
            found = [(k, match[1]) for k, word in enumerate(part) if (match := PROGRAM.fullmatch(word))]
            if found and "build" not in part[:2]:
                start, name = found[0]
                yield [name, *part[start + 1 :]]


def in_page(text: str) -> Iterator[list[str]]:
    """Yield those in the blocks of shell of a Markdown page."""
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from in_shell(block)


def _split(words: Sequence[str], marks: set[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        bare = word.rstrip(";")
        if word in marks:
            yield part
            part = []
            continue
        part.append(bare)
        if bare != word:
            yield part
            part = []
    yield part

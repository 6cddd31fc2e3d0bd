"""The pages, and every command that they show: in fenced blocks and in indented ones."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = "```"
SHELL = ("sh", "bash", "console")
"""Marks of a fenced block of which every line is a command; in a block without a mark only the programs below are."""
PROGRAMS = frozenset(
    {
        "aggregator",
        "site-agent",
        "torchrun",
        "make",
        "python",
        "python3",
        "python3.11",
        "pip",
        "git",
        "curl",
        "wget",
        "openssl",
    }
    | {
        "psql",
        "pg_dump",
        "pg_restore",
        "createuser",
        "createdb",
        "sqlite3",
        "haproxy",
        "nginx",
        "promtool",
        "docker",
        "podman",
    }
    | {
        "kubectl",
        "helm",
        "systemctl",
        "journalctl",
        "systemd-sysusers",
        "systemd-analyze",
        "apt",
        "apt-get",
        "sudo",
        "for",
    }
)
ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=\S*$")
ELLIPSES = ("...", "…")
AND_THEN = frozenset({"&&", "||", "|", ";"})
REDIRECTIONS = frozenset({">", ">>", "<", "2>"})
STARTERS = ("sudo", "exec", "do", "then", "time", "nice", "env")
OURS = ("aggregator", "site-agent")


@dataclass(frozen=True)
class Command:
    """A command as a page shows it. `text`: on one line, without prompt and comment."""

    page: str
    line: int
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def words(self) -> list[str]:
        """What a shell would hand over to the first program, environment and redirections left out."""
        return next(iter(self.parts), [])

    @property
    def program(self) -> str:
        return self.words[0].rpartition("/")[2] if self.words else ""

    @property
    def module(self) -> str:
        """Of `python -m MODULE`; empty for anything else."""
        words = self.words
        return words[2] if self.program.startswith("python") and words[1:2] == ["-m"] and len(words) > 2 else ""

    @property
    def parts(self) -> list[list[str]]:
        """The words of every program that the line starts, redirections and what starts it (sudo, a loop) left out."""
        text = self.text
        if loop := re.match(r"for (\w+) in (\S+)", text):
            text = text.replace(f"${loop[1]}", loop[2])  # its first turn
        found: list[list[str]] = [[]]
        for word in shlex.split(text):
            if word in AND_THEN:
                found.append([])
            elif word.endswith(";"):
                found[-1].append(word[:-1])
                found.append([])
            else:
                found[-1].append(word)
        return [bare for part in found if (bare := _started(part))]


def pages() -> list[Path]:
    """Return every page that a reader may meet, as paths below the root."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found += [path for folder in ("docs", "deploy") for path in sorted((ROOT / folder).rglob("*.md"))]
    return [path.relative_to(ROOT) for path in found]


@cache
def commands() -> tuple[Command, ...]:
    """Return every command of every page, in order."""
    return tuple(one for page in pages() for one in commands_of(str(page), (ROOT / page).read_text(encoding="utf-8")))


def distinct() -> list[Command]:
    """Return every command once, where it stands first."""
    found: dict[str, Command] = {}
    for one in commands():
        found.setdefault(one.text, one)
    return list(found.values())


def commands_of(page: str, text: str) -> Iterator[Command]:
    """Yield the commands in a page's text. A line that ends in a backslash goes on in the next."""
    begun, at = "", 0
    for line, mark, content in _code(text):
        content = re.sub(r"^\s*\$ ", "", content).strip()
        if begun:
            content = f"{begun} {content}"
        else:
            at = line
        begun = ""
        bare = without_comment(content)
        if not bare or not (mark in SHELL or (not mark and _first(bare) in PROGRAMS)):
            continue
        if bare.endswith("\\"):
            begun = bare[:-1].strip()
            continue
        yield Command(page, at, bare)


def without_comment(line: str) -> str:
    """Return a line of shell up to its comment, if it has one."""
    quote = ""
    for at, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at].strip()
    return line.strip()


def _started(words: list[str]) -> list[str]:
    """Return a part of a line from the program on that it starts; nothing for a loop's own words."""
    end = next((at for at, word in enumerate(words) if word in REDIRECTIONS), len(words))
    words = words[:end]
    while words and (ASSIGNMENT.match(words[0]) or words[0] in STARTERS):
        if words[0] == "sudo" and words[1:2] == ["-u"]:
            words = words[2:]
        words = words[1:]
    return [] if words[:1] in (["for"], ["done"], ["if"], ["fi"]) else words


def _first(line: str) -> str:
    words = line.split()
    while words and ASSIGNMENT.match(words[0]):
        words.pop(0)
    return words[0].rpartition("/")[2] if words else ""


def _code(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield line number, mark of the block ("" for none) and text of each line of code."""
    mark: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith(FENCE):
            mark = line.strip().removeprefix(FENCE) if mark is None else None
        elif mark is not None:
            yield number, mark, line
        elif line.startswith("    "):
            yield number, "", line

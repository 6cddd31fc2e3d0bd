"""Reading a systemd unit with its drop-ins, as systemd does: an empty value takes back what came before."""

import shlex
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"


def settings(*files: Path) -> Mapping[str, list[str]]:
    """Return every setting's values in their order, sections put together."""
    found: dict[str, list[str]] = {}
    for file in files:
        for line in file.read_text().replace("\\\n", " ").splitlines():
            if not line.strip() or line[0] in "#;[":
                continue
            name, _, value = line.partition("=")
            found[name] = [*found.get(name, []), value] if value else []
    return found


def command(unit: Mapping[str, list[str]], **specifiers: str) -> list[str]:
    """Return the words that ExecStart= runs. `specifiers`: what %S, %d and the like stand for here."""

    def meant(text: str) -> str:
        for letter, value in specifiers.items():
            text = text.replace(f"%{letter}", value)
        return text

    environment = dict(word.split("=", 1) for line in unit.get("Environment", []) for word in shlex.split(meant(line)))
    (line,) = unit["ExecStart"]
    return [environment[word[2:-1]] if word.startswith("${") else word for word in shlex.split(meant(line))]


def system_calls(unit: Mapping[str, list[str]]) -> set[str]:
    """Return the names of the calls that SystemCallFilter= leaves: the first line allows, those with ~ take away."""
    allowed: set[str] = set()
    for line in unit["SystemCallFilter"]:
        named = set().union(*(_expanded(word) for word in line.removeprefix("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


def _expanded(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    return set().union(*map(_expanded, _groups()[word]))


@cache
def _groups() -> dict[str, list[str]]:
    listing = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    groups: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if line.startswith("@"):
            groups[line.strip()] = members = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.append(line.strip())
    return groups

"""Reading a Dockerfile: its instructions, stage by stage, and which files of the checkout its ignore file lets through."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "docker"


@dataclass(frozen=True)
class Instruction:
    """One instruction: COPY, RUN, ... and what follows it on its line."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of the exec form. Raises ValueError for the shell form, in which signals would reach a shell."""
        found = json.loads(self.text)
        if not isinstance(found, list):
            raise ValueError(f"{self.name} is not in exec form: {self.text}")
        return found


def instructions(file: Path) -> list[Instruction]:
    """Return a file's instructions; HEALTHCHECK's options are left out, its command stays."""
    lines = "\n".join(line for line in file.read_text().splitlines() if not line.startswith("#")).replace("\\\n", " ")
    found = [Instruction(*line.split(maxsplit=1)) for line in lines.splitlines() if line.strip()]
    return [one if one.name != "HEALTHCHECK" else Instruction(one.name, one.text.split(" CMD ")[1]) for one in found]


def stages(file: Path) -> list[list[Instruction]]:
    """Return the instructions of each stage, its FROM first; the last one is the image."""
    found: list[list[Instruction]] = []
    for one in instructions(file):
        if one.name == "FROM":
            found.append([])
        if found:
            found[-1].append(one)
    return found


def copied(file: Path) -> set[str]:
    """Return what the file copies from the checkout."""
    lines = [one.text.split() for one in instructions(file) if one.name == "COPY"]
    return {source for words in lines if not words[0].startswith("--from") for source in words[:-1]}


def let_through(file: Path) -> set[str]:
    """Return what the ignore file beside it lets into the build, which must be named one by one."""
    lines = file.with_name(f"{file.name}.dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*", "everything is left out but what is named"
    named = [line for line in patterns[1:] if line.startswith("!")]
    assert all(re.fullmatch(r"![\w./-]+", line) for line in named), named
    return {line[1:] for line in named}

"""Runs the commands that the pages show: each in a copy of its folder, so that none depends on another."""

import itertools
import re
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tests.docs import folders, machines, rules
from tests.docs.federation import Federation
from tests.docs.machines import Machine, Running
from tests.docs.pages import OURS, Command
from tests.docs.rules import Rule

AT_ONCE = 2
LONGEST_S = 240.0
RUN_HERE = ("coordinator", "open", "serving", "hospital", "held", "offered", "project")
FAILED = -1
"""In the place of an exit status: it did not come to say what it should, or did not end."""
STOPPED = (0, 130)
"""How the aggregator, and an agent, end when they are asked to leave."""


@dataclass(frozen=True)
class Ended:
    """A command that was run: as it was, how it ended, and what it said."""

    ran: str
    code: int
    said: str


def run_all(commands: list[Command], federation: Federation, work: Path) -> dict[str, Ended]:
    """Run commands that a rule gives a folder, two at a time; those that steer one after the other, in the pages' order."""
    there = folders.furnish(federation, work / "furnished")
    steering = [one for one in commands if rules.where(one) == "serving"]
    found: dict[str, Ended] = {}
    lock, names = threading.Lock(), iter(range(10_000))

    def run(command: Command) -> None:
        rule = rules.rule_of(command)
        with lock:
            copy = work / f"{next(names):03}"
        machine = there.machines[rule.where]
        ended = _run(command, rule, machine.at(folders.copy(machine.folder, copy)), there.heads)
        with lock:
            found[command.text] = ended
        shutil.rmtree(copy)

    with folders.serving(there.machines["open"], work / "serving") as served, ThreadPoolExecutor(AT_ONCE) as pool:
        there.machines.update(folders.where_a_person_is_asked(there.machines, work))
        there.heads.update(folders.held_update(there.machines["held"]))

        def steer() -> None:
            for command in sorted(steering, key=_gentle_first):
                ended = _run(command, rules.rule_of(command), served, there.heads)
                found[command.text] = ended

        last = pool.submit(steer)
        list(pool.map(run, [one for one in commands if one not in steering]))
        last.result()
    return found


def _gentle_first(command: Command) -> int:
    """Commands that take something away come last."""
    order = ("curl", "observe", "pause", "resume", "rollback", "evict")
    return next((at for at, word in enumerate(order) if word in command.text), 0)


def _run(command: Command, rule: Rule, machine: Machine, heads: Mapping[str, str]) -> Ended:
    found = rules.reduced(command)
    text = found.text
    for page, here in heads.items():
        text = text.replace(page, here)
    found = replace(found, text=machine.written(text))
    if rule.where != "project":
        _make_way(found, machine.folder)
    events = machine.folder / "agent.jsonl"
    if rule.until:
        events.unlink(missing_ok=True)  # of the copy: what it says now is looked for
    running = _start(machine, found)
    try:
        if rule.until:
            running.events = events
            running.wait_for(rule.until, LONGEST_S)
            stopped = running.stop()
            code = 0 if stopped in STOPPED else stopped
        else:
            code = running.ended(LONGEST_S)
    except (AssertionError, TimeoutError) as error:
        return Ended(found.text, FAILED, str(error))
    return Ended(found.text, code, running.said)


def _start(machine: Machine, command: Command) -> Running:
    """Start our own programs in a fork, everything else in a shell."""
    ours = command.program in OURS
    if not ours and not command.module:
        return machines.start(machine, command.text)
    words = [command.module, *command.words[3:]] if command.module else [command.program, *command.words[1:]]
    words = [found for word in words for found in _spread(word, machine.folder)]
    to = re.search(r" > (\S+)$", command.text)
    return machines.fork(machine, words, machine.folder / to[1] if to else None)


def _spread(word: str, folder: Path) -> list[str]:
    """Return what a shell makes of a pattern of file names."""
    if "*" not in word:
        return [word]
    return sorted(str(path.relative_to(folder)) for path in folder.glob(word)) or [word]


def _make_way(command: Command, folder: Path) -> None:
    """Remove what a command is to make, where its reader would not have it yet."""
    words = command.words
    for option, value in itertools.pairwise(words):
        target = folder / value
        if option != "--out" or words[1] in ("join", "certificates"):
            continue
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

"""Processes that a test watches, and files that they leave."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, and before it was read
        return False
    return state != "Z"


def having(*variables: str) -> list[int]:
    """Return the ids of processes that were started with all of these in their environment, each as NAME=value.

    Any process of this machine may end while it is looked at; `glob` raises ProcessLookupError then.
    """
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                held = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                if set(variables) <= set(held):
                    found.append(int(folder.name))
    return found


def soon_gone(pids: list[int]) -> bool:
    """Whether none of them runs any more: a signal is delivered soon, not at once, and on a busy machine later still."""
    for _ in range(200):
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def wait_for(path: Path) -> str:
    """Return a file's text once it has one."""
    for _ in range(600):
        if path.is_file() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{path} was never written")


def events(log: Path, name: str = "") -> list[dict[str, Any]]:
    """Return the events, or those of a name, of a log that a process goes on writing.

    The end of the last line may not be there yet: the kernel shows what is appended page by page.
    """
    text = log.read_text() if log.exists() else ""
    found = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
    return [event for event in found if not name or event["event"] == name]

"""Processes that a test watches, and files that they leave."""

import time
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


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

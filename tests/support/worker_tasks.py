"""What a worker process can be told to do."""

import os
import time
from pathlib import Path

from shared.errors import InputError


def work(task: str) -> str:
    """Say the task back; or die, fail, refuse, or write the process's number to a file and wait."""
    what, _, path = task.partition(" ")
    match what:
        case "die":
            os._exit(9)
        case "fail":
            raise ValueError("a fault of ours")
        case "refuse":
            raise InputError("a fault of the input")
        case "wait":
            Path(path).write_text(str(os.getpid()))
            time.sleep(60)
    return f"{task} done"


def main() -> None:
    """Work in two processes, both waiting: `python -m tests.support.worker_tasks FIRST SECOND`."""
    import sys

    from experiments.comparison.workers import Workers

    for _ in Workers(work, [f"wait {path}" for path in sys.argv[1:]], 2).outcomes():
        pass


if __name__ == "__main__":
    main()

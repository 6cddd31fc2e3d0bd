"""Does tasks in processes, some at a time. A process that dies takes one task with it, and none outlives the command."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from experiments.training import quiet
from shared.errors import MedDualLoRAError

T = TypeVar("T")
TASKS_A_PROCESS = 40


class Workers(Generic[T]):
    """`jobs` processes that each do one task at a time: `work` on it, which returns a line or raises."""

    def __init__(self, work: Callable[[T], str], tasks: Sequence[T], jobs: int) -> None:
        self._work, self._count, self._jobs = work, len(tasks), min(jobs, len(tasks))
        self._waiting = SimpleQueue[T]()
        self._ended = SimpleQueue[tuple[T, str, str | None]]()
        for task in tasks:
            self._waiting.put(task)

    def outcomes(self) -> Generator[tuple[T, str, str | None]]:
        """Yield each task as it ends, with its line and what went wrong. Left early, it stops what is being done."""
        for _ in range(self._jobs):
            threading.Thread(target=self._drive, daemon=True).start()
        try:
            for _ in range(self._count):
                yield self._ended.get()
        except BaseException:
            while not self._waiting.empty():
                self._taken()
            for process in multiprocessing.active_children():
                process.terminate()
            raise

    def _taken(self) -> T | None:
        try:
            return self._waiting.get_nowait()
        except Empty:
            return None

    def _drive(self) -> None:
        """Do waiting tasks in one process, and in a new one when that has died or has done TASKS_A_PROCESS."""
        while not self._waiting.empty():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin) as process:
                for _ in range(TASKS_A_PROCESS):
                    if (task := self._taken()) is None:
                        return
                    try:
                        self._ended.put((task, process.submit(self._work, task).result(), None))
                    except MedDualLoRAError as error:
                        self._ended.put((task, "", str(error)))
                    except Exception as error:  # whatever it is, it is this task's; the others go on
                        self._ended.put((task, "", f"{type(error).__name__}: {error}"))
                        break


def _begin() -> None:
    """Leave an interrupt to the process that started this one, and end when that does."""
    quiet.process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)

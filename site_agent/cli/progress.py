"""A bar for work on many cases: on a terminal only, and on standard error, so that output stays what it is."""

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
Told = Callable[[int, int], None]
"""Told how many of how many cases are done."""


def with_bar(title: str, work: Callable[[Told], Result]) -> Result:
    """Do `work` and show how far it is; nothing is shown when standard error is a file or a pipe."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        return work(lambda done, total: None)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        return work(lambda done, total: bar.update(task, completed=done, total=total))

"""A request to end, as an interrupt from the keyboard: what it stops says so, and ends its workers."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt while the block runs, in the process's main thread; then it does what it did before."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

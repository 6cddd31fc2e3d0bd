"""What a process asks of the C library about memory. Only glibc needs to be asked; elsewhere nothing happens."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""malloc.h of glibc."""
LARGEST_KEPT_BYTES = 32 << 20
"""glibc's own upper bound. Larger buffers go back to the system one by one."""
KEPT_BYTES = 1 << 30


def keep_what_is_freed() -> None:
    """Keep freed buffers for the next ones of their kind, until `give_back`.

    Chunks are a megabyte each and come by the thousand. As long as every one was a mapping of its own, given back at once, most
    of a round with updates of 6 MB went into the kernel's clearing pages (`python -m experiments.communication orchestration`).
    """
    _ask("mallopt", M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
    _ask("mallopt", M_TRIM_THRESHOLD, KEPT_BYTES)


def give_back() -> None:
    """Give all that is freed back to the system: else 1,000 waiting connections look 1.5 times as large as they are
    (`python -m tests.chaos sites`)."""
    _ask("malloc_trim", 0)


def _ask(name: str, *values: int) -> None:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*values)

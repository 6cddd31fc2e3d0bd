"""What the serving process asks of the C library about memory."""

import ctypes
import sys

M_MMAP_THRESHOLD = -3
"""malloc.h of glibc."""
THRESHOLD_BYTES = 128 * 1024
"""glibc's own start value. Set, it stays: otherwise it grows with the largest buffer ever freed, up to 32 MiB."""


def give_back_what_is_freed() -> None:
    """Let buffers of more than 128 KiB go back to the system as soon as they are freed; only glibc needs to be told.

    Chunks are a megabyte each and come by the thousand: kept for later, they made 1,000 waiting mTLS connections look 1.5
    times as large as they are (`python -m tests.chaos sites`).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)

"""Writing to a disk that may be full: nothing is given up, a person is told what to do, and it is tried again."""

import asyncio
import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

log = structlog.get_logger()
T = TypeVar("T")
FULL = (errno.ENOSPC, errno.EDQUOT)
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


async def keep_trying(write: Callable[[], T], folder: Path, warn: Callable[[str], None]) -> T:
    """Return what `write` returns; as long as the disk of `folder` is full, say so and try again, with a growing pause.

    `write` must leave nothing half written behind when it fails. Raises any other OSError.
    """
    pause = FIRST_PAUSE_S
    while True:
        try:
            result = write()
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.warning("state_disk_full", error=error.strerror, free_bytes=_free(folder), retry_in_s=pause)
            warn(
                f"the disk of {folder} is full ({error.strerror}): make room there. Nothing is lost, the agent holds what it "
                f"has to write and tries again in {pause:.0f} s"
            )
        else:
            if pause > FIRST_PAUSE_S:
                log.info("state_disk_has_room", free_bytes=_free(folder))
            return result
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free

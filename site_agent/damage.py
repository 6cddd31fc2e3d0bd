"""Files of the state folder that cannot be used: set aside under another name, never deleted, and said once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger()
PREFIX = "damaged-"


class Damaged(Exception):
    """A file of the state folder is not what was written there. `reason` says how that shows."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name}: {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True, slots=True)
class Infirmary:
    """Where damaged files go. `warn` takes one sentence for a person; the log has the same as one event."""

    folder: Path
    warn: Callable[[str], None]

    def set_aside(self, damage: Damaged, fallback: str, whole: Path | None = None) -> None:
        """Rename the damaged file, or the folder `whole` that is of no use without it, and say what is done instead."""
        path = whole or damage.path
        kept = path
        for attempt in range(1, 1000):
            kept = path.with_name(f"{PREFIX}{path.name}" + (f"-{attempt}" if attempt > 1 else ""))
            if not kept.exists():
                break
        if path.exists():
            path.rename(kept)
        where = str(damage.path.relative_to(self.folder))
        log.warning(
            "damage_set_aside",
            path=where,
            reason=damage.reason,
            fallback=fallback,
            kept_as=str(kept.relative_to(self.folder)),
        )
        self.warn(f"{where} is damaged ({damage.reason}): {fallback}; kept as {kept.relative_to(self.folder)}")

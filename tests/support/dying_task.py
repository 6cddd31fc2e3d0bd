"""A cell whose process dies."""

import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

from experiments.comparison.tasks import Task


@dataclass(frozen=True, slots=True)
class DyingTask(Task):
    """Ends any process but the first as one that the system kills for its memory."""

    @property
    def record(self) -> Path:
        if multiprocessing.parent_process() is not None:
            os._exit(9)
        return self.folder / "none.json"

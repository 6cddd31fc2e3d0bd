"""The order in which files are synced, renamed and removed: what a power cut would leave, without cutting the power."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

Step = tuple[str, Path]
"""("fsync", what), ("rename", to where) or ("unlink", what)."""


def record(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Return a list that grows by a step with every call, in the order of the calls."""
    steps: list[Step] = []
    fsync, unlink = os.fsync, os.unlink

    def noted_fsync(descriptor: int) -> None:
        steps.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def noted_unlink(path: Any, **options: Any) -> None:
        unlink(path, **options)
        steps.append(("unlink", Path(path)))

    for name in ("rename", "replace"):

        def noted_rename(source: Any, target: Any, call: Any = getattr(os, name), **options: Any) -> None:
            call(source, target, **options)
            steps.append(("rename", Path(target)))

        monkeypatch.setattr(os, name, noted_rename)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "unlink", noted_unlink)
    return steps


def assert_written_durably(steps: Sequence[Step], path: Path) -> None:
    """Fail unless a temporary file beside `path` was synced, then renamed to it, and its folder synced after that."""
    renamed = steps.index(("rename", path))
    temporary = [i for i, (call, at) in enumerate(steps) if call == "fsync" and at.name.startswith(f".{path.name}.")]
    assert any(i < renamed for i in temporary), f"{path.name} was renamed before its bytes were synced: {steps}"
    assert ("fsync", path.parent) in steps[renamed:], f"the folder of {path.name} was not synced after it: {steps}"

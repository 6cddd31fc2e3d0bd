"""A full disk is waited for; anything else that goes wrong with a write is not. A real full disk is in the integration tests."""

import errno
import os

import pytest
from structlog.testing import capture_logs

from site_agent import disk


def failing(times: int, number: int = errno.ENOSPC):
    """Return a write that fails so many times first."""
    left = [times]

    def write() -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return "written"

    return write


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(disk, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(disk, "LONGEST_PAUSE_S", 0.03)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_write_is_repeated_until_there_is_room_with_growing_pauses(tmp_path, number):
    told: list[str] = []
    with capture_logs() as events:
        assert await disk.keep_trying(failing(4, number), tmp_path, told.append) == "written"
    assert [event["event"] for event in events] == ["state_disk_full"] * 4 + ["state_disk_has_room"]
    assert [event["retry_in_s"] for event in events[:4]] == [0.01, 0.02, 0.03, 0.03]
    assert events[0]["error"] == os.strerror(number)
    assert len(told) == 4
    assert f"the disk of {tmp_path} is full" in told[0]
    assert "make room there. Nothing is lost" in told[0]


async def test_a_write_that_succeeds_says_nothing(tmp_path):
    with capture_logs() as events:
        assert await disk.keep_trying(failing(0), tmp_path, print) == "written"
    assert events == []


async def test_any_other_failure_is_raised_at_once(tmp_path):
    with pytest.raises(PermissionError):
        await disk.keep_trying(failing(1, errno.EACCES), tmp_path, print)

"""Disks and shared memory that are too small, or not to be written to: files, and real mounts in a namespace of their own."""

import os
from pathlib import Path

import pytest
import torch

from shared.contract import Contract, RoundPolicy
from shared.recipe import Recipe
from site_agent.doctor import machine
from site_agent.doctor.finding import Examined
from tests.support import adapters
from tests.support.doctored import examined, mounted

V0 = adapters.adapter()
NOBODY = 65534


def test_a_folder_that_is_there_passes_with_what_is_free_for_each(tmp_path: Path) -> None:
    found = machine.disk(examined(tmp_path, None, cache_mb=1))
    assert found.status == "PASS"
    assert set(found.facts["free_bytes"]) == {"state", "cache"}


def test_a_state_folder_that_is_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    found = machine.disk(examined(tmp_path, None, cache_mb=0))
    assert found.status == "FAIL"
    assert found.words.endswith("is a file")


def test_a_contract_of_many_rounds_needs_more_room_than_there_is(tmp_path: Path) -> None:
    agreed = Contract(
        federation="hearts",
        adapter_digest=V0.digest,
        manifest=V0.manifest,
        recipe=Recipe(),
        policy=RoundPolicy(invited=2, quorum=2, rounds=10**12),
    )
    found = machine.disk(examined(tmp_path, None, contract=agreed))
    assert found.status == "FAIL"
    assert "free for the state folder" in found.words


def test_a_cache_larger_than_its_disk_is_warned_of(tmp_path: Path) -> None:
    found = machine.disk(examined(tmp_path, None, cache_mb=10**9))
    assert found.status == "WARN"
    assert "cache_mb = 1000000000" in found.words


# --- rights ---------------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_mounted_read_only_fails_and_how_to_see_the_mount_is_told(tmp_path: Path) -> None:
    with mounted("mount --bind . .", 'mount -o remount,ro,bind "$PWD"', folder=tmp_path) as there:
        found = machine.disk(examined(there, None))
    assert found.status == "FAIL"
    assert found.words == (
        f"state folder {there}/state and cache folder {there}/activations cannot be written to: {there} is on a disk that is "
        "mounted read-only"
    )
    assert f"findmnt -T {there}" in found.remedy
    assert found.remedy.endswith("set `state` and `cache` in site.toml to another folder")


class Account:
    """Another account than that which runs the tests: one without a name here, and with no right to write anywhere."""

    name = "12345"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        may = os.access
        monkeypatch.setattr(os, "getuid", lambda: int(self.name))
        monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and may(path, mode))


def disk(site: Examined) -> tuple[str, str]:
    found = machine.disk(site)
    assert found.status == "FAIL"
    return found.words, found.remedy


def test_a_state_folder_below_one_of_roots_fails_with_the_command_that_makes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Account(monkeypatch)
    words, remedy = disk(examined(Path("/a hospital"), None, cache_mb=0))
    assert words == "state folder /a hospital/state cannot be written to: / is root's, and not open to 12345"
    assert remedy == (
        "sudo install -d -m 0700 -o 12345 '/a hospital/state', or set `state` in site.toml to another folder"
    )


def test_a_state_folder_of_roots_fails_with_the_command_that_hands_it_over(monkeypatch: pytest.MonkeyPatch) -> None:
    Account(monkeypatch)
    words, remedy = disk(examined(Path(), None, cache_mb=0, state=Path("/etc")))
    assert words == "state folder /etc cannot be written to: /etc is root's, and not open to 12345"
    assert remedy.startswith("sudo chown -R 12345 /etc, or ")


@pytest.mark.parametrize("made", [True, False])
def test_what_is_another_accounts_stays_its_own_and_the_doctor_is_to_be_run_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    if os.getuid() == 0:
        os.chown(theirs, NOBODY, NOBODY)
    Account(monkeypatch)
    state = theirs if made else theirs / "state"
    words, remedy = disk(examined(tmp_path, None, cache_mb=0, state=state))
    assert words == f"state folder {state} cannot be written to: {theirs} is {theirs.owner()}'s, and not open to 12345"
    assert remedy.startswith(f"run this as the account of the agent: sudo -u {theirs.owner()} site-agent doctor, or ")
    assert "chown" not in remedy
    assert (f"sudo install -d -m 0700 -o 12345 {state}" in remedy) != made


# --- shared memory --------------------------------------------------------------------------------------------------------


def test_shared_memory_that_is_not_there_is_warned_of(tmp_path: Path) -> None:
    found = machine.shared_memory(examined(tmp_path, None, shared_memory=tmp_path / "shm"))
    assert found.status == "WARN"
    assert "cannot be looked at: No such file or directory" in found.words


@pytest.mark.parametrize(
    ("size", "gpus", "said"),
    [
        ("40m", 0, "has 42 MB, torch expects 60 MB"),
        ("64m", 0, ""),
        ("64m", 1, ""),
        ("64m", 2, "has 67 MB, 2 GPUs under torchrun want 1,000 MB"),
        ("1g", 2, ""),
    ],
)
def test_shared_memory_is_judged_by_the_gpus_that_talk_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str, gpus: int, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with mounted(f"mount -t tmpfs -o size={size} tmpfs .", folder=tmp_path) as there:
        found = machine.shared_memory(examined(tmp_path, None, shared_memory=there))
    assert found.status == ("WARN" if said else "PASS")
    assert said in found.words
    assert ("--shm-size=1g" in found.remedy) == bool(said)

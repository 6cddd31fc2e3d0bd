"""Canonical JSON, digests, and files that appear whole or not at all."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared.canonical import canonical_json, make_folder, sha256_hex, write_atomically
from tests.support import disk_order


def test_json_has_one_encoding() -> None:
    value = {"b": [1, 2.5, None, True], "a": "ü", "A": {"z": 0, "y": ""}}
    assert canonical_json(value) == b'{"A":{"y":"","z":0},"a":"\\u00fc","b":[1,2.5,null,true]}'
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_json_has_no_encoding_of_numbers_that_are_none(value: float) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        canonical_json({"x": value})


def test_the_digest_is_sha256() -> None:
    # NIST FIPS 180-4 example: the message "abc".
    assert sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_hex(memoryview(b"xabcx")[1:4]) == sha256_hex(b"abc")


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_bytes_are_on_the_disk_before_their_name_and_the_name_before_the_return(tmp_path: Path, monkeypatch) -> None:
    steps = disk_order.record(monkeypatch)
    write_atomically(tmp_path / "file", b"new")
    disk_order.assert_written_durably(steps, tmp_path / "file")
    assert [call for call, _ in steps] == ["fsync", "rename", "fsync"]


def test_the_name_of_a_new_folder_is_on_the_disk_too(tmp_path: Path, monkeypatch) -> None:
    steps = disk_order.record(monkeypatch)
    make_folder(tmp_path / "a" / "b", 0o700)
    assert steps == [("fsync", tmp_path), ("fsync", tmp_path / "a")]


def test_a_folder_is_made_with_those_above_it_and_its_own_rights(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b", 0o700)
    make_folder(tmp_path / "a" / "b", 0o755)  # there already: left as it is
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_secret_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    write_atomically(tmp_path / "key", b"secret", mode=0o600)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text is no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


WRITE_PAST_A_LIMIT = """
import resource, signal, sys
from pathlib import Path
from shared.canonical import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_atomically(Path(sys.argv[1]), bytes(1 << 20))
except OSError as error:
    sys.exit(error.strerror)
"""


def test_a_disk_without_room_leaves_the_old_content(tmp_path: Path) -> None:
    """A file-size limit stands for a full disk: the write fails in the middle, in a process of its own."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    child = subprocess.run(
        [sys.executable, "-c", WRITE_PAST_A_LIMIT, path], capture_output=True, text=True, check=False
    )
    assert (child.returncode, child.stderr) == (1, "File too large\n")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    (folder / "child").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        write_atomically(folder, b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


def test_writers_of_one_file_never_mix_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([i]) * 300_000 for i in range(4)]

    def write(content: bytes) -> None:
        for _ in range(5):
            write_atomically(path, content)
            assert path.read_bytes() in contents

    failures: list[BaseException] = []

    def run(content: bytes) -> None:
        try:
            write(content)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]

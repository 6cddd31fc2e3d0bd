"""The folder of frozen activations: private, within its limit, and of no harm when it goes."""

import errno
import json
import os
import stat
import time

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from shared.errors import InputError
from site_agent.cache import folder as cache_folder
from site_agent.cache.folder import CacheFolder
from site_agent.cli import app

FACTS = {
    "base_model": "a" * 64,
    "frames": "stacked",
    "first_block": 10,
    "stored": "float16",
    "preprocessing": "b" * 64,
}


@pytest.fixture
def made(tmp_path):
    """Return a function that makes the folder's keeper anew, as another process would."""

    def make(limit=1000, left_free=0):
        return CacheFolder(tmp_path / "activations", limit, left_free)

    return make


def keep(cache, scope, name, size=100, age_s=0.0):
    path = cache.path_of(scope, name * 64)
    kept = cache.keep(path, bytes(size))
    if kept and age_s:
        os.utime(path, (time.time() - age_s,) * 2)
    return kept


def held(cache):
    return sorted(path.stem[0] for path in cache.path.rglob("*.safetensors"))


def test_everything_in_it_is_for_its_owner_alone(made):
    cache = made()
    keep(cache, cache.scope(FACTS), "1")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [cache.path, *cache.path.rglob("*")]}
    assert {mode for name, mode in modes.items() if "." in name} == {0o600}
    assert {mode for name, mode in modes.items() if "." not in name} == {0o700}
    assert len(modes) == 5


def test_a_scope_is_named_by_what_its_entries_have_in_common(made):
    cache = made()
    assert cache.scope(FACTS) == made().scope(dict(reversed(FACTS.items())))
    assert cache.scope(FACTS) != cache.scope({**FACTS, "first_block": 9})


def test_the_longest_unused_go_first_but_none_that_is_in_use(made):
    earlier = made()
    scope = earlier.scope(FACTS)
    for name, age in (("1", 50), ("2", 90), ("3", 70)):
        keep(earlier, scope, name, 300, age)
    cache = made()
    cache.used(cache.path_of(scope, "2" * 64))  # the oldest, but this process uses it
    assert keep(cache, scope, "4", 300)
    assert held(cache) == ["1", "2", "4"]
    assert keep(cache, scope, "5", 300)
    assert held(cache) == ["2", "4", "5"]
    with capture_logs() as logs:
        assert not keep(cache, scope, "6", 300)
        assert not keep(cache, scope, "7", 300)
    assert held(cache) == ["2", "4", "5"]
    assert [line["event"] for line in logs].count("activations_not_kept") == 1


def test_what_was_not_used_for_two_turns_may_go(made):
    cache = made()
    scope = cache.scope(FACTS)
    for name in ("1", "2", "3"):
        assert keep(cache, scope, name, 300)
    cache.begin_turn()
    cache.used(cache.path_of(scope, "1" * 64))
    assert not keep(cache, scope, "4", 300)
    cache.begin_turn()
    assert keep(cache, scope, "4", 300)
    assert "1" in held(cache)
    assert len(held(cache)) == 3


def test_another_scope_s_entries_count_and_go_like_any(made):
    cache = made()
    old, new = cache.scope(FACTS), cache.scope({**FACTS, "base_model": "c" * 64})
    keep(cache, old, "1", 900)
    assert keep(made(), new, "2", 900)
    assert held(cache) == ["2"]


def test_space_is_left_on_the_disk_for_others(made, tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    cache = made(limit=1 << 50, left_free=free + (1 << 30))
    with capture_logs() as logs:
        assert not keep(cache, cache.scope(FACTS), "1")
    assert [line["event"] for line in logs] == ["activations_evicted", "activations_not_kept"]


def test_a_disk_that_is_full_after_all_is_no_error(made, monkeypatch):
    cache = made()
    scope = cache.scope(FACTS)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_folder.os, "open", full)
    with capture_logs() as logs:
        assert not keep(cache, scope, "1")
    assert logs[0]["reason"] == "its disk is full"
    assert held(cache) == []


def test_a_write_that_breaks_off_leaves_nothing(made, monkeypatch):
    cache = made()
    scope = cache.scope(FACTS)
    monkeypatch.setattr("pathlib.Path.replace", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        keep(cache, scope, "1")
    assert [path.name for path in cache.path.rglob("*") if path.is_file()] == ["scope.json"]


def test_what_a_killed_process_left_half_written_goes_when_room_is_made(made):
    cache = made()
    scope = cache.scope(FACTS)
    keep(cache, scope, "1", 900, age_s=10)
    torn = cache.path_of(scope, "1" * 64).with_name(".x.safetensors.1-1.tmp")
    torn.write_bytes(b"half")
    os.utime(torn, (time.time() - 7200,) * 2)
    assert keep(made(), scope, "2", 900)
    assert not torn.exists()


def test_a_folder_that_cannot_be_used_is_said_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be kept in .*file.*set `cache` to a folder.*or cache_mb = 0"):
        CacheFolder(tmp_path / "file", 1000).scope(FACTS)


def test_purge_removes_entries_and_leaves_what_is_not_the_cache_s(made):
    cache = made()
    scope = cache.scope(FACTS)
    keep(cache, scope, "1", 300)
    (cache.path / "notes.txt").write_text("mine")
    assert cache.purge() == 300
    assert sorted(path.name for path in cache.path.iterdir()) == ["notes.txt"]
    assert keep(cache, scope, "2", 300)  # a running agent goes on


def test_the_command_shows_and_purges(made):
    cache = made()
    keep(cache, cache.scope(FACTS), "1", 300)
    keep(cache, cache.scope({**FACTS, "first_block": 4}), "2", 500)
    shown = CliRunner().invoke(app, ["cache", "show", "--cache", str(cache.path)])
    assert "2 entries" in shown.output
    assert "base model aaaaaaaaaaaa, stacked frames, before block 4, float16" in shown.output
    facts = json.loads(CliRunner().invoke(app, ["cache", "show", "--cache", str(cache.path), "--json"]).output)
    assert (facts["bytes"], sorted(s["entries"] for s in facts["scopes"])) == (800, [1, 1])
    purged = CliRunner().invoke(app, ["cache", "purge", "--cache", str(cache.path)])
    assert purged.output.endswith("0.0 MB removed\n")
    assert held(cache) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "say which folder"),
        (["--cache", "nowhere"], "nowhere does not exist"),
        (["--config", "no.toml"], "cannot read"),
    ],
)
def test_the_command_says_what_it_needs(words, reason):
    for verb in ("show", "purge"):
        found = CliRunner().invoke(app, ["cache", verb, *words])
        assert isinstance(found.exception, InputError)
        assert reason in str(found.exception)

"""The folder of frozen activations: private, within its limit, and of no harm when it goes."""

import errno
import itertools
import json
import os
import shutil
import stat
import time
from concurrent.futures import ThreadPoolExecutor

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
    assert [line["event"] for line in logs] == ["activations_not_kept"]


def test_a_disk_that_is_full_after_all_is_no_error(made, monkeypatch):
    cache = made()
    scope = cache.scope(FACTS)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_folder.os, "open", full)
    with capture_logs() as logs:
        assert not keep(cache, scope, "1")
    assert logs[0]["reason"] == "it cannot be written: No space left on device"
    assert held(cache) == []


def test_a_write_that_breaks_off_leaves_nothing(made, monkeypatch):
    cache = made()
    scope = cache.scope(FACTS)
    monkeypatch.setattr("pathlib.Path.replace", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    assert not keep(cache, scope, "1")
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


def test_an_entry_that_can_never_fit_takes_nothing_s_place(made):
    cache = made()
    scope = cache.scope(FACTS)
    keep(cache, scope, "1", 900)
    with capture_logs() as logs:
        assert not keep(made(), scope, "2", 1001)
    assert held(cache) == ["1"]
    assert "cache_mb" in logs[0]["next"]


def test_a_folder_that_is_removed_under_an_agent_is_made_again(made):
    cache = made()
    scope = cache.scope(FACTS)
    keep(cache, scope, "1", 300)
    shutil.rmtree(cache.path)
    cache.used(cache.path_of(scope, "1" * 64))
    cache.begin_turn()
    assert keep(cache, scope, "2", 300)
    assert held(cache) == ["2"]


def test_a_folder_that_cannot_be_made_again_is_said_once_and_no_error(made):
    cache = made()
    scope = cache.scope(FACTS)
    shutil.rmtree(cache.path)
    cache.path.write_text("a file now")
    with capture_logs() as logs:
        assert not keep(cache, scope, "1")
        assert not keep(cache, scope, "2")
    assert [line["event"] for line in logs] == ["activations_not_kept"]
    assert "cannot be written" in logs[0]["reason"]


def test_agents_write_while_the_folder_is_purged_and_looked_at(made):
    """Nobody fails, and what is there in the end is whole."""
    first = made(limit=1 << 20)
    scope, end = first.scope(FACTS), time.monotonic() + 2.0

    def write(cache):
        cache.scope(FACTS)
        for number in itertools.count():
            if time.monotonic() > end:
                return number
            keep(cache, scope, f"{number % 16:x}", 300)
            cache.used(cache.path_of(scope, f"{number % 7:x}" * 64))
            if number % 50 == 0:
                cache.begin_turn()

    def look(cache):
        for number in itertools.count():
            if time.monotonic() > end:
                return number
            if cache.path.is_dir():
                cache.usage()
                cache.purge()

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(work, made(limit=1 << 20)) for work in (write, write, look)]
        assert all(one.result() > 3 for one in running)
    assert all(path.stat().st_size == 300 for path in first.path.rglob("*.safetensors"))


def test_a_folder_that_cannot_be_used_is_said_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be kept in .*file.*set `cache` to a folder.*or cache_mb = 0"):
        CacheFolder(tmp_path / "file", 1000).scope(FACTS)


def test_purge_removes_entries_and_leaves_what_is_not_the_cache_s(made):
    cache = made()
    scope = cache.scope(FACTS)
    keep(cache, scope, "1", 300)
    (cache.path / "notes.txt").write_text("mine")
    (cache.path / "0123456789abcdef").mkdir()
    (cache.path / "0123456789abcdef" / "thesis.txt").write_text("mine too")
    (cache.path / scope / "11" / "list.txt").write_text("and this")
    assert cache.purge() == 300
    left = sorted(path.name for path in cache.path.rglob("*") if path.is_file())
    assert left == ["list.txt", "notes.txt", "thesis.txt"]
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
    next(cache.path.glob("*/scope.json")).write_text("{ damaged")
    shown = CliRunner().invoke(app, ["cache", "show", "--cache", str(cache.path)])
    assert "an unknown base model: its scope.json is missing or damaged" in shown.output
    assert "base model aaaaaaaaaaaa" in shown.output
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

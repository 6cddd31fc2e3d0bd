"""The folder of frozen activations: a file for each entry, within a limit of disk space. Nothing here imports torch.

    CACHE/<model>/scope.json            what all entries of one base model have in common
    CACHE/<model>/<xx>/<entry>.safetensors

`<entry>` is a digest of what the entry was computed from, `<xx>` its first two digits. A name says it all, so agents of several
federations, and a site's processes on several GPUs, use one folder without a word to each other: a file appears whole by a
rename, and one that is removed is computed again by whoever needs it. Entries are derived patient data: folders have mode 0700,
files 0600, and `purge` removes them all.
"""

import contextlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from shared.canonical import canonical_json, make_folder, sha256_hex
from shared.errors import InputError

log = structlog.get_logger()

SCOPE = "scope.json"
SUFFIX, TORN = ".safetensors", ".tmp"
LEFT_FREE_BYTES = 1_000_000_000
"""What the cache leaves on its disk: others live there too, first of all the agent's state."""
SCOPE_NAME = re.compile(r"[0-9a-f]{16}")
TORN_AFTER_S = 3600.0
ROOM_AT_ONCE = 0.02
"""Share of the limit that is made free at a time, so that the folder is not looked through for every entry."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Entries and bytes of one scope; `facts` is what its scope.json says."""

    scope: str
    facts: dict[str, Any]
    entries: int
    size: int


@dataclass
class CacheFolder:
    """Keeps files within `limit_bytes`: the longest unused go first, but none that this process has used in this turn or the last.

    A turn is what its caller takes for one: a round. When all that is there is in use, further entries are not kept; whoever
    needs one again computes it again.
    """

    path: Path
    limit_bytes: int
    left_free_bytes: int = LEFT_FREE_BYTES
    _scopes: dict[str, bytes] = field(default_factory=dict, init=False)
    _size: int | None = field(default=None, init=False)
    _used: set[Path] = field(default_factory=set, init=False)
    _used_before: set[Path] = field(default_factory=set, init=False)
    _full: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def begin_turn(self) -> None:
        """From here on, only what is used in this turn or was used in the last one is in use."""
        with self._lock:
            self._used_before, self._used, self._full = self._used, set(), False
            self._size = None  # counted anew: other processes write here too

    def scope(self, facts: dict[str, Any]) -> str:
        """Return the name of a scope, and write down what it stands for. Raises InputError if the folder cannot be used."""
        data = canonical_json(facts)
        name = sha256_hex(data)[:16]
        self._scopes[name] = data
        try:
            make_folder(self.path, 0o700)
            self._ready(name)
        except OSError as error:
            raise InputError(
                f"frozen activations cannot be kept in {self.path}: {error.strerror}; set `cache` to a folder on a local disk, "
                "or cache_mb = 0 to compute them every time"
            ) from error
        return name

    def path_of(self, scope: str, digest: str) -> Path:
        """Return where an entry is, or would be."""
        return self.path / scope / digest[:2] / f"{digest}{SUFFIX}"

    def used(self, path: Path) -> None:
        """Note that an entry is in use."""
        with self._lock:
            known = path in self._used
            self._used.add(path)
        if not known:
            with contextlib.suppress(OSError):  # it is gone, or nothing can be written here
                os.utime(path)

    def keep(self, path: Path, data: bytes) -> bool:
        """Write an entry if there is room, or room can be made. Returns whether it is there.

        What the disk says against it is told once in a turn, and is no error: whoever needs the entry computes it again.
        """
        try:
            self._ready(path.parent.parent.name)
            if not self._make_room(len(data)):
                return False
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._place(path, data)
        except OSError as error:
            self._say_not_kept(f"it cannot be written: {error.strerror or error}")
            return False
        with self._lock:
            self._used.add(path)
            self._size = (self._size or 0) + len(data)
        return True

    def drop(self, path: Path) -> None:
        """Remove an entry that is of no use."""
        with self._lock, contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            self._size = None if self._size is None else self._size - size

    def usage(self) -> list[Usage]:
        """Return what there is, by scope."""
        found = []
        for folder in self._scope_folders():
            sizes = [size for _, size, _ in _entries(folder)]
            found.append(Usage(folder.name, _facts(folder), len(sizes), sum(sizes)))
        return found

    def purge(self) -> int:
        """Remove every entry and return their bytes. Files of other names stay. An agent that runs computes what it needs anew.

        Raises OSError if an entry cannot be removed.
        """
        freed = 0
        for scope in self._scope_folders():
            for folder, _, names in os.walk(scope, topdown=False):
                for path in (Path(folder) / name for name in names):
                    if path.suffix in (SUFFIX, TORN) or path == scope / SCOPE:
                        freed += _removed(path)
                with contextlib.suppress(OSError):  # something else lies in it, or an agent has just written there
                    Path(folder).rmdir()
        with self._lock:
            self._size = None
        return freed

    def _scope_folders(self) -> list[Path]:
        """Folders named like a scope that say that they are one, or hold nothing but what could be in one."""
        found = [path for path in self.path.iterdir() if path.is_dir() and SCOPE_NAME.fullmatch(path.name)]
        return sorted(path for path in found if (path / SCOPE).exists() or any(True for _ in _entries(path)))

    def _ready(self, scope: str) -> None:
        """Make a scope's folder, also if it was purged meanwhile."""
        folder = self.path / scope
        if not (folder / SCOPE).exists():
            for one in (self.path, folder):
                one.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._place(folder / SCOPE, self._scopes[scope])

    def _make_room(self, needed: int) -> bool:
        with self._lock:
            if self._size is None:
                self._size = sum(size for _, size, _ in _entries(self.path))
            free = shutil.disk_usage(self.path).free - self.left_free_bytes
            missing = max(self._size + needed - self.limit_bytes, needed - free)
            if missing <= 0:
                return True
            if not self._full:
                missing -= self._evict(missing, int(ROOM_AT_ONCE * self.limit_bytes))
        if missing > 0:
            self._say_not_kept("there is no room: what could go is in use, or less than an entry needs")
        return missing <= 0

    def _evict(self, needed: int, more: int) -> int:
        """Remove what was not used for longest until `needed` bytes are free and some more; return how many are.

        If there is less than `needed` that may go, nothing does.
        """
        there, in_use = sorted(_entries(self.path)), self._used | self._used_before
        total, freed = sum(size for _, size, _ in there), 0
        may_go = [(size, path) for _, size, path in there if path not in in_use]
        if sum(size for size, _ in may_go) < needed:
            return 0
        for size, path in may_go:
            if freed < needed + more:
                path.unlink(missing_ok=True)
                freed += size
        for path in _files(self.path, TORN):  # of a process that was killed
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - TORN_AFTER_S:
                    path.unlink()
        self._size = total - freed
        log.info("activations_evicted", freed_bytes=freed, held_bytes=self._size)
        return freed

    def _say_not_kept(self, reason: str) -> None:
        if not self._full:
            self._full = True
            log.warning(
                "activations_not_kept",
                reason=reason,
                limit_bytes=self.limit_bytes,
                held_bytes=self._size,
                next="they are computed again when needed; see `cache` and cache_mb in site.toml",
            )

    def _place(self, path: Path, data: bytes) -> None:
        """Write a file that appears whole. Not synced: an entry torn by a power cut is found out when it is read."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield when each entry was last used (seconds since 1970), its bytes, and its path."""
    for path in _files(folder, SUFFIX):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            found = path.stat()
            yield found.st_mtime, found.st_size, path


def _files(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield the files below a folder, from which others take files and folders meanwhile."""
    for inside, _, names in os.walk(folder):
        yield from (Path(inside) / name for name in names if name.endswith(suffix))


def _removed(path: Path) -> int:
    """Remove a file and return the bytes of an entry."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size if path.suffix == SUFFIX else 0


def _facts(scope: Path) -> dict[str, Any]:
    """Return what a scope says of itself; nothing if that is missing or damaged."""
    try:
        facts = json.loads((scope / SCOPE).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}

"""The cache as training sees it: entries of one base model, by what they were computed from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from shared.canonical import canonical_json, sha256_hex
from site_agent.cache import entries
from site_agent.cache.folder import CacheFolder
from site_agent.damage import Damaged
from site_agent.models.backbone import Prefix

log = structlog.get_logger()

FORMAT = 2


@dataclass(frozen=True, slots=True)
class Cache:
    """Entries of one scope of a folder."""

    folder: CacheFolder
    scope: str

    @classmethod
    def of(cls, folder: CacheFolder, facts: dict[str, Any]) -> "Cache":
        """Return the entries that were computed by what `facts` names: base model, preprocessing, where it is cut, numbers' kind.

        Raises InputError if the folder cannot be used.
        """
        return cls(folder, folder.scope({"format": FORMAT, **facts}))

    def find(self, key: dict[str, Any], allocate: entries.Allocate | None = None) -> Prefix | None:
        """Return the entry of a key (image digest, view, frame), mapped from its file or read into what `allocate` gives; None
        if it must be computed.

        A damaged one is removed and counts as missing.
        """
        data, path = self._place(key)
        try:
            found = entries.read(path, data, allocate)
        except Damaged as damage:
            log.warning("activation_damaged", entry=path.name, reason=damage.reason, next="it is computed again")
            self.folder.drop(path)
            return None
        if found is not None:
            self.folder.used(path)
        return found

    def keep(self, key: dict[str, Any], entry: Prefix) -> bool:
        """Write an entry if there is room for it. Returns whether it is there."""
        data, path = self._place(key)
        return self.folder.keep(path, entries.write(data, entry))

    def holds(self, key: dict[str, Any]) -> bool:
        """Return whether there is a file for a key, which is in use from here on; it has not been looked into."""
        path = self._place(key)[1]
        if not path.exists():
            return False
        self.folder.used(path)
        return True

    def _place(self, key: dict[str, Any]) -> tuple[bytes, Path]:
        data = canonical_json({"scope": self.scope, **key})
        return data, self.folder.path_of(self.scope, sha256_hex(data))

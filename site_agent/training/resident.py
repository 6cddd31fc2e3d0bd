"""Entries that stay on a GPU once they are there: it trains on one sooner than the processor can read and check it.

They lie there as narrow as the cache keeps them, so a number is the same from here and from there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch

from site_agent.models.backbone import Prefix
from site_agent.training.compute import Compute
from site_agent.training.views import View

SHARE = 4
"""One part in so many of what is free on the GPU when a site begins."""

Key = tuple[View, int]
"""A view and its frame."""


@dataclass
class Resident:
    """Keeps entries within `limit_bytes`, those that came first; what two rounds have not used goes."""

    limit_bytes: int
    _entries: dict[Key, Prefix] = field(default_factory=dict, init=False)
    _size: int = field(default=0, init=False)
    _used: set[Key] = field(default_factory=set, init=False)
    _used_before: set[Key] = field(default_factory=set, init=False)

    @classmethod
    def on(cls, compute: Compute) -> Self | None:
        """Return an empty one for a GPU; None for a CPU, whose memory the page cache is in already."""
        if compute.device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(compute.device)
        return cls(free // SHARE)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._size

    def get(self, key: Key) -> Prefix | None:
        """Return an entry, if it is here. May be called on other threads than the rest."""
        found = self._entries.get(key)
        if found is not None:
            self._used.add(key)
        return found

    def put(self, key: Key, entry: Prefix) -> None:
        """Keep an entry if there is room for it."""
        size = sum(value.nbytes for value in entry)
        if key not in self._entries and self._size + size <= self.limit_bytes:
            self._entries[key] = entry
            self._used.add(key)
            self._size += size

    def begin_round(self) -> None:
        """From here on there is no room for what the last two rounds have not used."""
        in_use = self._used | self._used_before
        self._keep({key: entry for key, entry in self._entries.items() if key in in_use})
        self._used_before, self._used = self._used, set()

    def clear(self) -> bool:
        """Give the memory back, for good: it was too much. Return whether there was any."""
        if not self._entries:
            return False
        self._keep({})
        self.limit_bytes = 0
        return True

    def _keep(self, entries: Mapping[Key, Prefix]) -> None:
        self._entries = dict(entries)
        self._size = sum(value.nbytes for entry in entries.values() for value in entry)

"""Downloads: of the forms in which a version can be sent to a site, the one with the fewest bytes.

What a download holds is a pure function of the version and the copy the site has, so that another replica goes on with it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import sqlalchemy as sa

from aggregator.federation import Federation
from aggregator.store import changes, federations
from aggregator.store.changes import Change
from shared import codecs, forms
from shared.adapter import Adapter
from shared.canonical import sha256_hex

Form = Literal["PLAIN", "PACKED", "CHANGES"]
KEPT = 4
"""Downloads that are kept at hand: sites of a round ask for the same one."""


@dataclass(frozen=True)
class Download:
    """A version as it is sent. `base_digest`: the copy it builds on; `changes`: what a payload of that form holds, in order."""

    adapter: Adapter
    form: Form
    payload: bytes
    base_digest: str = ""
    changes: tuple[Change, ...] = ()

    @cached_property
    def payload_digest(self) -> str:
        """SHA-256 of the payload, hex."""
        return sha256_hex(self.payload)


class Downloads:
    """The downloads of one federation."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._at_hand: dict[tuple[str, int], asyncio.Task[Download]] = {}

    async def choose(self, adapter: Adapter, held: str, any_form: bool) -> Download:
        """Return the smallest download of a version for a site that has the copy with digest `held` (empty: none).

        A site that does not know `any_form` gets the plain one.
        """
        if not any_form:
            return Download(adapter, "PLAIN", adapter.payload)
        key = (held, adapter.version)
        task = self._at_hand.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.create_task(self._make(adapter, held))
            self._at_hand = dict([*self._at_hand.items(), (key, task)][-KEPT:])
        return await asyncio.shield(task)

    async def _make(self, adapter: Adapter, held: str) -> Download:
        federation = self._federation
        lossy = codecs.is_lossy(federation.contract.recipe.broadcast_codec)
        base, chain = await federation.read(_base, federation.name, held, adapter.version if lossy else None)
        return await asyncio.to_thread(smallest, adapter, base, chain)


def smallest(adapter: Adapter, base: Adapter | None, chain: Sequence[Change] | None) -> Download:
    """Return the download of a version with the fewest bytes, for a site that has `base`; `chain`: the changes from it."""
    found = [Download(adapter, "PLAIN", adapter.payload)]
    if base is not None and chain:
        payload = b"".join(change.data for change in chain)
        found.append(Download(adapter, "CHANGES", payload, base.digest, tuple(chain)))
    if 2 * len(found[-1].payload) > len(adapter.payload):  # else packing gains less, and takes time
        packed = forms.pack(adapter.payload, base.payload if base else None)
        found.append(Download(adapter, "PACKED", packed, base.digest if base else ""))
    return min(found, key=lambda download: len(download.payload))


def _base(
    connection: sa.Connection, federation: str, held: str, version: int | None
) -> tuple[Adapter | None, list[Change] | None]:
    """Return the version that a site holds, if it is one of ours, and the changes from it to `version`, if there are such."""
    base = federations.adapter_with(connection, federation, held) if held else None
    if base is None or version is None:
        return base, None
    return base, changes.chain(connection, federation, held, version)

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
from aggregator.store.changes import Step
from shared import codecs, forms
from shared.adapter import Adapter
from shared.canonical import sha256_hex

Form = Literal["PLAIN", "PACKED", "CHANGES"]
Way = tuple[Sequence[Step], bytes]
"""Changes one after the other, and their bytes."""
KEPT = 4
"""Downloads that are kept at hand: sites of a round ask for the same one."""


@dataclass(frozen=True)
class Download:
    """A version as it is sent. `base_digest`: the copy it builds on; `changes`: what a payload of that form holds, in order."""

    adapter: Adapter
    form: Form
    payload: bytes
    base_digest: str = ""
    changes: tuple[Step, ...] = ()

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
        base, way = federation.at_hand(held), None
        if lossy or (held and base is None):
            base, way = await federation.read(_base, federation.name, held, adapter, lossy)
        return await asyncio.to_thread(smallest, adapter, base, way)


def smallest(adapter: Adapter, base: Adapter | None, way: Way | None) -> Download:
    """Return the download of a version with the fewest bytes, for a site that has `base`; `way`: the changes from it."""
    found = [Download(adapter, "PLAIN", adapter.payload)]
    if base is not None and way is not None:
        steps, payload = way
        found.append(Download(adapter, "CHANGES", payload, base.digest, tuple(steps)))
    if 2 * len(found[-1].payload) > len(adapter.payload):  # else packing gains less, and takes time
        packed = forms.pack(adapter.payload, base.payload if base else None)
        found.append(Download(adapter, "PACKED", packed, base.digest if base else ""))
    return min(found, key=lambda download: len(download.payload))


def _base(
    connection: sa.Connection, federation: str, held: str, adapter: Adapter, lossy: bool
) -> tuple[Adapter | None, Way | None]:
    """Return the version that a site holds, if it is one of ours, and the changes from it, if there are such and they are
    smaller than the version as a whole."""
    base = federations.adapter_with(connection, federation, held) if held else None
    if base is None or not lossy:
        return base, None
    steps = changes.chain(connection, federation, held, adapter.version, len(adapter.payload))
    return base, None if steps is None else (steps, changes.data(connection, federation, steps))

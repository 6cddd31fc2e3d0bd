"""The facts for whoever asks a serving process: read once a second at most, however many ask."""

import asyncio

from aggregator.facts import facts, material
from aggregator.facts.calls import Calls
from aggregator.facts.facts import Facts
from aggregator.federation import Federation
from aggregator.store import engine
from shared.errors import StoreUnavailable

AGE_S = 1.0
"""Facts are good for so long."""
READ_S = 5.0
"""Who asks waits no longer for the store."""


class CurrentFacts:
    """Reads the store and keeps what it made of it. `last`: the newest facts there are, also while the store is away."""

    def __init__(self, federation: Federation, calls: Calls) -> None:
        self._federation, self._calls = federation, calls
        self._reading: asyncio.Task[Facts] | None = None
        self._read_at = float("-inf")
        self.last: Facts | None = None

    async def get(self) -> Facts:
        """Return facts no older than AGE_S. Raises StoreUnavailable if the store does not answer in time, InputError if it is
        damaged."""
        loop = asyncio.get_running_loop()
        if self.last is not None and loop.time() - self._read_at < AGE_S:
            return self.last
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(_seen)
        try:
            return await asyncio.wait_for(asyncio.shield(self._reading), READ_S)
        except TimeoutError:
            raise StoreUnavailable(f"the store has not answered for {READ_S:.0f} s") from None

    async def _read(self) -> Facts:
        federation, counted = self._federation, self._calls.counted()

        def make() -> Facts:
            with engine.damage_named(federation.store):
                found = federation.store.read(material.read, federation.name)
                return facts.make(found, federation.clock(), counted)

        made = await asyncio.to_thread(make)
        self._read_at, self.last = asyncio.get_running_loop().time(), made
        return made


def _seen(reading: asyncio.Task[Facts]) -> None:
    """Have a failure looked at, also where nobody waited for it to the end."""
    if not reading.cancelled():
        reading.exception()

"""Slots for what costs memory: so many at a time, few of them one site's, and none for a call that stands still."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

from shared.errors import BadOffset

T = TypeVar("T")

PER_SITE = 2
"""An agent needs one. After a cut the aggregator may believe in the old stream for a minute, and the agent is back sooner."""


class Slot:
    """One of a federation's slots, in hand or put back for the time being."""

    def __init__(self, slots: asyncio.Semaphore) -> None:
        self._slots, self._held = slots, False

    async def take(self) -> None:
        """Wait for a slot, unless this one is in hand."""
        if not self._held:
            await self._slots.acquire()
            self._held = True

    def put_back(self) -> None:
        """Let another call have it."""
        if self._held:
            self._held = False
            self._slots.release()

    async def paced(self, parts: Iterable[T], limit_s: float) -> AsyncIterator[T]:
        """Yield what a site is sent, for gRPC to write. While a message is not taken for longer than the limit the slot is
        another call's.

        Nothing can end a call that is being written: the caller would learn of no error before it has read the message.
        """
        loop = asyncio.get_running_loop()
        for part in parts:
            await self.take()
            late = loop.call_later(limit_s, self.put_back)
            try:
                yield part
            finally:
                late.cancel()


class Slots:
    """`count` slots, of which one site may have PER_SITE, but never all if there are two or more. Who finds none free waits."""

    def __init__(self, count: int) -> None:
        self._all = asyncio.Semaphore(count)
        self._per_site = max(1, min(PER_SITE, count - 1))
        self._sites: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def one(self, site: str) -> AsyncIterator[Slot]:
        """Hold a slot on behalf of a site; further calls of the site wait until the block ends, not only until it is put back."""
        own = self._sites.get(site)
        if own is None:
            own = self._sites[site] = asyncio.Semaphore(self._per_site)
        slot = Slot(self._all)
        async with own:
            await slot.take()
            try:
                yield slot
            finally:
                slot.put_back()


async def punctual(requests: AsyncIterator[T], limit_s: float) -> AsyncIterator[T]:
    """Yield what a site sends; raise BadOffset if it lets one message be waited for too long."""
    while True:
        try:
            async with asyncio.timeout(limit_s):
                request = await anext(requests)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BadOffset(f"nothing came for {limit_s:.0f} s; what arrived is kept, begin again") from None
        yield request

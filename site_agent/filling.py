"""Frozen activations that are computed while an agent waits for its next round, so that training finds them ready."""

import asyncio
import threading
import time
from dataclasses import dataclass, field

import structlog

from site_agent.training.site import SiteTrainer
from site_agent.view import View

log = structlog.get_logger()


@dataclass
class Filling:
    """A thread that fills a trainer's cache between `begin` and `leave_off`. The model is the thread's meanwhile."""

    _view: View
    _leave: threading.Event = field(default_factory=threading.Event)
    _running: asyncio.Future[None] | None = None
    _done: int | None = None
    """Round of which all was there."""
    _seconds: float = 0.0

    def begin(self, trainer: SiteTrainer, round_number: int) -> None:
        """Compute what round `round_number` and all that follows will ask for; nothing, if that was done for this round before."""
        if self._running is None and self._done != round_number:
            self._leave.clear()
            self._running = asyncio.ensure_future(asyncio.to_thread(self._fill, trainer, round_number))

    async def leave_off(self) -> float:
        """Have the thread end, which takes as long as one entry does, and return the seconds it worked. Raises what it raised."""
        if self._running is None:
            return 0.0
        self._leave.set()
        running, self._running = self._running, None
        await running
        return self._seconds

    def stop(self) -> None:
        """Have the thread end without waiting for it."""
        self._leave.set()

    def _fill(self, trainer: SiteTrainer, round_number: int) -> None:
        began = time.monotonic()
        seen = (0, 0)

        def progress(done: int, of: int) -> None:
            nonlocal seen
            seen = done, of
            self._view.cached(done, of)

        computed = trainer.fill_cache(round_number, self._leave.is_set, progress)
        self._seconds = time.monotonic() - began
        if not self._leave.is_set():
            self._done = round_number
        if computed:
            whole = seen[0] == seen[1]
            log.info("activations_cached", computed=computed, duration_s=round(self._seconds, 3), all=whole)

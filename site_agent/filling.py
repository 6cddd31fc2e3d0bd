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
    _done: bool = False
    _seconds: float = 0.0

    def begin(self, trainer: SiteTrainer, round_number: int) -> None:
        """Compute what round `round_number` and all that follows will ask for; nothing, if all of it was computed before."""
        if self._running is None and not self._done:
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
        computed = trainer.fill_cache(round_number, self._leave.is_set, self._view.cached)
        self._done = not self._leave.is_set()
        self._seconds = time.monotonic() - began
        if computed:
            log.info("activations_cached", computed=computed, duration_s=round(self._seconds, 3), all=self._done)

"""Rounds that are asked for again: an aggregator gone wrong is not flooded."""

import asyncio
import random
import time
from dataclasses import dataclass

import structlog

from site_agent.calls import retry_delay_s
from site_agent.client import Task

log = structlog.get_logger()


@dataclass(slots=True)
class Repeats:
    """How often in a row one round was asked for again, and since when (time.monotonic)."""

    rng: random.Random
    digest: str = ""
    round: int = 0
    count: int = 0
    since: float = 0.0

    def note(self, task: Task, now: float) -> int:
        """Note that a round is asked for; return how many times it was before, without another one in between."""
        if (task.round, task.digest) == (self.round, self.digest):
            self.count += 1
        else:
            self.round, self.digest, self.count, self.since = task.round, task.digest, 0, now
        return self.count

    async def hesitate(self, task: Task) -> None:
        """Pause before a round that was dealt with just now, longer every time."""
        now = time.monotonic()
        if repeats := self.note(task, now):
            delay = retry_delay_s(repeats, now - self.since, self.rng)
            log.warning(
                "round_asked_again",
                round=task.round,
                version=task.version,
                attempt=repeats,
                retry_in_s=round(delay, 2),
            )
            await asyncio.sleep(delay)

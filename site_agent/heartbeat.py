"""What an agent says of itself while it is busy, and what it hears meanwhile: that it is alive, how far it is, what holds it up;
and whether its round is still asked for."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from shared.errors import AggregatorUnreachable, ContractMismatch, NotFound
from site_agent.certificate import OwnCertificate
from site_agent.client import FederationClient, Task

HEARTBEAT_S = 20.0
STARTING = Task("UNSPECIFIED", 0, 0, "", 0.0, "")
"""What an agent is busy with before its first task."""

Hold = Literal["CONTRACT", "WINDOW", "RELEASE", "KEPT", "DISK"]
"""Why a site does not do what it is asked to, as far as its own people can change it: names of the protocol, without prefix."""


class Heartbeat:
    """One agent's.

    `task`: what it is busy with, None while its loop itself asks; `progress`: share of the training done, 0 to 1.
    """

    def __init__(self, client: FederationClient, certificate: OwnCertificate) -> None:
        self._client, self._certificate = client, certificate
        self.task: Task | None = None
        self.progress = 0.0
        self.abandoned = threading.Event()
        """The round that is worked on is over."""
        self._holds: list[Hold] = []
        self._news = asyncio.Event()

    @property
    def held_by(self) -> Hold | None:
        """What holds the agent up now."""
        return self._holds[-1] if self._holds else None

    def hold(self, why: Hold) -> None:
        """Tell, at once, that something holds the agent up, until it is `let_go`."""
        if why not in self._holds:
            self._holds.append(why)
            self._news.set()

    def let_go(self, why: Hold) -> None:
        """Tell that this holds the agent up no longer."""
        if why in self._holds:
            self._holds.remove(why)
            self._news.set()

    @contextmanager
    def held(self, why: Hold) -> Iterator[None]:
        """Tell that the agent is held up within."""
        self.hold(why)
        try:
            yield
        finally:
            self.let_go(why)

    def is_asked(self, number: int) -> bool:
        """Whether the aggregator still asks for a round, as far as the last heartbeat knows."""
        task = self.task
        return task is not None and (task.instruction, task.round) == ("TRAIN", number) and not self.abandoned.is_set()

    async def run(self) -> None:
        """Tell the aggregator every 20 s, whatever the agent is busy with; hear if its round is over.

        In an outage the next heartbeat says more than this one repeated; whether to give up is for the loop's own calls.
        """
        while True:
            self._certificate.tell_expiry()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._news.wait()
            self._news.clear()
            task = self.task or (STARTING if self.held_by and self._client.federation else None)
            if task is None:
                continue  # the loop itself is asking, or there is nobody to tell yet
            try:
                answer = await self._client.await_round(
                    round_number=task.round,
                    following=task.instruction,
                    version=task.version,
                    wait_s=0,
                    progress=self.progress,
                    hold=self.held_by,
                    give_up_after_s=HEARTBEAT_S,
                )
            except (AggregatorUnreachable, ContractMismatch, NotFound):
                continue  # the loop's own calls are told the same
            # an answer may take its time, and the round after is not over because the one it is about is
            if answer.instruction in ("ABANDON", "EVICTED", "FINISHED") and self.task is task:
                self.abandoned.set()

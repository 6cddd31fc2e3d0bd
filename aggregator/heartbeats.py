"""Heartbeats: an agent keeps its site's certificate to itself and says how far it is, at few syncs of the disk.

A heartbeat that is the first for a while is written down before it is answered. What it says that is new in between is written
soon after, together with what others say.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Concatenate, ParamSpec

import sqlalchemy as sa
import structlog

from aggregator.identity import Caller
from aggregator.instructions import SiteReport
from aggregator.store import agents
from aggregator.store.engine import Store
from shared.errors import IdentityInUse, MedDualLoRAError

log = structlog.get_logger()
P = ParamSpec("P")

WRITE_S = 5.0
"""An agent known to have called so recently is not written down again before it is answered."""
NEWS_S = 1.0
"""What it says that is new is written so soon after."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """What a site's agent said last, and since when it is known to the store."""

    agent_id: str
    at: float
    progress: float
    version: int
    authenticated: bool
    expires_at: float
    serial: str
    hold: str

    @property
    def values(self) -> dict[str, str | float | bool]:
        """Columns of the agent's row."""
        return {
            "progress": self.progress,
            "version": self.version,
            "authenticated": self.authenticated,
            "expires_at": self.expires_at,
            "serial": self.serial,
            "hold": self.hold,
        }


class Heartbeats:
    """Those of one federation, at one replica."""

    def __init__(self, store: Store, federation: str, identity_s: float, clock: Callable[[], float]) -> None:
        self._store, self._federation = store, federation
        self._identity_s, self._clock = identity_s, clock
        self._heard: dict[str, _Heard] = {}
        self._to_write: dict[str, _Heard] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    async def note(self, caller: Caller, agent_id: str, report: SiteReport) -> None:
        """Check the agent and note what it says. Raises IdentityInUse.

        One that the store was told of a moment ago is not checked again: nobody else can have got its certificate since.
        """
        site, now = caller.site, self._clock()
        said = _Heard(
            agent_id,
            now,
            report.progress,
            report.version,
            caller.authenticated,
            caller.expires_at,
            caller.serial,
            report.hold,
        )
        last = self._heard.get(site)
        if last is None or last.agent_id != agent_id or now - last.at >= WRITE_S:
            await self._write(agents.heard, self._federation, site, agent_id, now, self._identity_s, said.values)
            self._heard[site] = said
            self._to_write.pop(site, None)
        elif last.values != said.values:
            self._heard[site] = replace(said, at=last.at)
            self._write_soon(site, said)

    def written(self, caller: Caller, agent_id: str) -> None:
        """Know that a transaction of this moment has checked a site's agent and written down that it called."""
        last = self._heard.get(caller.site)
        if last is not None and last.agent_id == agent_id:
            self._heard[caller.site] = replace(last, at=self._clock())

    def drain(self) -> None:
        """Write nothing more by itself: the store is about to be closed. The next replica is told again."""
        self._draining = True

    def _write_soon(self, site: str, said: _Heard) -> None:
        if not self._to_write:
            asyncio.get_running_loop().call_later(NEWS_S, self._start_writing)
        self._to_write[site] = said

    def _start_writing(self) -> None:
        if self._to_write and not self._draining:
            task = asyncio.create_task(self._write_news())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write_news(self) -> None:
        last = {site: self._heard[site].at for site in self._to_write}
        said = {site: replace(one, at=max(one.at, last[site])) for site, one in self._to_write.items()}
        self._to_write = {}
        try:
            await self._write(_write_all, self._federation, said, self._identity_s)
        except MedDualLoRAError as error:  # the store is away; the next heartbeat says it again
            log.warning("heartbeats_not_written", sites=sorted(said), error=str(error))

    async def _write(
        self, work: Callable[Concatenate[sa.Connection, P], None], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Write off the event loop. Once begun, no cancellation stops it."""
        await asyncio.shield(asyncio.to_thread(lambda: self._store.write(work, *args, **kwargs)))


def _write_all(connection: sa.Connection, federation: str, said: Mapping[str, _Heard], identity_s: float) -> None:
    for site, one in sorted(said.items()):
        try:
            agents.heard(connection, federation, site, one.agent_id, one.at, identity_s, one.values)
        except IdentityInUse as error:  # another agent has come meanwhile, at another replica
            log.info("heartbeat_too_late", site=site, agent_id=one.agent_id[:8], error=str(error))

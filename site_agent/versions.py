"""Versions of the global adapter as this site comes by them: kept from before, drawn here, or downloaded."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from shared.adapter import Adapter
from shared.contract import Contract
from shared.errors import BadOffset, InvalidAdapter, UpdateTooLarge
from site_agent import starting
from site_agent.client import FederationClient, Task
from site_agent.consent import ConsentWithheld
from site_agent.state import State
from site_agent.training.site import SiteTrainer

log = structlog.get_logger()


class Versions:
    """One agent's. `write` writes to the state folder, however long its disk is full."""

    def __init__(
        self, client: FederationClient, state: State, write: Callable[[Callable[[], None]], Awaitable[None]]
    ) -> None:
        self._client, self._state, self._write = client, state, write

    async def get(self, contract: Contract, trainer: SiteTrainer, task: Task) -> Adapter:
        """Return the version a task names, and keep it. Raises ConsentWithheld if it is not what the contract says."""
        held = self._state.global_adapter()
        adapter = await self._find(contract, trainer, task, held)
        if held is None or held.digest != adapter.digest:
            await self._write(lambda: self._state.store_global(adapter))
        return adapter

    async def initial(self, contract: Contract, trainer: SiteTrainer) -> Adapter:
        """Return version 0; a site that joined late has not had it yet."""
        held = self._state.initial_adapter()
        if held is None:
            task = Task("FINISHED", 0, 0, contract.adapter_digest, 0.0, "")
            found = held = await self._find(contract, trainer, task, None)
            await self._write(lambda: self._state.store_initial(found))
        return held

    async def _find(self, contract: Contract, trainer: SiteTrainer, task: Task, held: Adapter | None) -> Adapter:
        """Return the version a task names.

        Version 0 need not travel to a site that draws the same for its own base model; nor does, of a later one, what is still
        as it was drawn.
        """
        if task.version == 0 and task.digest != contract.adapter_digest:
            raise ConsentWithheld(
                f"version 0 has digest {task.digest[:12]}, the contract names {contract.adapter_digest[:12]}"
            )
        if held is None:
            began = time.monotonic()
            held = await asyncio.to_thread(starting.version_0, trainer, contract)
            if held is not None:
                log.info("version_0_drawn", digest=held.digest, duration_s=round(time.monotonic() - began, 3))
                if held.digest == task.digest:
                    return held
        try:
            return await self._client.fetch(contract, task, held)
        except (InvalidAdapter, BadOffset, UpdateTooLarge) as error:
            raise ConsentWithheld(f"version {task.version} is not what the contract says: {error}") from error

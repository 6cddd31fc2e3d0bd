"""Whether this hospital lets something happen now: taking part, training at this hour, an update leaving.

Nothing here ends the agent. What is not allowed is said, and looked at again until it is, or until nobody asks for it any more.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog

from shared.errors import MedDualLoRAError
from site_agent import releases
from site_agent.client import Joined
from site_agent.config import SiteConfig
from site_agent.consent import ConsentWithheld
from site_agent.egress import Update
from site_agent.heartbeat import Heartbeat
from site_agent.ledger import HELD, RELEASED, WITHHELD, Ledger
from site_agent.privacy import budget
from site_agent.releases import Decision
from site_agent.state import State
from site_agent.view import View

log = structlog.get_logger()
T = TypeVar("T")
CONSENT_EVERY_S, WINDOW_EVERY_S = 60.0, 5.0
"""How often it is looked whether the site may take part again, and whether its training window has opened."""

Write = Callable[[Callable[[], object]], Awaitable[object]]


class Permission:
    """One agent's. `write` writes to the state folder, however long its disk is full."""

    def __init__(
        self, config: SiteConfig, state: State, ledger: Ledger, view: View, heartbeat: Heartbeat, write: Write
    ) -> None:
        self._config, self._state, self._ledger, self._view = config, state, ledger, view
        self._heartbeat, self._write = heartbeat, write
        self._told = ""
        """Why the site does not take part, as it was said last."""

    async def agree(self, join: Callable[[], Awaitable[Joined]], training_patients: int) -> Joined:
        """Join, and bind the state folder to the contract. Stays and asks again as long as the site, with so many patients to
        train on, does not consent to it."""
        while True:
            try:
                return await self._agreed(await join(), training_patients)
            except ConsentWithheld as error:
                await self.withhold(error)

    async def _agreed(self, joined: Joined, training_patients: int) -> Joined:
        self._config.agreed.check(joined.contract)
        budget.check_offer(joined.contract, training_patients)
        await self._write(lambda: self._state.bind(joined.contract))
        self._ledger.contract = joined.contract.sha256
        self._told = ""
        return joined

    def may_send(self, round_number: int, size: int) -> None:
        """Raise ConsentWithheld if so many bytes of tensors for a round would pass a budget, counting all that has left."""
        self._config.agreed.check_spent(size, round_number, self._ledger.spent(round_number))

    async def withhold(self, error: MedDualLoRAError) -> None:
        """Say that this site does not take part as things are, and wait before looking again."""
        log.warning("consent_withheld", reason=str(error), retry_in_s=CONSENT_EVERY_S)
        if str(error) != self._told:  # once for each reason; the log has all
            self._told = str(error)
            self._view.warned(
                f"this site does not take part: {error}. It looks again every {CONSENT_EVERY_S:.0f} s what the aggregator offers; "
                "a change of site.toml takes effect when the agent is started again"
            )
        with self._heartbeat.held("CONTRACT"):
            await asyncio.sleep(CONSENT_EVERY_S)

    @property
    def may_train(self) -> bool:
        """Whether this is a time of day at which the site trains, by this machine's clock."""
        now = time.localtime()
        return self._config.agreed.may_train(60 * now.tm_hour + now.tm_min)

    async def window(self, asked: Callable[[], bool]) -> None:
        """Return when the site may train, or when nobody asks for it any more."""
        if self.may_train:
            return
        log.info("training_window_awaited")
        hours = ", ".join(map(str, self._config.agreed.windows))
        self._view.warned(
            f"outside this site's training windows ({hours}): training begins, or goes on, in the next one"
        )
        with self._heartbeat.held("WINDOW"):
            while not self.may_train:
                await asyncio.sleep(WINDOW_EVERY_S)
                if not asked():
                    return

    def is_withheld(self, update: Update) -> bool:
        """Whether a person has said that an update never leaves."""
        decided = releases.find(self._state.folder, update.digest)
        return decided is not None and not decided.leaves

    async def may_leave(self, update: Update, asked: Callable[[], bool]) -> bool:
        """Return whether an update may be sent: with manual egress when a person has said so. What they withheld never may.

        Until they have it waits, as long as its round is `asked` for.
        """
        decided = releases.find(self._state.folder, update.digest)
        if self._config.egress == "auto" and (decided is None or decided.leaves):
            return True
        told = {"round": update.facts.round, "digest": update.digest, "payload_bytes": len(update.payload)}
        if decided is None:
            decided = await self._person(update, told, asked)
        if decided is None:
            log.warning("update_not_released", **told)
            self._view.warned(f"round {update.facts.round} is over, and its update was not released: it stays here")
            return False
        log.info("update_released" if decided.leaves else "update_withheld", **told)
        if not decided.leaves:
            self._view.warned(
                f"round {update.facts.round}: the update {update.digest[:12]} stays here, as {decided.by} decided; the agent waits "
                "for the round to end"
            )
        return decided.leaves

    async def _person(self, update: Update, told: dict[str, Any], asked: Callable[[], bool]) -> Decision | None:
        """Ask for a person's decision and wait for it, both in the ledger; None if nobody asks for the update any more."""
        if not asked():
            return None
        await self._write(lambda: self._ledger.note(HELD, told))
        log.info("update_held", **told)
        self._view.held(update, self._state.folder)
        with self._heartbeat.held("RELEASE"):
            while (decision := releases.find(self._state.folder, update.digest)) is None:
                await asyncio.sleep(releases.POLL_S)
                if not asked():
                    return None
        event, facts = RELEASED if decision.leaves else WITHHELD, {"by": decision.by, "decided_at": decision.at}
        await self._write(lambda: self._ledger.note(event, {**told, **facts}))
        return decision

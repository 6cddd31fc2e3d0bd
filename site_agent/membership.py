"""Being a member of a federation: what is looked at first, Join, consent to the contract, and the trainer made for it.

Join is repeated by a running agent too: the aggregator may come back with another contract, or with a store that knows nothing of
this site. What was agreed to goes on as it was; what was not waits for a person, as at the start.
"""

import asyncio
import random
import time

import structlog

from shared.errors import ContractMismatch, InputError, MedDualLoRAError, NotFound
from site_agent import starting
from site_agent.calls import retry_delay_s
from site_agent.certificate import OwnCertificate
from site_agent.client import FederationClient, Joined
from site_agent.config import SiteConfig
from site_agent.consent import ConsentWithheld
from site_agent.permission import Permission
from site_agent.privacy import budget
from site_agent.starting import FirstLook
from site_agent.state import State
from site_agent.training.parallel import Group
from site_agent.training.site import SiteTrainer
from site_agent.view import View, leaves, stays

log = structlog.get_logger()
CALM_S = 3600.0
"""After so long without joining again, pauses begin short again."""


class Membership:
    """One agent's, from its first Join on."""

    def __init__(
        self,
        config: SiteConfig,
        client: FederationClient,
        state: State,
        permission: Permission,
        certificate: OwnCertificate,
        view: View,
        group: Group,
    ) -> None:
        self._config, self._client, self._state, self._permission = config, client, state, permission
        self._certificate, self._view, self._group = certificate, view, group
        self._first: FirstLook | None = None
        self._made: tuple[Joined, SiteTrainer] | None = None
        self._count, self._since, self._last = 0, 0.0, 0.0
        self._rng = random.Random(state.agent_id)

    async def join(self) -> Joined:
        """Look at what lies here, join, and return once the site consents to the contract."""
        if self._first is None:
            self._certificate.check()
            self._first = await asyncio.to_thread(starting.first_look, self._config)
        first = self._first
        joined = await self._permission.agree(lambda: self._ask(first), first.training_patients)
        budget.check_ready(joined.contract)
        if self._made is None or self._made[0].contract != joined.contract:
            structlog.contextvars.bind_contextvars(site=joined.site, federation=joined.contract.federation)
            log.info(
                "joined",
                address=self._config.aggregator,
                contract=joined.contract.sha256,
                rounds=joined.contract.policy.rounds,
                training_patients=joined.training_patients,
                leaves=leaves(joined.contract),
                never_leaves=stays(joined.contract),
            )
            self._view.joined(joined, self._config)
        return joined

    async def _ask(self, first: FirstLook) -> Joined:
        """Join. What an agent at its start has to blame its own settings for is, later, the aggregator's change."""
        try:
            return await starting.join(self._client, self._state, self._config, first, self._view)
        except (ContractMismatch, NotFound) as error:
            if self._made is None:
                raise
            raise ConsentWithheld(str(error)) from error

    async def trainer(self, joined: Joined) -> SiteTrainer:
        """Return model and data for a contract: those there are, unless it is another one than before."""
        if self._made is not None and self._made[0].contract == joined.contract:
            return self._made[1]
        if self._first is None:
            raise RuntimeError("a trainer is made after Join")
        if self._made is not None and self._group.size > 1:
            raise InputError("the accepted contract takes effect with all of this site's processes: start them again")
        made = await asyncio.to_thread(starting.trainer, self._config, joined, self._first.cohort, self._group)
        self._made = joined, made
        return made

    async def pause(self, why: MedDualLoRAError) -> None:
        """Say why this agent joins again, and wait, longer every time: an aggregator of two minds is not flooded."""
        now = time.monotonic()
        if not self._count or now - self._last > CALM_S:
            self._count, self._since = 0, now
        delay = retry_delay_s(self._count, now - self._since, self._rng)
        self._count, self._last = self._count + 1, now
        log.warning("joining_again", reason=str(why), attempt=self._count, retry_in_s=round(delay, 2))
        self._view.warned(f"the aggregator is not as it was: {why}. This agent joins again and compares the contract")
        await asyncio.sleep(delay)

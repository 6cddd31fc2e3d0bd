"""One agent's privacy budget: what stands between a round that is asked for and its training, where the contract has noise.

The epsilon of the whole round is debited, durably, before training begins. A round that would pass the budget is not trained: the
agent says so and stays, as it does where its site does not consent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TypeVar

import structlog

from shared.adapter import Adapter
from shared.contract import Contract
from shared.journal import Chain
from site_agent.consent import ConsentWithheld
from site_agent.ledger import DEBITED, Ledger, UpdateName
from site_agent.privacy import accountant, debits, sampling
from site_agent.privacy.debits import Asked, Debits, OverBudget, Plan
from site_agent.privacy.stream import Stream
from site_agent.training.site import SiteTrainer

log = structlog.get_logger()
T = TypeVar("T")


class Budget:
    """`write` writes to the state folder, however long its disk is full: one write at a time. `warn` takes a sentence for a
    person."""

    def __init__(
        self,
        state: Path,
        ledger: Ledger,
        write: Callable[[Callable[[], object]], Awaitable[object]],
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._state, self._debits, self._ledger, self._write, self._warn = state, Debits(state), ledger, write, warn
        self._planned: Plan | None = None
        self._told = False

    async def plan(self, contract: Contract, trainer: SiteTrainer, round_number: int, received: Adapter) -> None:
        """Look whether this round may be trained, and what it takes. Raises ConsentWithheld naming the numbers if it may not."""
        self._planned = None
        if contract.recipe.dp_noise:
            await self._tell_what_is_in_no_budget()
            self._planned = await asyncio.to_thread(self._plan, contract, trainer, round_number, received)

    async def _tell_what_is_in_no_budget(self) -> None:
        if not self._told:
            chain = await asyncio.to_thread(debits.read, self._state, missing_ok=True)
            if count := without_noise(chain, self._ledger.updates):
                log.warning("updates_left_without_noise", count=count)
                self._warn(in_no_budget(count))
            self._told = True

    def _plan(self, contract: Contract, trainer: SiteTrainer, round_number: int, received: Adapter) -> Plan:
        asked = asked_for(contract, trainer, round_number, received)
        try:
            return self._debits.plan(asked, self._ledger.debited)
        except OverBudget as over:
            raise ConsentWithheld(
                f"epsilon: the contract allows {asked.budget:g} at delta {asked.delta:g} for a patient of this site, "
                f"{over.before.pld:.4g} is spent (by RDP {over.before.rdp:.4g}), and with round {round_number} it would be "
                f"{over.after.pld:.4g} (by RDP {over.after.rdp:.4g}). What is spent does not come back; a contract with a "
                "larger dp_epsilon is for people to agree on"
            ) from over

    async def pay(self) -> Stream | None:
        """Make the debit of the planned round durable, in both journals, unless it is; return what its noise is drawn from.

        None without differential privacy, and where no round is planned: training refuses then.
        """
        plan, self._planned = self._planned, None
        if plan is None:
            return None
        head: list[str] = []
        await self._write(lambda: head.append(self._debits.enter(plan)))
        if head[0] not in self._ledger.debited:
            told = {"round": plan.asked.round, "digest": head[0]}
            await self._write(lambda: self._ledger.note(DEBITED, told))
            self._ledger.debited.add(head[0])
        log.info(
            "privacy_already_paid" if plan.paid else "privacy_debited",
            round=plan.asked.round,
            epsilon=round(plan.after.pld, 4),
            epsilon_rdp=round(plan.after.rdp, 4),
            delta=plan.asked.delta,
            budget=plan.asked.budget,
        )
        return plan.stream

    async def forget(self, round_number: int) -> None:
        """Destroy the key of a finished round, before anything made with it leaves."""
        await self._write(lambda: self._debits.forget(round_number))


def check_ready(contract: Contract) -> None:
    """Raise InputError if a contract asks for differential privacy and the accountant is not installed."""
    if contract.recipe.dp_noise:
        accountant.installed()


def check_offer(contract: Contract, patients: int) -> None:
    """Raise ConsentWithheld for differential privacy in name alone: an epsilon that protects nothing, or a delta at which one of a
    site's patients may be published as they are."""
    recipe = contract.recipe
    if not recipe.dp_noise:
        return
    if recipe.dp_epsilon > accountant.HOPELESS:
        raise ConsentWithheld(
            f"epsilon: the contract allows {recipe.dp_epsilon:g}, and a site agrees to {accountant.HOPELESS:g} at most: above, "
            "nothing is protected"
        )
    if recipe.dp_delta * patients >= 1:
        raise ConsentWithheld(
            f"dp_delta: the contract says {recipe.dp_delta:g}, which must be below 1 / {patients}, one of this site's "
            "patients: else publishing one of them whole would be allowed"
        )


def without_noise(paid: Chain, left: Collection[UpdateName]) -> int:
    """Return how many updates left under contracts that no debit names."""
    contracts = {entry.facts["contract"] for entry in paid.entries}
    return sum(contract not in contracts for contract, _ in left)


def in_no_budget(count: int) -> str:
    """Say what a journal's epsilon is not about."""
    return f"{count} update(s) left without noise under other contracts: epsilon is of the noisy ones alone"


def asked_for(contract: Contract, trainer: SiteTrainer, round_number: int, received: Adapter) -> Asked:
    """Return a round as its debit names it. Raises as `check_offer`."""
    recipe, patients = contract.recipe, trainer.training_patients
    check_offer(contract, patients)
    return Asked(
        federation=contract.federation,
        contract=contract.sha256,
        round=round_number,
        received=received.digest,
        made_from=trainer.made_from(),
        patients=patients,
        release=sampling.release(patients, recipe),
        clip=recipe.dp_clip,
        delta=recipe.dp_delta,
        budget=recipe.dp_epsilon,
    )

"""One agent's privacy budget: what stands between a round that is asked for and its training, where the contract has noise.

The epsilon of the whole round is debited, durably, before training begins. A round that would pass the budget is not trained: the
agent says so and stays, as it does where its site does not consent.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog

from shared.adapter import Adapter
from shared.contract import Contract
from site_agent.consent import ConsentWithheld
from site_agent.ledger import DEBITED, Ledger
from site_agent.privacy import accountant, sampling
from site_agent.privacy.debits import Asked, Debits, OverBudget, Plan
from site_agent.privacy.stream import Stream
from site_agent.training.site import SiteTrainer

log = structlog.get_logger()
T = TypeVar("T")


class Budget:
    """`write` writes to the state folder, however long its disk is full: one write at a time."""

    def __init__(self, state: Path, ledger: Ledger, write: Callable[[Callable[[], object]], Awaitable[object]]) -> None:
        self._debits, self._ledger, self._write = Debits(state), ledger, write
        self._planned: Plan | None = None

    async def plan(self, contract: Contract, trainer: SiteTrainer, round_number: int, received: Adapter) -> None:
        """Look whether this round may be trained, and what it takes. Raises ConsentWithheld naming the numbers if it may not."""
        self._planned = None
        if contract.recipe.dp_noise:
            self._planned = await asyncio.to_thread(self._plan, contract, trainer, round_number, received)

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

    def forget(self, round_number: int) -> None:
        """Destroy the key of a finished round, before anything made with it leaves."""
        self._debits.forget(round_number)


def check_ready(contract: Contract) -> None:
    """Raise InputError if a contract asks for differential privacy and the accountant is not installed."""
    if contract.recipe.dp_noise:
        accountant.installed()


def asked_for(contract: Contract, trainer: SiteTrainer, round_number: int, received: Adapter) -> Asked:
    """Return a round as its debit names it.

    Raises ConsentWithheld for a delta at which one patient of so many may be published as they are.
    """
    recipe, patients = contract.recipe, trainer.training_patients
    if recipe.dp_delta * patients >= 1:
        raise ConsentWithheld(
            f"dp_delta: the contract says {recipe.dp_delta:g}, which must be below 1 / {patients}, one of this site's "
            "patients: else publishing one of them whole would be allowed"
        )
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

"""Taking a site in: what its agent claims, what of that must agree with the contract, and what is written down of it."""

from dataclasses import dataclass

import sqlalchemy as sa

from aggregator.identity import Caller
from aggregator.rounds import SiteState
from aggregator.store import agents, audit, federations
from shared.contract import Contract
from shared.errors import ContractMismatch

MAX_PATIENTS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinClaim:
    """What an agent says about itself when it joins."""

    federation: str
    protocol_version: str
    agent_id: str
    software_version: str
    base_model_sha256: str
    training_patients: int
    codecs: tuple[str, ...]
    recipes: tuple[str, ...]


def check(contract: Contract, site: SiteState, claim: JoinClaim) -> None:
    """Raise ContractMismatch naming the first thing in which the agent and the federation differ, with both values."""
    base = contract.manifest.metadata.base_model_sha256
    if claim.base_model_sha256 != base:
        raise ContractMismatch(
            f"base model: federation '{contract.federation}' adapts {base[:12]}, site '{site.name}' has "
            f"{claim.base_model_sha256[:12] or 'none'}; give the agent the weights the federation was made with"
        )
    check_patients(site, claim.training_patients)
    if contract.recipe.name not in claim.recipes:
        raise ContractMismatch(
            f"recipe '{contract.recipe.name}' is not installed at site '{site.name}' "
            f"(it has: {', '.join(claim.recipes)[:80] or 'none'}); upgrade the agent"
        )
    for codec in (contract.recipe.codec, contract.recipe.broadcast_codec):
        if codec in claim.codecs:
            continue
        raise ContractMismatch(
            f"codec '{codec}' is not known at site '{site.name}' "
            f"(it has: {', '.join(claim.codecs)[:80] or 'none'}); upgrade the agent"
        )


def check_patients(site: SiteState, claimed: int) -> None:
    """Raise ContractMismatch unless the number of training patients is the one fixed for the site."""
    if not 1 <= claimed <= MAX_PATIENTS:
        raise ContractMismatch(
            f"site '{site.name}' claims {claimed} training patients, allowed are 1 to {MAX_PATIENTS}"
        )
    if site.training_patients not in (None, claimed):
        raise ContractMismatch(
            f"site '{site.name}' claims {claimed} training patients, {site.training_patients} were fixed for it; "
            "prepare the cohort the federation was told of, or ask the coordinator"
        )


def write(
    connection: sa.Connection,
    federation: str,
    caller: Caller,
    claim: JoinClaim,
    now: float,
    identity_s: float,
    deadline_s: float,
) -> None:
    """Note that a site has joined, and start the first round's clock. Raises IdentityInUse."""
    values: dict[str, str | float | bool] = {
        "authenticated": caller.authenticated,
        "software_version": claim.software_version,
        "protocol_version": claim.protocol_version,
        "expires_at": caller.expires_at,
        "serial": caller.serial,
    }
    new = agents.last(connection, federation, caller.site) != claim.agent_id
    agents.heard(connection, federation, caller.site, claim.agent_id, now, identity_s, values)
    federations.join(connection, federation, caller.site, claim.training_patients, now + deadline_s)
    if not new:
        return  # the same agent once more: it was started again, or is of two minds
    audit.append(
        connection,
        federation,
        now,
        "site_joined",
        site=caller.site,
        authenticated=caller.authenticated,
        agent=claim.agent_id[:8],
        software=claim.software_version[:32],
        patients=claim.training_patients,
    )

"""Making a federation: what the coordinator gives, checked, and written to a new store."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from aggregator import rounds
from aggregator.joining import MAX_PATIENTS
from aggregator.store import engine, federations
from shared import recipe as recipes
from shared.adapter import Adapter
from shared.contract import Contract, RoundPolicy
from shared.errors import InputError
from shared.names import check_name
from shared.recipe import RESIDUAL, factor_of, is_residual

MAX_ROUNDS = 100_000
"""Round numbers travel as 32 bits and every round leaves rows in the store; no federation comes near this."""
MAX_MOMENTS = 900_000_000
"""SQLite's and PostgreSQL's limits are 10^9 and 2^30 bytes, names and shapes included."""
MAX_SEED = 2**53
"""Seeds stay below this: the largest whole number that every reader of JSON keeps exactly."""


def random_seed() -> int:
    """Return a seed that no site can guess, so that none knows in which rounds it will be."""
    return secrets.randbelow(MAX_SEED)


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationPlan:
    """What a federation is made from. `sites` maps names to training patients, None where the first Join fixes them."""

    name: str
    adapter: Path
    recipe: str = "med-duallora"
    parameters: Mapping[str, str] = field(default_factory=dict)
    sites: Mapping[str, int | None]
    rounds: int = 8
    invited: int | None = None
    """Sites asked to take part in a round; None means every site. Fewer than there are: each round draws them anew."""
    sampling_seed: int = field(default_factory=random_seed)
    """What the draws are made from."""
    quorum: int | None = None
    """None means every site that is invited."""
    deadline_s: float = 3600.0
    grace_s: float = 300.0


def parse_sites(texts: Sequence[str], requested: Sequence[str] = ()) -> dict[str, int | None]:
    """Read "siemens" or "siemens=218", each naming a site and perhaps its number of training patients.

    `requested`: names of sites that sent a request for a certificate; they need not be named again.
    """
    sites: dict[str, int | None] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if check_name(name) in sites:
            raise InputError(f"site '{name}' is named twice")
        if equals and not (number.isdecimal() and 0 < int(number) <= MAX_PATIENTS):
            raise InputError(f"site '{name}': training patients must be 1 to {MAX_PATIENTS}, got '{number}'")
        sites[name] = int(number) if equals else None
    if twice := sorted({name for name in requested if requested.count(name) > 1}):
        raise InputError(
            f"there are two requests of site '{twice[0]}'; give the one whose fingerprint the site reads out"
        )
    sites |= {name: None for name in requested if name not in sites}
    if not sites:
        raise InputError(
            "a federation needs sites; name each one: --site siemens --site philips=96, or --request ge.csr"
        )
    return sites


def parse_parameters(texts: Sequence[str]) -> dict[str, str]:
    """Read "key=value" pairs."""
    parameters = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set takes key=value, got '{text}'")
        parameters[key.replace("-", "_")] = value
    return parameters


def make_contract(plan: FederationPlan) -> tuple[Contract, Adapter]:
    """Return what the sites will agree to, and version 0. Raises InputError naming what is wrong."""
    adapter = Adapter.read(plan.adapter)
    if adapter.version != 0 or adapter.parent_digest:
        raise InputError(
            f"adapter file {plan.adapter} is version {adapter.version}; a federation starts from version 0: "
            "make one with site-agent init-adapter"
        )
    if plan.rounds > MAX_ROUNDS:
        raise InputError(f"rounds must be at most {MAX_ROUNDS}, got {plan.rounds}")
    invited = _invited(plan)
    quorum = invited if plan.quorum is None else plan.quorum
    if quorum < 3 and plan.quorum is None:
        drawn = "" if invited == len(plan.sites) else f", {invited} of them in a round"
        raise InputError(
            f"{len(plan.sites)} sites{drawn}: {rounds.quorum_warning(quorum)}. "
            f"If that is acceptable, say so with --quorum {quorum}"
        )
    policy = RoundPolicy(
        rounds=plan.rounds,
        invited=invited,
        quorum=quorum,
        deadline_s=plan.deadline_s,
        grace_s=plan.grace_s,
    )
    contract = Contract(
        federation=check_name(plan.name),
        adapter_digest=adapter.digest,
        manifest=adapter.manifest,
        recipe=recipes.make(plan.recipe, plan.parameters),
        policy=policy,
    )
    _check_travels(contract)
    _check_factors(contract)
    _check_residual(contract)
    _check_moments(contract)
    return contract, adapter


def _check_travels(contract: Contract) -> None:
    """Raise InputError if there is a round in which sites would have nothing to send."""
    recipe, manifest = contract.recipe, contract.manifest
    for number in range(1, len(recipe.method.trained) + 1):
        if not recipe.upload_layout(manifest, number, contract.policy.invited).tensors:
            raise InputError(
                f"recipe '{recipe.name}' shares nothing of this adapter in round {number} (rank {manifest.metadata.rank}, head "
                f"policy {manifest.metadata.head_policy}); use another recipe, or make an adapter with another --rank or "
                "--head-policy: site-agent init-adapter --help"
            )


def _check_factors(contract: Contract) -> None:
    """Raise InputError unless factors come in pairs of matrices that can be multiplied, where the rule does so."""
    shapes = {spec.name: spec.shape for spec in contract.manifest.layout.tensors}
    for name in (name for name in shapes if factor_of(name) and contract.recipe.rule != "factors"):
        a, b = (shapes.get(name.replace(".lora_B.", ".lora_A.").replace(".lora_A.", f".lora_{f}."), ()) for f in "AB")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise InputError(
                f"tensor '{name}': recipe '{contract.recipe.name}' aggregates products B A, and the adapter has A {list(a)} and B "
                f"{list(b)}; make it with site-agent init-adapter"
            )


def _check_residual(contract: Contract) -> None:
    """Raise InputError unless each module has a residual of the rank that is said if the rule keeps one, and none has otherwise."""
    exact, rank = contract.recipe.method.rule == "exact", contract.manifest.metadata.residual_rank
    shapes = {spec.name: spec.shape for spec in contract.manifest.layout.tensors}
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if exact and rank and (factor := factor_of(name)):
            expected[name.replace(".lora_", RESIDUAL)] = (rank, shape[1]) if factor == "A" else (shape[0], rank)
    found = {name: shape for name, shape in shapes.items() if is_residual(name)}
    for name in sorted(expected.keys() ^ found.keys()):
        raise InputError(
            f"tensor '{name}' is {'missing from' if name in expected else 'not expected in'} the adapter: recipe "
            f"'{contract.recipe.name}' keeps {'a' if exact else 'no'} residual beside the factors of a layer; make the adapter "
            f"with site-agent init-adapter --residual-rank {rank if exact else 0}"
        )
    for name in sorted(expected):
        if expected[name] != found[name]:
            raise InputError(f"tensor '{name}' has shape {list(found[name])}, expected {list(expected[name])}")


def _check_moments(contract: Contract) -> None:
    """Raise InputError if what the server optimiser keeps is more than a database takes in one value."""
    recipe, count = contract.recipe, contract.manifest.layout.parameters
    size = count * {"sgd": 0, "momentum": 8}.get(recipe.server_optimiser, 16)
    if size > MAX_MOMENTS:
        raise InputError(
            f"server_optimiser {recipe.server_optimiser} keeps {size / 1e6:.0f} MB of moments for {count} parameters, the store "
            f"takes {MAX_MOMENTS / 1e6:.0f}; use sgd, or train fewer parameters"
        )


def _invited(plan: FederationPlan) -> int:
    """Return how many sites a round asks. Raises InputError if there are not so many, or for an unusable seed."""
    if not 0 <= plan.sampling_seed < MAX_SEED:
        raise InputError(f"sampling seed must be 0 to {MAX_SEED - 1}, got {plan.sampling_seed}")
    if plan.invited is None:
        return len(plan.sites)
    if not 1 <= plan.invited <= len(plan.sites):
        raise InputError(
            f"invited must be 1 to {len(plan.sites)}, the number of sites, got {plan.invited}; "
            "leave it out to invite every site to every round"
        )
    return plan.invited


def create(store: str, plan: FederationPlan, now: float) -> Contract:
    """Write a new store with this federation, version 0 and round 1 open. Raises InputError."""
    contract, adapter = make_contract(plan)

    def fill(connection: sa.Connection) -> None:
        federations.create(connection, contract, adapter, plan.sites, now, plan.sampling_seed)

    engine.create(store, fill).close()
    return contract

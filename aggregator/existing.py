"""The federation that a store holds already, held against one that somebody asks to make."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from aggregator import rounds, setup
from aggregator.errors import NoStore
from aggregator.rounds import FederationState
from aggregator.setup import FederationPlan
from aggregator.store import engine, federations, schema
from aggregator.store import rounds as round_rows
from shared.contract import Contract

DIGITS = 12
"""Of a digest, shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """A federation in a store. `place`: where, without a password. `made_at`: seconds since 1970. `closed`: how many rounds are."""

    place: str
    made_at: float
    closed: int
    contract: Contract
    state: FederationState


def read(store: str) -> Existing | None:
    """Return the federation in a store; None if nobody has made one there. Raises InputError if it is no store of ours or cannot
    be read, StoreUnavailable while its database is away."""
    try:
        opened = engine.open_store(store)
    except NoStore:
        return None
    try:
        with engine.damage_named(opened):
            return opened.read(_read, opened.place)
    except NoStore:
        return None
    finally:
        opened.close()


def _read(connection: sa.Connection, place: str) -> Existing:
    name, table = federations.only_name(connection), schema.federations
    return Existing(
        place=place,
        made_at=connection.execute(sa.select(table.c.created_at).where(table.c.name == name)).scalar_one(),
        closed=round_rows.count_closed(connection, name),
        contract=federations.contract(connection, name),
        state=federations.state(connection, name),
    )


def differences(held: Existing, plan: FederationPlan, sampling_seed: int | None = None) -> list[str]:
    """Return each setting in which a plan asks for something else, with both values; none if it asks for what is there.

    `sampling_seed`: the one that was asked for; None if any will do. Raises InputError if nothing could be made of the plan.
    """
    if plan.name != held.contract.federation:
        return [_differs("federation", held.contract.federation, plan.name)]
    if of_sites := list(_of_sites(held.state, plan)):
        return of_sites
    contract, _ = setup.make_contract(plan)
    there, asked = _settings(held.contract), _settings(contract)
    if rounds.is_sampled(held.state) and sampling_seed is not None:
        there["sampling_seed"], asked["sampling_seed"] = held.state.sampling_seed, sampling_seed
    if there["recipe"] != asked["recipe"]:  # another one has other parameters, too
        return [_differs("recipe", there["recipe"], asked["recipe"])]
    return [_differs(name, there[name], asked[name]) for name in asked if there[name] != asked[name]]


def _of_sites(state: FederationState, plan: FederationPlan) -> Iterator[str]:
    """A number of patients that nobody asks for may be any: a site fixes it when it joins."""
    for name in sorted(state.sites.keys() | plan.sites.keys()):
        if (name in state.sites) != (name in plan.sites):
            yield f"site {name}: {'there, not asked for' if name in state.sites else 'not there, asked for'}"
            continue
        there, asked = state.sites[name].training_patients, plan.sites[name]
        if asked is not None and asked != there:
            yield _differs(f"training patients of {name}", "not fixed" if there is None else there, asked)


def _settings(contract: Contract) -> dict[str, Any]:
    recipe = asdict(contract.recipe)
    return {
        "adapter": contract.adapter_digest[:DIGITS],
        "recipe": recipe.pop("name"),
        **recipe,
        **asdict(contract.policy),
    }


def _differs(name: str, there: Any, asked: Any) -> str:
    return f"{name}: {there} there, {asked} asked for"

"""Every field of the contract, changed at a real aggregator after a site agreed: the site's own Join refuses it by name."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from aggregator.store import engine, schema
from aggregator.store.engine import Store
from shared.contract import Contract
from shared.errors import ContractMismatch, MedDualLoRAError
from site_agent import consent
from site_agent.client import FederationClient
from site_agent.consent import ConsentWithheld
from site_agent.state import State
from tests.support import adapters, other_contracts, serving
from tests.support.ledgers import throwaway

pytestmark = pytest.mark.integration
PAIRS = list(other_contracts.pairs())
SITE, AGENT = "ge", "5" * 32


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One store for each name that a federation has here."""
    return {
        name: serving.make_store(tmp_path_factory.mktemp(name), (SITE, "philips", "siemens"), name=name)
        for name in {offered.federation for _, _, offered in PAIRS}
    }


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    opened = State(tmp_path / "state")
    yield opened
    opened.close()


def offer(where: str, contract: Contract) -> None:
    """Make a store's aggregator offer this contract, whatever `init` would have said to it."""
    table = schema.federations
    parameters = contract.recipe.to_jsonable()
    values: dict[str, Any] = {
        "adapter_digest": contract.adapter_digest,
        "manifest": contract.manifest.to_bytes(),
        "recipe": parameters.pop("name"),
        "recipe_parameters": json.dumps(parameters),
        "policy": json.dumps(asdict(contract.policy)),
    }
    opened: Store = engine.open_store(where)
    opened.write(
        lambda connection: connection.execute(
            table.update().where(table.c.name == contract.federation).values(**values)
        )
    )
    opened.close()


async def refusal(where: str, state: State) -> MedDualLoRAError:
    """Join as an agent does, and return what it does not take part for."""
    async with serving.serve(where) as running:
        client = FederationClient(running.address, None, AGENT, throwaway(), plain_site=SITE, give_up_after_s=30.0)
        try:
            joined = await client.join(
                federation="", base_model_sha256=adapters.BASE_MODEL, training_patients=9, software_version="1.0"
            )
            with pytest.raises(ConsentWithheld) as refused:
                state.bind(joined.contract)
            return refused.value
        except ContractMismatch as error:
            return error
        finally:
            await client.close()


@pytest.mark.parametrize(("name", "agreed", "offered"), PAIRS, ids=[name for name, _, _ in PAIRS])
async def test_a_field_that_changed_at_the_aggregator_is_refused_by_name(
    stores: dict[str, str], state: State, name: str, agreed: Contract, offered: Contract
) -> None:
    state.bind(agreed)
    offer(stores[offered.federation], offered)
    said = str(await refusal(stores[offered.federation], state))
    if name == "adapter base_model_sha256":  # the aggregator says so before it tells its contract
        assert said.startswith("base model: federation 'heart' adapts cdcdcdcdcdcd, site 'ge' has abababababab")
        return
    assert consent.differences(agreed, offered) == [
        said.removeprefix("the contract has changed. ").partition(". If")[0]
    ]
    assert said.startswith(f"the contract has changed. {name}: agreed ")


def test_no_part_of_a_contract_is_left_out() -> None:
    other_contracts.check_complete()

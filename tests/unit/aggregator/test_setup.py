"""What a coordinator gives is checked before anything is written."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator import rounds, setup
from aggregator.setup import FederationPlan
from aggregator.store import engine, federations
from shared.adapter import Adapter
from shared.errors import InputError, InvalidAdapter
from shared.layout import Layout
from shared.recipe import INSTALLED
from tests.support import adapters


@pytest.fixture
def plan(tmp_path: Path) -> FederationPlan:
    adapters.adapter().write(tmp_path / "v0.safetensors")
    return FederationPlan(
        name="demo", adapter=tmp_path / "v0.safetensors", sites={"ge": None, "philips": 40, "siemens": None}
    )


def test_a_plan_becomes_a_contract(plan: FederationPlan) -> None:
    contract, adapter = setup.make_contract(replace(plan, parameters={"local_epochs": "3"}, rounds=5))
    assert contract.adapter_digest == adapter.digest == adapters.adapter().digest
    assert contract.recipe.local_epochs == 3
    assert (contract.policy.rounds, contract.policy.invited, contract.policy.quorum) == (5, 3, 3)


def test_a_quorum_below_three_must_be_said_and_warns(plan: FederationPlan) -> None:
    two = replace(plan, sites={"ge": None, "siemens": None})
    with pytest.raises(InputError, match=r"subtract its own update .* say so with --quorum 2"):
        setup.make_contract(two)
    setup.make_contract(replace(two, quorum=2))
    assert "subtract" in rounds.quorum_warning(2)
    assert "alone" in rounds.quorum_warning(1)
    assert rounds.quorum_warning(3) == ""


def test_with_sampling_a_quorum_is_of_those_invited(plan: FederationPlan) -> None:
    many = replace(plan, sites=dict.fromkeys(("a", "b", "c", "d", "e"), 10))
    policy = setup.make_contract(replace(many, invited=4))[0].policy
    assert (policy.invited, policy.quorum) == (4, 4)
    policy = setup.make_contract(replace(many, invited=4, quorum=3))[0].policy
    assert (policy.invited, policy.quorum) == (4, 3)


def test_two_invited_sites_need_an_explicit_quorum_however_many_there_are(plan: FederationPlan) -> None:
    many = replace(plan, sites=dict.fromkeys(("a", "b", "c", "d", "e"), 10), invited=2)
    with pytest.raises(
        InputError, match=r"5 sites, 2 of them in a round: with a quorum of 2 each .* say so with --quorum 2"
    ):
        setup.make_contract(many)
    assert setup.make_contract(replace(many, quorum=2))[0].policy.quorum == 2
    with pytest.raises(
        InputError, match=r"3 sites, 1 of them in a round: with a quorum of 1 .* say so with --quorum 1"
    ):
        setup.make_contract(replace(plan, invited=1))


def test_everybody_may_be_invited_by_number(plan: FederationPlan) -> None:
    assert setup.make_contract(replace(plan, invited=3))[0] == setup.make_contract(plan)[0]


def test_the_seed_is_stored_and_a_random_one_is_another_every_time(plan: FederationPlan, tmp_path: Path) -> None:
    setup.create(str(tmp_path / "fed.db"), replace(plan, invited=2, quorum=2, sampling_seed=42), 0.0)
    store = engine.open_store(str(tmp_path / "fed.db"))
    state = store.read(federations.state, "demo")
    store.close()
    assert (state.sampling_seed, state.round.invited) == (42, rounds.invite(plan.sites, 2, 42, 1))
    assert len({setup.random_seed() for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"invited": 4}, r"invited must be 1 to 3, the number of sites, got 4; leave it out to invite every site"),
        ({"invited": 0}, r"invited must be 1 to 3, .* got 0"),
        ({"invited": 2, "quorum": 3}, r"quorum must be between 1 and invited \(2\), got 3"),
        ({"sampling_seed": -1}, r"sampling seed must be 0 to 9007199254740991, got -1"),
        ({"sampling_seed": 2**53}, r"sampling seed must be 0 to 9007199254740991, got 9007199254740992"),
        ({"adapter": Path("nowhere.safetensors")}, "cannot read adapter file nowhere.safetensors"),
        ({"name": "My Federation"}, "name 'My Federation' is not usable"),
        ({"recipe": "magic"}, "recipe 'magic' is not installed here"),
        ({"parameters": {"lr": "1"}}, "no parameter 'lr'"),
        ({"quorum": 4}, r"quorum must be between 1 and invited \(3\), got 4"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"deadline_s": 0.0}, "deadline must be positive"),
    ],
)
def test_what_is_wrong_is_named_with_its_value(plan: FederationPlan, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        setup.make_contract(replace(plan, **changes))


def test_a_later_version_is_no_start(plan: FederationPlan) -> None:
    adapter = adapters.adapter()
    adapter.successor(adapter.tensors, 3).write(plan.adapter)
    with pytest.raises(InputError, match=r"is version 3; a federation starts from version 0"):
        setup.make_contract(plan)


def test_a_file_that_is_no_adapter_is_refused(plan: FederationPlan) -> None:
    plan.adapter.write_bytes(b"not an adapter file at all")
    with pytest.raises(InvalidAdapter):
        setup.make_contract(plan)


def test_a_bad_plan_leaves_no_store(plan: FederationPlan, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        setup.create(str(tmp_path / "fed.db"), replace(plan, recipe="magic"), 0.0)
    assert not (tmp_path / "fed.db").exists()


KILLED = """
import os, sys
from pathlib import Path
from aggregator import setup

class Sites(dict):
    def items(self):  # asked for when the federation's row is written, and its sites' are to follow
        os._exit(9)

sites = Sites.fromkeys(("ge", "philips", "siemens"), 10)
setup.create(sys.argv[1], setup.FederationPlan(name="demo", adapter=Path(sys.argv[2]), sites=sites), 0.0)
"""


def test_an_init_that_was_killed_is_simply_run_again(plan: FederationPlan, tmp_path: Path) -> None:
    store = str(tmp_path / "fed.db")
    killed = subprocess.run([sys.executable, "-c", KILLED, store, plan.adapter], check=False, timeout=60)
    assert killed.returncode == 9
    assert Path(store).exists()
    with pytest.raises(InputError, match="make one with: aggregator init"):
        engine.open_store(store)
    setup.create(store, plan, 0.0)
    with pytest.raises(InputError, match="exists already"):
        setup.create(store, plan, 0.0)


def test_sites_are_read_with_and_without_patients() -> None:
    assert setup.parse_sites(["siemens=218", "ge"]) == {"siemens": 218, "ge": None}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "a federation needs sites"),
        (["ge", "ge=3"], "site 'ge' is named twice"),
        (["ge=many"], "training patients must be 1 to 1000000, got 'many'"),
        (["ge=0"], "got '0'"),
        (["ge="], "got ''"),
        (["GE"], "name 'GE' is not usable"),
        (["../x"], "not usable"),
    ],
)
def test_unusable_sites_are_named(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        setup.parse_sites(texts)


def test_parameters_take_dashes_and_need_an_equals_sign() -> None:
    assert setup.parse_parameters(["local-epochs=3", "lr_global=0.1"]) == {"local_epochs": "3", "lr_global": "0.1"}
    with pytest.raises(InputError, match="--set takes key=value, got 'fast'"):
        setup.parse_parameters(["fast"])


# what fits together


def planned(plan: FederationPlan, adapter: Adapter, recipe: str, **parameters: str) -> FederationPlan:
    adapter.write(plan.adapter)
    return replace(plan, recipe=recipe, parameters=parameters)


def without(adapter: Adapter, mark: str) -> Adapter:
    tensors = {name: array for name, array in adapter.tensors.items() if mark not in name}
    return replace(adapter, tensors=tensors, manifest=replace(adapter.manifest, layout=Layout.of(tensors)))


@pytest.mark.parametrize("recipe", INSTALLED)
def test_every_recipe_has_an_adapter_that_fits(plan: FederationPlan, recipe: str) -> None:
    adapter, parameters = adapters.fitting(recipe)
    contract, _ = setup.make_contract(planned(plan, adapter, recipe, **parameters))
    assert contract.recipe.name == recipe


@pytest.mark.parametrize(
    ("recipe", "adapter", "message"),
    [
        ("fedex-lora", adapters.adapter(), r"residual.*--residual-rank"),
        ("med-duallora", adapters.adapter(residual=2), r"residual.*--residual-rank 0"),
        (
            "fedex-lora",
            without(adapters.adapter(residual=2), "1.attn.q.lora_residual_B"),
            r"'base_model.model.encoder.blocks.1.attn.q.lora_residual_B.weight' is missing.*--residual-rank 2",
        ),
        ("flex-lora", without(adapters.adapter(), "1.attn.q.lora_B"), r"attn.q.lora_A.weight': .* B \[\]"),
    ],
)
def test_a_recipe_and_an_adapter_that_do_not_fit_are_refused(
    plan: FederationPlan, recipe: str, adapter: Adapter, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        setup.make_contract(planned(plan, adapter, recipe))


def test_a_federation_in_which_nothing_would_travel_is_refused(plan: FederationPlan) -> None:
    headless = replace(
        planned(plan, without(adapters.adapter(), "pred_head"), "head-only"), parameters={"rank_local": "0"}
    )
    with pytest.raises(InputError, match=r"head-only' shares nothing .* round 1"):
        setup.make_contract(headless)


def test_a_residual_that_the_metadata_do_not_know_is_refused(plan: FederationPlan) -> None:
    adapter = adapters.adapter(residual=2)
    metadata = replace(adapter.manifest.metadata, residual_rank=None)
    adapter = replace(adapter, manifest=replace(adapter.manifest, metadata=metadata))
    with pytest.raises(InputError, match=r"lora_residual_A.weight' is not expected .*--residual-rank 0"):
        setup.make_contract(planned(plan, adapter, "med-duallora"))
    metadata = replace(metadata, residual_rank=3)
    adapter = replace(adapter, manifest=replace(adapter.manifest, metadata=metadata))
    with pytest.raises(InputError, match=r"has shape \[2, 6\], expected \[3, 6\]"):
        setup.make_contract(planned(plan, adapter, "fedex-lora"))


def test_moments_that_no_database_takes_are_refused_before_the_first_round(
    plan: FederationPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = adapters.adapter().manifest.layout.parameters
    monkeypatch.setattr(setup, "MAX_MOMENTS", 8 * count)
    setup.make_contract(replace(plan, parameters={"server_optimiser": "momentum"}))
    with pytest.raises(InputError, match="server_optimiser adam keeps"):
        setup.make_contract(replace(plan, parameters={"server_optimiser": "adam"}))

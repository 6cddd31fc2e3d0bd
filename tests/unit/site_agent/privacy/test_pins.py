"""`[agreed] epsilon`: what a hospital lets a contract spend."""

from dataclasses import replace

import pytest

from shared.errors import InputError
from shared.recipe import Recipe
from site_agent.consent import ConsentWithheld, Pins
from site_agent.privacy import budget
from tests.support import methods, private_site, tiny_site


@pytest.fixture(scope="module")
def offered(tmp_path_factory):
    """Return a maker of contracts of a recipe."""
    backbone = tiny_site.write_backbone(tmp_path_factory.mktemp("backbone"))
    return lambda recipe: tiny_site.contract(backbone, recipe)[0]


def test_an_epsilon_up_to_the_pin_is_agreed_to(offered):
    Pins.parse({"epsilon": 4}).check(offered(private_site.RECIPE))
    Pins().check(offered(private_site.RECIPE))


def test_a_larger_one_is_refused_with_both_numbers(offered):
    with pytest.raises(
        ConsentWithheld, match=r"^epsilon: this site's site.toml says at most 3.5, the aggregator offers dp_epsilon 4$"
    ):
        Pins.parse({"epsilon": 3.5}).check(offered(private_site.RECIPE))


def test_a_contract_without_differential_privacy_is_refused_by_name(offered):
    with pytest.raises(
        ConsentWithheld, match=r"at most 8, the aggregator offers no differential privacy \(dp_noise 0\)"
    ):
        Pins.parse({"epsilon": 8.0}).check(offered(Recipe(rank_local=methods.RANK)))


@pytest.mark.parametrize("value", [0, -1.0, "8", True, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["epsilon", "delta"])
def test_a_pin_is_a_number_above_0(name, value):
    with pytest.raises(InputError, match=rf"\[agreed\] {name} must be a number above 0"):
        Pins.parse({name: value})


def test_a_delta_up_to_the_pin_is_agreed_to_and_a_larger_one_refused_by_name(offered):
    Pins.parse({"delta": 1e-5}).check(offered(private_site.RECIPE))
    with pytest.raises(
        ConsentWithheld,
        match=r"^delta: this site's site.toml says at most 1e-06, the aggregator offers dp_delta 1e-05$",
    ):
        Pins.parse({"delta": 1e-6}).check(offered(private_site.RECIPE))
    with pytest.raises(ConsentWithheld, match=r"^delta: .* no differential privacy"):
        Pins.parse({"delta": 1e-5}).check(offered(Recipe(rank_local=methods.RANK)))


def test_an_epsilon_that_protects_nothing_is_refused_whatever_is_pinned(offered):
    recipe = private_site.RECIPE
    budget.check_offer(offered(replace(recipe, dp_epsilon=50.0)), 9)
    with pytest.raises(ConsentWithheld, match=r"^epsilon: the contract allows 50\.1, and a site agrees to 50 at most"):
        budget.check_offer(offered(replace(recipe, dp_epsilon=50.1)), 9)
    budget.check_offer(offered(Recipe(rank_local=methods.RANK)), 9)


def test_a_delta_that_would_allow_to_publish_a_patient_is_refused(tmp_path):
    trainer, initial = private_site.make(tmp_path)
    asked = budget.asked_for(trainer.contract, trainer, 1, initial)
    assert (asked.patients, asked.delta, asked.budget) == (9, 1e-5, 4.0)
    loose = replace(trainer.contract, recipe=replace(trainer.recipe, dp_delta=0.2))
    with pytest.raises(ConsentWithheld, match=r"dp_delta: the contract says 0\.2, which must be below 1 / 9"):
        budget.asked_for(loose, trainer, 1, initial)

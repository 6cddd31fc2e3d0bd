"""Ditto's personal part: it begins as the global one, is drawn to it by lambda, and with lambda 0 is nobody's but the site's."""

from dataclasses import replace

import numpy as np
import pytest

from experiments import simulation
from shared.recipe import Recipe
from site_agent.models import adapter_tensors, lora
from site_agent.training import arms, local
from site_agent.training.local import Hooks
from site_agent.training.micro_batch import MicroBatch
from tests.support import tiny_site

ROUNDS = 3
DITTO = Recipe(
    name="ditto-lora",
    rank_local=2,
    augmentation="none",
    local_epochs=2,
    batch_size=4,
    lr_global=5e-3,
    lr_local=5e-3,
    ditto_lambda=0.0,
)
ALONE = replace(DITTO, name="med-duallora", rank_local=0, ditto_lambda=0.1)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny_site.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def site(backbone, tmp_path_factory):
    """Return a maker of trainers, with version 0; same name, same cases."""

    def make(recipe, name="ge", cases=12, **choices):
        contract, initial = tiny_site.contract(backbone, recipe, ROUNDS, **choices)
        folder = tmp_path_factory.mktemp("site")
        return tiny_site.trainer(folder, backbone, contract, name, cases), contract, initial

    return make


def global_name(private):
    return private.replace("local.", "base_model.model.", 1)


def federated(site, recipe, others):
    """Private tensors of `ge` after each round of a federation with these other sites."""
    trainer, contract, initial = site(recipe)
    trainers = {"ge": trainer} | {name: site(recipe, name, cases)[0] for name, cases in others.items()}
    return [one.private["ge"] for one in simulation.federate(contract, initial, trainers)]


@pytest.mark.parametrize(
    "others", [{}, {"canon": 18}, {"philips": 15, "siemens": 9}], ids=lambda o: "+".join(o) or "none"
)
def test_with_lambda_zero_the_personal_part_is_that_of_a_site_that_trains_by_itself(site, others):
    """Bit for bit, whoever else takes part: rounds in a row from the same start, without a server in between."""
    found = federated(site, DITTO, others)
    trainer, _, current = site(ALONE, head_policy="global")
    for number, private in enumerate(found, start=1):
        trained = trainer.train(number, current, {}, Hooks())
        current = current.successor({**current.tensors, **trained.global_tensors}, number)
        assert {global_name(name) for name in private} == current.tensors.keys()
        for name, value in private.items():
            assert value.tobytes() == current.tensors[global_name(name)].tobytes(), (number, name)


def test_with_a_lambda_it_depends_on_the_others(site):
    """So the test above can fail."""
    alone, beside = (federated(site, replace(DITTO, ditto_lambda=0.1), others)[-1] for others in ({}, {"canon": 18}))
    assert any(not np.array_equal(value, beside[name]) for name, value in alone.items())


def distance(private, version):
    return max(float(np.abs(value - version[global_name(name)]).max()) for name, value in private.items())


def test_the_larger_lambda_the_nearer_it_stays_to_the_global_part_that_was_received(site):
    found = []
    for value in (0.0, 1.0, 1e4):
        trainer, _, initial = site(replace(DITTO, ditto_lambda=value))
        moved = {
            n: (v + np.float32(0.05) * (i + 1)) if n.endswith("B.weight") else v
            for i, (n, v) in enumerate(sorted(initial.tensors.items()))
        }
        received = initial.successor(moved, 1)
        trained = trainer.train(1, received, trainer.initial_local(), Hooks())
        found.append(distance(trained.local_tensors, moved))
    free, drawn, held = found
    assert held < drawn < free
    assert held < 2 * DITTO.lr_head  # a step or two of AdamW, which pulls it back as soon as it has left
    assert free > 3 * held


def test_it_begins_as_the_global_part_with_its_head(site):
    trainer, _, initial = site(replace(DITTO, lr_global=0.0, lr_local=0.0, lr_head=0.0))
    rng = np.random.default_rng(1)
    received = initial.successor(
        {n: rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in initial.tensors.items()}, 1
    )
    trained = trainer.train(1, received, trainer.initial_local(), Hooks())
    assert distance(trained.local_tensors, received.tensors) == 0.0
    assert len(trained.local_tensors) == len(received.tensors)


def test_it_goes_on_from_what_it_was_and_is_not_begun_again(site):
    trainer, _, initial = site(replace(DITTO, lr_global=0.0, lr_local=0.0, lr_head=0.0))
    rng = np.random.default_rng(2)
    private = {n: rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in trainer.initial_local().items()}
    trained = trainer.train(2, initial, private, Hooks())
    assert all(np.array_equal(value, private[name]) for name, value in trained.local_tensors.items())


def test_the_site_is_served_by_its_personal_part_alone(site):
    """Whatever the global part says, the scores are the same."""
    trainer, _, initial = site(DITTO)
    rng = np.random.default_rng(3)
    private = {n: rng.normal(0, 0.1, v.shape).astype(np.float32) for n, v in trainer.initial_local().items()}
    other = initial.successor({n: rng.normal(0, 1, v.shape).astype(np.float32) for n, v in initial.tensors.items()}, 1)
    scores = [trainer.score(version, private, trainer.validation_cases).scores for version in (initial, other)]
    assert np.array_equal(*scores)


def test_trained_alone_for_the_comparison_it_begins_as_its_global_part_too(site):
    """The arm `alone` is a federation of one: with lambda 0 both of its parts take the same steps from the same start."""
    trainer, _, initial = site(DITTO)
    model, owned = trainer.model, trainer.owned
    adapter_tensors.load_global(model, owned, initial.tensors)
    adapter_tensors.load_local(model, owned, trainer.initial_local())
    arms.fit_alone(
        model, trainer.activations, trainer.train_cases, DITTO, owned, ROUNDS, trainer.seed, local.Hooks(), MicroBatch()
    )
    assert all(layer.active == ("local",) for layer in lora.adapted_layers(model).values())
    assert distance(adapter_tensors.local_tensors(model, owned), adapter_tensors.global_tensors(model, owned)) < 1e-6

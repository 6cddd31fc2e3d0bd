"""One site's round under every recipe: what it hands to the door out, what it keeps, and what its arms are made of."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shared.recipe import Recipe, factor_of
from site_agent import egress
from site_agent.egress import UpdateFacts
from site_agent.models import lora
from site_agent.training import evaluate
from site_agent.training.evaluate import Scored
from site_agent.training.local import Hooks
from tests.support import methods, tiny_site
from tests.support.methods import WITH_CODECS, WITH_HEADS, WITH_RANKS

QUICK = Recipe(rank_local=2, augmentation="none", local_epochs=1, batch_size=8)
MARKER = np.float32(0.0123)
WINDOW = 16
"""Bytes: four float32 in a row, at any offset."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny_site.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def site(backbone, tmp_path_factory):
    """Return a maker of trainers: each on the same cases, with version 0 and the recipe it is for."""

    def make(recipe, **choices):
        contract, initial = tiny_site.contract(backbone, recipe, **choices)
        return tiny_site.trainer(tmp_path_factory.mktemp("site"), backbone, contract), initial

    return make


def seal(trainer, received, trained, number):
    facts = UpdateFacts(round=number, base_version=0, training_patients=9, metrics=trained.metrics)
    return egress.seal(received, trained.global_tensors, trainer.recipe, facts, 2, None, b"seed")[0]


def windows(array):
    """Every 16 bytes of a tensor, without those that are one number over and over."""
    data = array.astype("<f4").tobytes()
    found = {data[i : i + WINDOW] for i in range(len(data) - WINDOW + 1)}
    return {window for window in found if len(set(window)) > 4}


# --- what travels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "head"), WITH_HEADS)
def test_exactly_what_the_recipe_names_travels_and_the_door_takes_it_as_it_is(site, name, head):
    trainer, initial = site(methods.recipe(name, QUICK), head_policy=head)
    private = trainer.initial_local()
    for number in (1, 2):
        trained = trainer.train(number, initial, private, Hooks())
        wanted = {spec.name for spec in trainer.recipe.upload_layout(initial.manifest, number, 2).tensors}
        assert trained.global_tensors.keys() == wanted
        assert {factor_of(tensor) for tensor in wanted} - {None} == trainer.recipe.shared(number)
        assert trained.local_tensors.keys() == private.keys()
        seal(trainer, initial, trained, number)


@pytest.mark.parametrize(("name", "codec"), WITH_CODECS)
def test_no_update_is_larger_than_its_layout_says(site, name, codec):
    trainer, initial = site(replace(methods.recipe(name, QUICK), codec=codec))
    trained = trainer.train(1, initial, trainer.initial_local(), Hooks())
    update = seal(trainer, initial, trained, 1)
    assert len(update.payload) <= update.layout.size < initial.manifest.layout.size + 5 * len(update.layout.tensors) + 1


def test_ffa_sends_b_and_the_head_and_leaves_a_as_it_was_drawn(site):
    trainer, initial = site(replace(QUICK, name="ffa-lora"))
    trained = trainer.train(1, initial, trainer.initial_local(), Hooks())
    assert {tensor.rpartition(".lora_")[2] for tensor in trained.global_tensors if ".lora_" in tensor} == {"B.weight"}
    sizes = {name: value.nbytes for name, value in initial.tensors.items()}
    expected = sum(size for name, size in sizes.items() if factor_of(name) != "A")
    assert len(seal(trainer, initial, trained, 1).payload) == expected
    for path, layer in lora.adapted_layers(trainer.model).items():
        drawn = initial.tensors[f"base_model.model.{path}.lora_A.weight"]
        assert layer.lora_A["global"].detach().numpy().tobytes() == drawn.tobytes()


def test_fedsa_keeps_a_marked_b_away_from_the_door_and_the_payload(site):
    """With a learning rate of 0 the marker stays as it is through the round; it may be found at home and nowhere else."""
    trainer, initial = site(replace(QUICK, name="fedsa-lora", lr_global=0.0))
    private = trainer.initial_local()
    rng = np.random.default_rng(5)
    marked = {
        name: MARKER * rng.uniform(1, 2, value.shape).astype(np.float32)
        for name, value in private.items()
        if name.startswith("local.global.")
    }
    assert len(marked) == len(lora.adapted_layers(trainer.model))
    trained = trainer.train(1, initial, private | marked, Hooks())
    assert all(np.array_equal(trained.local_tensors[name], value) for name, value in marked.items())
    assert not any(factor_of(name) == "B" for name in trained.global_tensors)
    secrets = set().union(*(windows(value) for value in marked.values()))
    assert len(secrets) > 500
    argument = b"".join(value.tobytes() for value in trained.global_tensors.values())
    payload = seal(trainer, initial, trained, 1).payload
    for sent in (argument, payload):
        assert not secrets & {sent[i : i + WINDOW] for i in range(len(sent) - WINDOW + 1)}
    kept = b"".join(value.tobytes() for value in trained.local_tensors.values())
    assert secrets <= {kept[i : i + WINDOW] for i in range(len(kept) - WINDOW + 1)}


def test_no_16_bytes_of_what_fedsa_trains_of_b_are_in_what_it_sends(site):
    trainer, initial = site(replace(QUICK, name="fedsa-lora"))
    steps = []
    own = [layer.lora_B["global"] for layer in lora.adapted_layers(trainer.model).values()]

    def look(step, total, optimiser):
        for parameter in own:
            moments = [optimiser.state[parameter][part] for part in ("exp_avg", "exp_avg_sq")]
            steps.extend(value.detach().numpy().copy() for value in (parameter, *moments))

    trained = trainer.train(1, initial, trainer.initial_local(), Hooks(on_step=look))
    secrets = set().union(*(windows(value) for value in steps))
    assert len(secrets) > 500
    payload = seal(trainer, initial, trained, 1).payload
    assert not secrets & {payload[i : i + WINDOW] for i in range(len(payload) - WINDOW + 1)}


# --- what stays -----------------------------------------------------------------------------------------------------


def test_what_fedsa_learnt_of_b_is_where_the_next_round_begins(site):
    """A second round with a learning rate of 0 ends with what it began with."""
    trainer, initial = site(replace(QUICK, name="fedsa-lora"))
    first = trainer.train(1, initial, trainer.initial_local(), Hooks())
    own = {name: value for name, value in first.local_tensors.items() if name.startswith("local.global.")}
    assert own
    assert all(value.any() for value in own.values())
    resting, _ = site(replace(QUICK, name="fedsa-lora", lr_global=0.0))
    received = initial.successor({**initial.tensors, **first.global_tensors}, 1)
    second = resting.train(2, received, first.local_tensors, Hooks())
    assert all(np.array_equal(second.local_tensors[name], value) for name, value in own.items())


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        ("global", set()),
        ("local", {"weight", "bias"}),
        ("global+local-bias", {"bias"}),
        ("global+local", {"weight", "bias"}),
    ],
)
def test_without_a_local_part_only_the_private_head_stays(site, head, kept):
    trainer, initial = site(replace(QUICK, rank_local=0), head_policy=head)
    assert {name.rpartition(".")[2] for name in trainer.initial_local()} == kept
    trained = trainer.train(1, initial, trainer.initial_local(), Hooks())
    assert trained.global_tensors.keys() == initial.tensors.keys()
    assert trainer.validate(initial, trained.local_tensors).own["n"] > 0


# --- arms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rank_local"), WITH_RANKS)
def test_every_recipe_compares_the_four_arms(site, name, rank_local):
    trainer, initial = site(methods.recipe(name, QUICK, rank_local), rounds=2)
    trained = trainer.train(1, initial, trainer.initial_local(), Hooks())
    final = initial.successor({**initial.tensors, **trained.global_tensors}, 1)
    compared = trainer.compare_arms(initial, final, trained.local_tensors, Hooks()).figures
    assert list(compared) == ["probe", "alone", "global", "dual"]
    assert all(figures.keys() == {"validation", "test"} for figures in compared.values())
    assert compared["dual"]["validation"] == trainer.validate(final, trained.local_tensors).own


def test_the_global_arm_of_fedsa_has_the_versions_b_and_not_the_sites(site):
    """B of every version is zero, so the arm is the base model with the shared head weight."""
    trainer, initial = site(replace(QUICK, name="fedsa-lora", lr_global=0.05), rounds=2)
    trained = trainer.train(1, initial, trainer.initial_local(), Hooks())
    final = initial.successor({**initial.tensors, **trained.global_tensors}, 1)
    compared = trainer.compare_arms(initial, final, trained.local_tensors, Hooks()).figures
    trainer.validate(final, trained.local_tensors)  # loads both
    lora.switch(trainer.model, ())
    with torch.no_grad():
        for name, value in trainer.model.heads().items():
            if name.endswith(".bias"):
                value.zero_()
    scored = Scored.of(trainer.model, trainer.activations, trainer.validation_cases)
    assert compared["global"]["validation"] == evaluate.figures(scored, scored)
    assert compared["global"] != compared["dual"]

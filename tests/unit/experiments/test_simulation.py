"""A federation of two sites in one process, for every recipe: it learns, and what the recipe holds still does not move."""

import numpy as np
import pytest

from experiments import simulation
from shared.recipe import Recipe, factor_of
from tests.support import tiny_site
from tests.support.methods import WITH_RANKS

ROUNDS = 6
LEARNING = {"augmentation": "none", "local_epochs": 4, "batch_size": 4, "lr_global": 1e-2, "lr_local": 1e-2}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return tiny_site.write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def federated(backbone, tmp_path_factory):
    """Return a function that trains a federation of two sites; same parameters, same cases."""

    def run(**parameters):
        contract, initial = tiny_site.contract(backbone, Recipe(**{**LEARNING, **parameters}), ROUNDS)
        trainers = {
            site: tiny_site.trainer(tmp_path_factory.mktemp("site"), backbone, contract, site, cases)
            for site, cases in (("ge", 12), ("canon", 18))
        }
        return initial, list(simulation.federate(contract, initial, trainers))

    return run


SLOWER = {"full": {"lr_global": 1e-3}, "head-only": {"lr_head": 2e-2, "batch_size": 32}}
"""All weights of a network take a lower rate than a few; a head on random features has little to learn from."""


@pytest.mark.parametrize("codec", ["f32", "int8"])
@pytest.mark.parametrize(("name", "rank_local"), WITH_RANKS)
def test_every_recipe_makes_the_sites_training_loss_smaller(federated, name, rank_local, codec):
    _, rounds = federated(name=name, rank_local=rank_local, codec=codec, **SLOWER.get(name, {}))
    assert [one.version.version for one in rounds] == list(range(1, ROUNDS + 1))
    assert rounds[-1].train_loss < (0.95 if name == "head-only" else 0.9) * rounds[0].train_loss


@pytest.mark.parametrize(("name", "factor"), [("ffa-lora", "A"), ("fedsa-lora", "B")])
def test_a_factor_that_never_travels_is_in_every_version_what_it_was_in_the_first(federated, name, factor):
    initial, rounds = federated(name=name, rank_local=2)
    for one in rounds:
        for tensor, value in one.version.tensors.items():
            stays = factor_of(tensor) == factor
            assert (value.tobytes() == initial.tensors[tensor].tobytes()) == stays, (one.version.version, tensor)


def test_rolora_versions_change_in_b_and_in_a_by_turns(federated):
    initial, rounds = federated(name="rolora", rank_local=2)
    before = initial
    for one in rounds:
        moved = {factor_of(t) for t, v in one.version.tensors.items() if not np.array_equal(v, before.tensors[t])}
        assert moved == {None, "B" if one.version.version % 2 else "A"}
        before = one.version


def test_a_version_is_the_weighted_mean_of_what_was_sent(federated):
    """Source: McMahan et al. 2017, arXiv:1602.05629, algorithm 1, with weights n_k / n."""
    initial, rounds = federated(name="med-duallora", rank_local=2)
    updates = rounds[0].updates.values()
    patients = [update.facts.training_patients for update in updates]
    assert len(set(patients)) == 2
    deltas = [update.layout.split(update.payload) for update in updates]
    for name, value in rounds[0].version.tensors.items():
        mean = sum(n * delta[name].astype(np.float64) for n, delta in zip(patients, deltas, strict=True)) / sum(
            patients
        )
        np.testing.assert_allclose(value, initial.tensors[name] + mean, atol=1e-7)


@pytest.mark.parametrize("codec", ["f32", "int4", "topk+zstd"])
def test_a_federation_run_again_ends_with_the_same_bytes(federated, codec):
    runs = [federated(name="rolora", rank_local=2, codec=codec)[1] for _ in range(2)]
    assert runs[0][-1].version.digest == runs[1][-1].version.digest
    digests = [[{site: update.digest for site, update in one.updates.items()} for one in run] for run in runs]
    assert digests[0] == digests[1]

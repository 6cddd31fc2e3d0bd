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


@pytest.mark.parametrize(
    ("name", "rank_local", "codec"),
    [
        *((name, rank_local, "f32") for name, rank_local in WITH_RANKS),
        ("med-duallora", 2, "int8"),
        ("rolora", 0, "int8"),
        ("fedex-lora", 2, "int8"),
    ],
)
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


PATIENTS = {"canon": 14, "ge": 9}
"""Training patients of 18 and 12 cases: every fifth is for validation."""


@pytest.mark.parametrize(
    ("weighting", "counted"),
    [
        ({}, {"canon": 14, "ge": 9}),
        ({"weighting": "uniform"}, {"canon": 1, "ge": 1}),
        ({"weighting": "capped"}, {"canon": 11.5, "ge": 9}),  # the median
        ({"weighting": "capped", "weight_cap": 1.1}, {"canon": 12.65, "ge": 9}),
        ({"weighting": "capped", "weight_cap": 2.0}, {"canon": 14, "ge": 9}),
    ],
)
def test_a_version_is_the_weighted_mean_of_what_was_sent(federated, weighting, counted):
    """Source: McMahan et al. 2017, arXiv:1602.05629, algorithm 1, with weights n_k / n."""
    initial, rounds = federated(name="med-duallora", rank_local=2, **weighting)
    updates = rounds[0].updates
    assert {site: update.facts.training_patients for site, update in updates.items()} == PATIENTS
    deltas = {site: update.layout.split(update.payload) for site, update in updates.items()}
    for name, value in rounds[0].version.tensors.items():
        mean = sum(counted[site] * deltas[site][name].astype(np.float64) for site in deltas) / sum(counted.values())
        np.testing.assert_allclose(value, initial.tensors[name] + mean, atol=1e-6)


def modules(tensors):
    return [name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")]


def mean_of_products(received, one, module):
    """sum w_k B_k A_k, out x in, from what the sites sent."""
    total = 0.0
    for site, update in one.updates.items():
        delta = update.layout.split(update.payload)
        a, b = (received[n].astype(np.float64) + delta[n] for n in (f"{module}.lora_{f}.weight" for f in "AB"))
        total = total + PATIENTS[site] / sum(PATIENTS.values()) * (b @ a)
    return total


def test_every_version_of_fedex_is_the_mean_of_the_sites_products(federated):
    """Round after round: what the residual held before is in it too, for all sites began with it."""
    initial, rounds = federated(name="fedex-lora", rank_local=0)
    received, grown = initial.tensors, []
    for one in rounds:
        made = one.version.tensors
        for module in modules(made):
            names = [f"{module}.lora_{kind}.weight" for kind in ("A", "B", "residual_A", "residual_B")]
            before, after = ([of[name].astype(np.float64) for name in names] for of in (received, made))
            expected = mean_of_products(received, one, module) + before[3] @ before[2]
            np.testing.assert_allclose(after[1] @ after[0] + after[3] @ after[2], expected, atol=1e-6)
            grown.append(np.abs(after[3] @ after[2]).max())
        received = made
    assert max(grown) > 1e-4  # there is something to keep


def test_every_version_of_flex_lora_is_the_nearest_of_its_rank_to_the_mean_of_the_sites_products(federated):
    """Eckart and Young 1936: the first singular triplets. Computed here from the dense matrix, by numpy."""
    initial, rounds = federated(name="flex-lora", rank_local=0)
    received = initial.tensors
    for one in rounds:
        for module in modules(one.version.tensors):
            a, b = (one.version.tensors[f"{module}.lora_{factor}.weight"].astype(np.float64) for factor in "AB")
            u, s, vt = np.linalg.svd(mean_of_products(received, one, module), full_matrices=False)
            np.testing.assert_allclose(b @ a, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)
        received = one.version.tensors


@pytest.mark.parametrize("codec", ["f32", "int4", "topk+zstd"])
def test_a_federation_run_again_ends_with_the_same_bytes(federated, codec):
    runs = [federated(name="rolora", rank_local=2, codec=codec)[1] for _ in range(2)]
    assert runs[0][-1].version.digest == runs[1][-1].version.digest
    digests = [[{site: update.digest for site, update in one.updates.items()} for one in run] for run in runs]
    assert digests[0] == digests[1]

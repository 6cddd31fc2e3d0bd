"""Methods with two passes: what each trains, what it does not see, and that nothing private reaches what is sent."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from shared.recipe import Recipe
from site_agent import egress
from site_agent.egress import UpdateFacts
from site_agent.models import adapter_tensors
from site_agent.training import schedule
from site_agent.training.local import Hooks
from tests.support import methods, tiny_site

TWO_PASSES = ("feddpa-lora", "fdlora", "ditto-lora")
QUICK = Recipe(rank_local=2, augmentation="none", local_epochs=2, batch_size=4)
STEPS = 2 * 3
"""Of a pass: two epochs over 9 training cases in batches of 4."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return a maker of trainers on the same cases, with version 0."""
    backbone = tiny_site.write_backbone(tmp_path_factory.mktemp("backbone"))

    def make(name, head_policy="", **parameters):
        recipe = replace(methods.recipe(name, QUICK), **parameters)
        choices = {"head_policy": head_policy} if head_policy else {}
        contract, initial = tiny_site.contract(backbone, recipe, **choices)
        return tiny_site.trainer(tmp_path_factory.mktemp("site"), backbone, contract), initial

    return make


def noise(tensors, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.2, value.shape).astype(np.float32) for name, value in tensors.items()}


def trained(trainer, received, private, number=2):
    """Train a round; return what was trained, and all tensors at its start and after each step."""
    snapshots = []

    def look(*_):
        shared = adapter_tensors.global_tensors(trainer.model, trainer.owned)
        snapshots.append(shared | adapter_tensors.local_tensors(trainer.model, trainer.owned))

    result = trainer.train(number, received, private, Hooks(on_step=look))
    return result, [{**received.tensors, **private}, *snapshots]


# --- what moves when --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWO_PASSES)
def test_each_pass_moves_its_own_part_and_leaves_every_bit_of_the_other(site, name):
    trainer, initial = site(name)
    _, snapshots = trained(trainer, initial, noise(trainer.initial_local(), 3))
    assert len(snapshots) == 1 + 2 * STEPS
    start, half, end = snapshots[0], snapshots[STEPS], snapshots[-1]
    for tensor in (tensor for tensor in end if ".lora_gate." not in tensor):  # fitted after the last step, by FDLoRA
        private = tensor.startswith("local.")
        assert np.array_equal(half[tensor], start[tensor]) == private, tensor
        assert np.array_equal(end[tensor], half[tensor]) == (not private), tensor


@pytest.mark.parametrize("name", TWO_PASSES)
def test_what_is_sent_is_what_the_first_pass_made(site, name):
    trainer, initial = site(name)
    result, snapshots = trained(trainer, initial, noise(trainer.initial_local(), 3))
    for tensor, value in result.global_tensors.items():
        assert value.tobytes() == snapshots[STEPS][tensor].tobytes()


@pytest.mark.parametrize("name", TWO_PASSES)
def test_both_passes_see_the_same_batches_at_the_same_rates(site, name):
    trainer, initial = site(name)
    steps = list(schedule.batches(trainer.train_cases, trainer.recipe, schedule.Position(2, 4, 7)))
    assert len(steps) == schedule.steps_of(len(trainer.train_cases), trainer.recipe) == 2 * STEPS
    for first, second in zip(steps[:STEPS], steps[STEPS:], strict=True):
        assert (first.views, first.at, first.epoch) == (second.views, second.at, second.epoch)
        assert np.array_equal(first.labels, second.labels)
    of_joint = schedule.batches(trainer.train_cases, QUICK, schedule.Position(2, 4, 7))
    assert [batch.views for batch in of_joint] == [batch.views for batch in steps[:STEPS]]
    rates = []
    hooks = Hooks(on_step=lambda step, of, optimiser: rates.append([group["lr"] for group in optimiser.param_groups]))
    trainer.train(2, initial, trainer.initial_local(), hooks)
    assert rates[:STEPS] == rates[STEPS:]
    assert rates[0] != rates[1]


# --- what does not reach what is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["f32", "int4+zstd"])
@pytest.mark.parametrize("name", TWO_PASSES)
def test_the_bytes_that_leave_do_not_depend_on_anything_private(site, name, codec):
    """Non-interference: two sites that differ only in what is theirs send the same update and the same figures."""
    trainer, initial = site(name, codec=codec)
    payloads, left = set(), set()
    for private in (trainer.initial_local(), noise(trainer.initial_local(), 3), noise(trainer.initial_local(), 4)):
        result = trainer.train(2, initial, private, Hooks())
        facts = UpdateFacts(round=2, base_version=0, training_patients=9, metrics=result.metrics)
        update, _ = egress.seal(initial, result.global_tensors, trainer.recipe, facts, 2, None, b"seed")
        payloads.add(update.payload)
        left.add(tuple(sorted(result.metrics.items())))
    assert len(payloads) == len(left) == 1


def test_trained_together_the_parts_do_depend_on_each_other(site):
    """So the test above can fail."""
    trainer, initial = site("med-duallora")
    found = [
        trainer.train(2, initial, private, Hooks()).global_tensors
        for private in (trainer.initial_local(), noise(trainer.initial_local(), 3))
    ]
    assert any(not np.array_equal(value, found[1][name]) for name, value in found[0].items())


def local_after(site, name, received_factors):
    """The local product's tensors after a round in which no head moves, from a version with these factors."""
    trainer, initial = site(name, lr_head=0.0)
    factors = noise({n: v for n, v in initial.tensors.items() if ".lora_" in n}, received_factors)
    received = initial.successor({**initial.tensors, **factors}, 1)
    result = trainer.train(2, received, noise(trainer.initial_local(), 3), Hooks())
    return {n: v for n, v in result.local_tensors.items() if ".lora_A." in n or ".lora_B." in n}


@pytest.mark.parametrize(("name", "alone"), [("fdlora", True), ("feddpa-lora", False)])
def test_fdlora_trains_the_local_part_alone_and_feddpa_beside_the_global_one(site, name, alone):
    one, other = (local_after(site, name, seed) for seed in (5, 6))
    assert all(np.array_equal(one[tensor], other[tensor]) for tensor in one) == alone


def test_feddpa_trains_the_local_part_beside_what_the_first_pass_made_of_the_global_one(site):
    """The second pass alone, from where the first one ended, is a k-shot adaptation to it."""
    trainer, initial = site("feddpa-lora")
    private = noise(trainer.initial_local(), 3)
    both = trainer.train(2, initial, private, Hooks())
    made = initial.successor({**initial.tensors, **both.global_tensors}, 1)
    second, _ = site("adaptation")
    alone = second.train(2, made, private, Hooks())
    for name, value in both.local_tensors.items():
        assert value.tobytes() == alone.local_tensors[name].tobytes(), name
    assert alone.global_tensors == {}
    held = adapter_tensors.global_tensors(second.model, second.owned)
    assert all(np.array_equal(value, made.tensors[name]) for name, value in held.items())


@pytest.mark.parametrize("name", TWO_PASSES)
def test_the_first_pass_is_what_a_site_without_a_local_part_trains(site, name):
    """Their global parts are FedIT's, to the last bit, where nothing of the shared head is private."""
    fedit, received = site("med-duallora", head_policy="global", rank_local=0)
    expected = fedit.train(2, received, {}, Hooks()).global_tensors
    trainer, initial = site(name, head_policy=methods.choices(name).get("head_policy", "global"))
    assert all(np.array_equal(value, received.tensors[tensor]) for tensor, value in initial.tensors.items())
    found = trainer.train(2, initial, trainer.initial_local(), Hooks()).global_tensors
    assert found.keys() == expected.keys()
    assert all(value.tobytes() == expected[tensor].tobytes() for tensor, value in found.items())


# --- non-interference -------------------------------------------------------------------------------------------------


def test_what_leaves_in_mode_non_interference_does_not_depend_on_the_local_part(site):
    """Its rank, its size, and how it is held back: the same bytes and figures."""
    updates, private = [], []
    for spread, parameters in ((0.0, {}), (1.0, {}), (1.0, {"rank_local": 3, "lr_local": 0.1, "local_decay": 2.0})):
        trainer, initial = site("med-duallora", mode="non-interference", **parameters)
        mine = {name: spread * value for name, value in noise(trainer.initial_local(), 5).items()}
        result, _ = trained(trainer, initial, mine)
        facts = UpdateFacts(round=2, base_version=0, training_patients=9, metrics=result.metrics)
        received = initial.successor({**initial.tensors, **result.global_tensors}, 1)
        reported = trainer.validate(received, result.local_tensors)
        updates.append((egress.seal(initial, result.global_tensors, trainer.recipe, facts, 3)[0], reported.reportable))
        private.append((result.local_tensors, reported.own))
    assert {update.digest for update, _ in updates} == {updates[0][0].digest}
    assert all(update.facts == updates[0][0].facts for update, _ in updates)
    assert all(figures == updates[0][1] for _, figures in updates)
    assert any(np.any(value != private[1][0][name]) for name, value in private[0][0].items())


def test_in_mode_non_interference_the_global_part_is_trained_first_and_then_stays(site):
    trainer, initial = site("med-duallora", mode="non-interference")
    _, snapshots = trained(trainer, initial, noise(trainer.initial_local(), 3))
    assert len(snapshots) == 1 + 2 * STEPS
    shared = set(initial.tensors)
    for number, (before, after) in enumerate(itertools.pairwise(snapshots)):
        moved = {name for name in before if not np.array_equal(before[name], after[name])}
        assert moved
        assert moved <= shared if number < STEPS else not moved & shared

"""A site's round under differential privacy: what it is a function of, how it goes on, and what never leaves it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from shared.contract import check_told
from shared.errors import InputError
from shared.recipe import Recipe
from site_agent import egress
from site_agent.config import SiteConfig
from site_agent.damage import Infirmary
from site_agent.egress import UpdateFacts
from site_agent.models import adapter_tensors
from site_agent.training import local
from site_agent.training.checkpoint import Checkpoints
from site_agent.training.local import Hooks
from site_agent.training.parallel import ALONE
from site_agent.training.site import SiteTrainer
from tests.support import methods, private_site, tiny_site
from tests.support.private_site import STEPS, stream


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return private_site.make(tmp_path_factory.mktemp("site"))


def noise(tensors, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.2, value.shape).astype(np.float32) for name, value in tensors.items()}


def sent(trainer, received, trained) -> bytes:
    facts = UpdateFacts(round=1, base_version=0, training_patients=9, metrics=trained.metrics)
    return egress.seal(received, trained.global_tensors, trainer.recipe, facts, 2)[0].payload


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# --- what an update is a function of ------------------------------------------------------------------------------------


def test_what_leaves_does_not_depend_on_the_local_adapter_with_the_same_key(made):
    trainer, initial = made
    payloads, private = [], []
    for local_before in (trainer.initial_local(), *(noise(trainer.initial_local(), seed) for seed in (3, 4))):
        trained = trainer.train(1, initial, local_before, Hooks(), stream=stream())
        payloads.append(sent(trainer, initial, trained))
        private.append(trained.local_tensors)
    assert len(set(payloads)) == 1
    assert not same(private[0], private[1])


def test_what_leaves_is_the_same_where_the_local_part_blows_up(made, tmp_path_factory):
    trainer, initial = made
    wild, its_initial = private_site.make(tmp_path_factory.mktemp("wild"), lr_local=1e30)
    trained = wild.train(1, its_initial, wild.initial_local(), Hooks(), stream=stream())
    assert not all(np.isfinite(value).all() for value in trained.local_tensors.values())
    calm = trainer.train(1, initial, trainer.initial_local(), Hooks(), stream=stream())
    assert sent(wild, its_initial, trained) == sent(trainer, initial, calm)


def test_another_key_is_another_update(made):
    trainer, initial = made
    one, again, other = (
        trainer.train(1, initial, trainer.initial_local(), Hooks(), stream=stream(n)) for n in (1, 1, 2)
    )
    assert sent(trainer, initial, one) == sent(trainer, initial, again)
    assert sent(trainer, initial, one) != sent(trainer, initial, other)


def test_without_a_key_nothing_is_trained(made):
    trainer, initial = made
    with pytest.raises(InputError, match="dp_noise is 1, and there is no key to draw noise from"):
        trainer.train(1, initial, trainer.initial_local(), Hooks())


def test_b_and_the_shared_head_move_in_the_first_pass_and_then_stay(made):
    trainer, initial = made
    snapshots = [dict(initial.tensors)]
    look = Hooks(on_step=lambda *_: snapshots.append(adapter_tensors.global_tensors(trainer.model, trainer.owned)))
    trained = trainer.train(1, initial, trainer.initial_local(), look, stream=stream())
    assert len(snapshots) == 1 + 2 * STEPS
    for name, value in snapshots[-1].items():
        assert np.array_equal(value, snapshots[STEPS][name])
        travels = name in trained.global_tensors
        assert travels == (".lora_B." in name or "pred_head" in name)
        assert np.array_equal(value, initial.tensors[name]) == (not travels)


def test_the_local_pass_has_no_noise_in_it(made):
    """From the same global part, two keys train the same local one: nothing of the key is used in that pass."""
    trainer, initial = made
    still = replace(trainer.recipe, lr_global=0.0, lr_head=0.0)
    left = []
    for number in (1, 2):
        trainer._load(initial, trainer.initial_local())
        position = trainer._position(1)
        local.train_round(
            trainer.model,
            trainer.activations,
            trainer.train_cases,
            still,
            trainer.owned,
            position,
            stream=stream(number),
        )
        left.append(adapter_tensors.local_tensors(trainer.model, trainer.owned))
    assert same(*left)


# --- going on ---------------------------------------------------------------------------------------------------------


def checkpoints(folder) -> Checkpoints:
    return Checkpoints(folder, 0.0, Infirmary(folder, lambda text: None))


def stopped_after(trainer, received, steps, kept, key):
    """Train until so many steps are done, leaving a checkpoint."""
    seen = []
    hooks = Hooks(on_step=lambda step, *_: seen.append(step), should_stop=lambda: len(seen) >= steps)
    with pytest.raises(local.Stopped):
        trainer.train(1, received, trainer.initial_local(), hooks, kept, stream(key))


@pytest.mark.parametrize("steps", [1, 3, STEPS, STEPS + 2])
def test_a_round_that_goes_on_with_the_same_key_gives_the_same_bytes(made, tmp_path, steps):
    trainer, initial = made
    whole = trainer.train(1, initial, trainer.initial_local(), Hooks(), stream=stream())
    kept = checkpoints(tmp_path)
    stopped_after(trainer, initial, steps, kept, key=1)
    seen = []
    look = Hooks(on_step=lambda step, *_: seen.append(step))
    resumed = trainer.train(1, initial, trainer.initial_local(), look, kept, stream())
    assert seen[0] == steps + 1
    assert same(whole.global_tensors, resumed.global_tensors)
    assert same(whole.local_tensors, resumed.local_tensors)


def test_a_checkpoint_of_another_key_is_left_alone(made, tmp_path):
    trainer, initial = made
    kept = checkpoints(tmp_path)
    stopped_after(trainer, initial, 3, kept, key=1)
    seen = []
    trained = trainer.train(
        1, initial, trainer.initial_local(), Hooks(on_step=lambda step, *_: seen.append(step)), kept, stream(2)
    )
    assert seen[0] == 1
    alone = trainer.train(1, initial, trainer.initial_local(), Hooks(), stream=stream(2))
    assert same(trained.global_tensors, alone.global_tensors)


# --- what never leaves ------------------------------------------------------------------------------------------------


def test_no_figure_is_made_to_be_told(made):
    trainer, initial = made
    trained = trainer.train(1, initial, trainer.initial_local(), Hooks(), stream=stream())
    assert trained.metrics == {}
    judged = trainer.validate(initial, trained.local_tensors)
    assert judged.reportable == {}
    assert judged.own["n"] == 3  # the site has its own


def test_the_door_is_shut_for_figures(made):
    trainer, initial = made
    trained = trainer.train(1, initial, trainer.initial_local(), Hooks(), stream=stream())
    facts = UpdateFacts(round=1, base_version=0, training_patients=9, metrics={"train_loss": 0.5})
    with pytest.raises(InputError, match="metric 'train_loss' is computed from cases without noise"):
        egress.seal(initial, trained.global_tensors, trainer.recipe, facts, 2)
    open_recipe = Recipe()
    check_told(open_recipe, facts.metrics, always=True)
    with pytest.raises(InputError, match="an evaluation is computed from cases without noise"):
        check_told(trainer.recipe, {}, always=True)


def test_a_model_that_stays_here_is_trained_without_noise(made, tmp_path_factory):
    """The arm that was never federated is the same as under the recipe without differential privacy."""
    trainer, initial = made
    open_trainer, its_initial = private_site.make(tmp_path_factory.mktemp("open"), dp_noise=0.0, dp_epsilon=0.0)
    found = [
        one.compare_arms(start, start, one.initial_local(), Hooks()).figures["alone"]
        for one, start in ((trainer, initial), (open_trainer, its_initial))
    ]
    assert found[0] == found[1]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_several_processes_are_refused_by_name(made, tmp_path):
    trainer, _ = made
    backbone = tiny_site.write_backbone(tmp_path)
    config = SiteConfig(aggregator="127.0.0.1:1", plain_site="ge", cohort=tmp_path, weights=backbone)
    group = SimpleNamespace(rank=0, size=2, local_size=2, gpu=None, told=ALONE.told, gathered=ALONE.gathered)
    with pytest.raises(InputError, match="in one process, and this one has 2; start the agent without torchrun"):
        SiteTrainer.load(config, "ge", trainer.contract, trainer.cohort, group)


def test_joint_training_is_refused_with_differential_privacy():
    with pytest.raises(InputError, match="mode must be non-interference, got joint"):
        Recipe(**{**methods.PRIVATE, "mode": "joint"})


def test_what_an_update_is_made_from_names_images_labels_and_settings(made, tmp_path_factory):
    trainer, _ = made
    before = trainer.made_from()
    assert trainer.made_from() == before
    other, _ = private_site.make(tmp_path_factory.mktemp("same"))
    assert other.made_from() == before
    case = other.train_cases[0]
    other.train_cases = (replace(case, label=1 - case.label), *other.train_cases[1:])
    assert other.made_from() != before
    third, _ = private_site.make(tmp_path_factory.mktemp("image"))
    first, second = third.train_cases[:2]
    first.ed_path.write_bytes(second.ed_path.read_bytes())
    assert third.made_from() != before

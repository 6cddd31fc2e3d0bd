"""One site's share of one round, against closed forms: which numbers move, by how much, and always to the same bytes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shared.adapter import HEAD_POLICIES
from shared.recipe import INSTALLED, Recipe, factor_of, is_residual
from site_agent.damage import Infirmary
from site_agent.models import adapter_tensors, lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.training import local
from site_agent.training.checkpoint import Binding, Checkpoints
from site_agent.training.local import Hooks, Position
from site_agent.training.micro_batch import MicroBatch
from tests.support import methods, tiny_site
from tests.support.methods import WITH_RANKS

OWNED = Ownership("global+local-bias")
RECIPE = Recipe(
    rank_local=2, augmentation="none", local_epochs=2, batch_size=4, lr_global=1e-3, lr_local=3e-3, lr_head=5e-3
)
FIRST = Position(round=1, rounds=4, seed=7)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny_site.write_cases(tmp_path_factory.mktemp("cases"), 10)


def train(cases, recipe=RECIPE, position=FIRST, hooks=None, **options):
    """Train one round of a new model; return it and the loss."""
    model = tiny_site.classifier(recipe=recipe)
    watched = hooks(model) if hooks else Hooks()
    loss = local.train_round(
        model, tiny_site.activations(model), cases, recipe, owned_by(recipe), position, hooks=watched, **options
    )
    return model, loss


def owned_by(recipe, **choices):
    return Ownership.of(tiny_site.metadata(recipe, **choices), recipe)


def tensors_of(model, owned=OWNED):
    return adapter_tensors.global_tensors(model, owned) | adapter_tensors.local_tensors(model, owned)


def test_classes_weigh_the_same_over_an_epoch():
    labels = np.array([0, 1, 1, 1])
    weights = local.class_weights(labels, balanced=True)
    assert weights.tolist() == pytest.approx([2.0, 2 / 3])
    assert float(weights[labels].sum()) == pytest.approx(len(labels))
    assert local.class_weights(labels, balanced=False).tolist() == [1.0, 1.0]


# --- what moves -----------------------------------------------------------------------------------------------------


def test_the_first_step_moves_every_number_by_its_group_s_rate(cases):
    """AdamW's first step is rate * sign(gradient) wherever the gradient is far above eps (Kingma & Ba 2015, section 2.1)."""
    recipe = Recipe(
        rank_local=2, augmentation="none", local_epochs=1, batch_size=16, lr_global=1e-3, lr_local=3e-3, lr_head=5e-3
    )
    before = tensors_of(tiny_site.classifier())
    model, _ = train(cases, recipe)
    for name, value in tensors_of(model).items():
        rate = 5e-3 if "pred_head" in name else 3e-3 if name.startswith("local.") else 1e-3
        moved = np.abs(value - before[name])
        assert np.median(moved) == pytest.approx(rate, rel=1e-2), name
        assert moved.max() <= rate * 1.001, name


def test_the_frozen_part_does_not_move(cases):
    before = {name: value.clone() for name, value in tiny_site.classifier().backbone_module().state_dict().items()}
    model, _ = train(cases)
    for name, value in model.backbone_module().state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(value, before[name]), name


def test_a_local_rate_of_zero_keeps_the_local_low_rank_part(cases):
    before = adapter_tensors.local_tensors(tiny_site.classifier(), OWNED)
    model, _ = train(cases, Recipe(rank_local=2, augmentation="none", batch_size=4, lr_local=0.0))
    after = adapter_tensors.local_tensors(model, OWNED)
    kept = {name for name in before if np.array_equal(before[name], after[name])}
    assert kept == {name for name in before if ".lora_" in name}


@pytest.mark.parametrize("epochs", [1, 2])
def test_alternating_trains_global_first_and_local_after_it(cases, epochs):
    """Half of the steps each, also when there is a single epoch."""
    snapshots = []

    def watch(model):
        snapshots.append(tensors_of(model))
        return Hooks(on_step=lambda step, steps, optimiser: snapshots.append(tensors_of(model)))

    batch = 16 * epochs // 2
    train(
        cases,
        Recipe(rank_local=2, augmentation="none", local_epochs=epochs, batch_size=batch, mode="alternating"),
        hooks=watch,
    )
    start, half, end = snapshots[0], snapshots[len(snapshots) // 2], snapshots[-1]
    for name in start:
        private = name.startswith("local.")
        assert np.array_equal(start[name], half[name]) == private, name
        assert np.array_equal(half[name], end[name]) == (not private), name


def test_training_makes_the_loss_smaller(cases):
    recipe = Recipe(rank_local=2, augmentation="none", local_epochs=1, batch_size=16, lr_global=5e-3, lr_local=5e-3)
    _, first = train(cases, recipe)
    _, last = train(
        cases, Recipe(rank_local=2, augmentation="none", local_epochs=30, batch_size=16, lr_global=5e-3, lr_local=5e-3)
    )
    assert last < 0.5 * first


# --- the same bytes -------------------------------------------------------------------------------------------------


def test_a_round_trained_again_ends_with_the_same_bytes(cases):
    first, loss = train(cases)
    again, same_loss = train(cases)
    assert loss == same_loss
    for name, value in tensors_of(first).items():
        assert value.tobytes() == tensors_of(again)[name].tobytes(), name


def test_micro_batches_give_the_gradient_of_the_whole_batch(cases):
    whole, loss = train(cases)
    parts, same_loss = train(cases, micro_batch=MicroBatch(3))
    assert same_loss == pytest.approx(loss, rel=1e-4)
    for name, value in tensors_of(whole).items():
        np.testing.assert_allclose(tensors_of(parts)[name], value, atol=2e-4, err_msg=name)


def test_hooks_hear_of_every_step_and_see_the_optimiser_s_groups(cases):
    heard = []
    hooks = Hooks(on_step=lambda step, steps, optimiser: heard.append((step, steps, optimiser.param_groups)))
    train(cases, hooks=lambda model: hooks)
    assert [(step, steps) for step, steps, _ in heard] == [(step, 6) for step in range(1, 7)]
    assert [group["name"] for group in heard[0][2]] == ["global", "local", "head_shared", "head_private"]


def test_training_stops_at_the_next_step_when_asked_to(cases):
    steps = []
    hooks = Hooks(on_step=lambda step, total, optimiser: steps.append(step), should_stop=lambda: len(steps) == 2)
    with pytest.raises(local.Stopped):
        train(cases, hooks=lambda model: hooks)
    assert steps == [1, 2]


# --- which factors of the global part --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "rank_local"), WITH_RANKS)
def test_a_round_moves_what_is_trained_and_leaves_every_bit_of_the_rest(cases, name, rank_local):
    recipe = Recipe(name=name, rank_local=rank_local, augmentation="none", batch_size=4, weight_decay=0.1)
    model, owned = tiny_site.classifier(recipe=recipe), owned_by(recipe)
    trains_global = any("global" in phase.trained for phase in recipe.method.passes)
    for number in (1, 2, 3):
        trained = {None, *recipe.trained(number)} if trains_global else set()
        before = {tensor: value for tensor, value in tensors_of(model, owned).items() if ".lora_gate." not in tensor}
        activations = tiny_site.activations(model)
        local.train_round(model, activations, cases, recipe, owned, Position(number, 4, 7))
        after = tensors_of(model, owned)
        for tensor, value in ((tensor, after[tensor]) for tensor in before):
            of_global = tensor.startswith(("base_model.", "local.global."))
            stays = of_global and (is_residual(tensor) or factor_of(tensor) not in trained)
            assert np.array_equal(value, before[tensor]) == stays, tensor


def test_rolora_trains_b_in_odd_rounds_and_a_in_even_ones(cases):
    """Chen et al. 2025, arXiv:2502.01755: the factors take turns; B first, because with B zero A has no gradient."""
    recipe = Recipe(name="rolora", rank_local=2, augmentation="none", local_epochs=1, batch_size=16)
    for number, factor in ((1, "B"), (2, "A"), (3, "B"), (4, "A")):
        before = tensors_of(tiny_site.classifier())
        model, _ = train(cases, recipe, Position(number, 4, 7))
        moved = {factor_of(t) for t, v in tensors_of(model).items() if t[0] == "b" and not np.array_equal(v, before[t])}
        assert moved == {factor, None}, number


@pytest.mark.parametrize("name", INSTALLED)
def test_a_frozen_factor_has_no_gradient_and_no_place_in_the_optimiser(cases, name):
    """Nor has a trained one in a pass that does not train the global part."""
    recipe, seen = methods.recipe(name, RECIPE), []
    passes = [phase for (phase,) in recipe.passes()]

    def watch(model):
        layers = lora.adapted_layers(model).values()
        factors = {
            factor: [value for layer in layers for part, value in of(layer).items() if part == "global"]
            for factor, of in (("A", lambda layer: layer.lora_A), ("B", lambda layer: layer.lora_B))
        }

        def look(step, steps, optimiser):
            kept = {id(p) for group in optimiser.param_groups for p in group["params"]}
            assert {id(p) for p in optimiser.state} <= kept
            now = passes[(step - 1) // 6]
            for factor, values in factors.items():
                trained = factor in recipe.trained(1)
                assert {value.requires_grad for value in values} <= {trained}
                assert {id(value) in kept for value in values} <= {trained}
                assert {value.grad is not None for value in values} <= {trained and "global" in now.trained}
            seen.append(step)

        return Hooks(on_step=look)

    model, _ = train(cases, recipe, hooks=watch)
    assert len(seen) == 6 * len(passes)
    assert all(v.requires_grad for n, v in model.named_parameters() if ".lora_" in n and not n.endswith("residual"))


def test_a_round_that_is_stopped_leaves_every_factor_trainable(cases):
    recipe, models = Recipe(name="ffa-lora", rank_local=2, augmentation="none", batch_size=4), []

    def watch(model):
        models.append(model)
        return Hooks(should_stop=lambda: True)

    with pytest.raises(local.Stopped):
        train(cases, recipe, hooks=watch)
    assert all(value.requires_grad for name, value in models[0].named_parameters() if "lora_" in name)


def test_a_factor_of_the_sites_own_learns_at_the_global_parts_rate(cases):
    """AdamW's first step, as above: what FedSA-LoRA keeps at the site is trained as if it were shared."""
    recipe = Recipe(
        name="fedsa-lora",
        rank_local=2,
        augmentation="none",
        local_epochs=1,
        batch_size=16,
        lr_global=1e-3,
        lr_local=3e-3,
    )
    kept, groups = owned_by(recipe), []
    before = adapter_tensors.local_tensors(tiny_site.classifier(), kept)
    hooks = Hooks(on_step=lambda step, steps, optimiser: groups.extend(g["name"] for g in optimiser.param_groups))
    model, _ = train(cases, recipe, hooks=lambda model: hooks)
    assert groups == ["global", "global_own", "local", "head_shared", "head_private"]
    for name, value in adapter_tensors.local_tensors(model, kept).items():
        if name.startswith("local.global."):
            assert np.median(np.abs(value - before[name])) == pytest.approx(1e-3, rel=1e-2), name


@pytest.mark.parametrize("name", INSTALLED)
def test_with_as_small_a_local_part_as_can_be_training_makes_the_loss_smaller_too(cases, name):
    """All weights of a network take a low rate; a head on random features has little to learn from."""
    rates = {"head-only": {"lr_head": 0.1}, "full": {"lr_global": 2e-3}}.get(
        name, {"lr_global": 2e-2, "lr_local": 2e-2}
    )
    quick = Recipe(rank_local=2, augmentation="none", local_epochs=1, batch_size=16, **rates)
    recipe = methods.recipe(name, quick, rank_local=methods.ranks_local(name)[-1])
    _, first = train(cases, recipe)
    _, last = train(cases, replace(recipe, local_epochs=30))
    assert last < (0.95 if name == "head-only" else 0.75) * first


# --- going on from a checkpoint -------------------------------------------------------------------------------------


def resumed(cases, folder, kill_after, recipe, head, position=FIRST, **options):
    """Train one round whose process is killed after each of these steps; return the last process's model and loss."""
    binding = Binding(contract="c", round=1, base_version=0, received="r", local="l", cases="k", seed=7)
    checkpoints = Checkpoints(folder / "training", 0.0, Infirmary(folder, print))
    for step in (*kill_after, 0):

        def die(done, steps, optimiser, at=step):
            if done == at:
                raise KeyboardInterrupt  # nothing in between catches it

        torch.manual_seed(step)  # a new process has another state of torch's generator
        model = tiny_site.classifier(recipe=recipe, **head)
        try:
            loss = local.train_round(
                model,
                tiny_site.activations(model),
                cases,
                recipe,
                owned_by(recipe, **head),
                position,
                hooks=Hooks(on_step=die),
                keeper=checkpoints.keeper(binding),
                **options,
            )
        except KeyboardInterrupt:
            assert checkpoints.paths()  # of the step before the one after which it was killed
    return model, loss


@pytest.mark.parametrize("mode", ["joint", "alternating"])
@pytest.mark.parametrize("policy", HEAD_POLICIES)
@pytest.mark.parametrize("micro_batch", [0, 3])
def test_a_round_killed_again_and_again_ends_with_the_same_bytes(cases, tmp_path, mode, policy, micro_batch):
    """Killed in the first epoch, at its end, and before the last step."""
    recipe = Recipe(rank_local=2, augmentation="none", local_epochs=2, batch_size=4, mode=mode, weight_decay=0.01)
    head, micro = {"head_policy": policy}, MicroBatch(micro_batch)
    assert_resumed_is_undisturbed(cases, tmp_path, recipe, head, FIRST, micro_batch=micro)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(("name", "rank_local"), WITH_RANKS)
def test_a_round_of_any_recipe_goes_on_from_its_checkpoint_with_the_same_bytes(
    cases, tmp_path, name, number, rank_local
):
    recipe = Recipe(
        name=name, rank_local=rank_local, augmentation="none", local_epochs=2, batch_size=4, weight_decay=0.01
    )
    assert_resumed_is_undisturbed(cases, tmp_path, recipe, {}, Position(number, 4, 7))


def assert_resumed_is_undisturbed(cases, folder, recipe, head, position, **options):
    """Killed in the last pass too, where there are two."""
    whole, owned = tiny_site.classifier(recipe=recipe, **head), owned_by(recipe, **head)
    loss = local.train_round(whole, tiny_site.activations(whole), cases, recipe, owned, position, **options)
    kill_after = (2, 3, 5) if len(recipe.passes()) == 1 else (2, 6, 7, 11)
    model, same_loss = resumed(cases, folder, kill_after, recipe, head, position, **options)
    assert same_loss == loss
    for part in (adapter_tensors.global_tensors, adapter_tensors.local_tensors):
        for name, value in part(whole, owned).items():
            assert value.tobytes() == part(model, owned)[name].tobytes(), name


def test_training_that_is_asked_to_stop_leaves_a_checkpoint_of_where_it_stood(cases, tmp_path):
    binding = Binding(contract="c", round=1, base_version=0, received="r", local="l", cases="k", seed=7)
    checkpoints = Checkpoints(tmp_path / "training", 3600.0, Infirmary(tmp_path, print))
    steps = []
    hooks = Hooks(on_step=lambda step, *_: steps.append(step), should_stop=lambda: len(steps) == 4)
    with pytest.raises(local.Stopped):
        train(cases, hooks=lambda model: hooks, keeper=checkpoints.keeper(binding))
    held = checkpoints.keeper(binding).newest()
    assert held is not None
    assert (held.step, len(held.losses)) == (4, 1)


def test_asked_to_stop_before_its_first_step_there_is_nothing_to_keep(cases, tmp_path):
    binding = Binding(contract="c", round=1, base_version=0, received="r", local="l", cases="k", seed=7)
    checkpoints = Checkpoints(tmp_path / "training", 0.0, Infirmary(tmp_path, print))
    with pytest.raises(local.Stopped):
        train(cases, hooks=lambda model: Hooks(should_stop=lambda: True), keeper=checkpoints.keeper(binding))
    assert checkpoints.paths() == []

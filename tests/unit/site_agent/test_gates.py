"""Gates: a factor for each part of each layer, 1 at the start, trained only where a recipe says so, and the site's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from shared.recipe import Recipe
from site_agent.models import adapter_tensors, lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.lora import DualLoRALinear
from site_agent.training.local import Hooks
from tests.support import tiny_site

RECIPE = Recipe(rank_local=2, augmentation="none", local_epochs=1, batch_size=4, gate=True)
OWNED = Ownership("global+local-bias")


def hand_worked(glob: float, loc: float) -> DualLoRALinear:
    """y = W x + b + g 2 B_g A_g x + l 3 B_l A_l x with rank 1 each, in two dimensions."""
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    linear.bias.data = torch.tensor([0.5, -0.5])
    layer = DualLoRALinear(linear, {"global": 2.0, "local": 3.0}, {"global": 1, "local": 1}, gated=True)
    for name, down, up in (("global", [[1.0, 0.0]], [[1.0], [2.0]]), ("local", [[0.0, 1.0]], [[-1.0], [1.0]])):
        layer.lora_A[name].data = torch.tensor(down)
        layer.lora_B[name].data = torch.tensor(up)
    for name, value in (("global", glob), ("local", loc)):
        layer.lora_gate[name].data.fill_(value)
    return layer


@pytest.mark.parametrize(
    ("glob", "loc", "expected"),
    [
        # x = (1, 1): W x + b = (3.5, 6.5); 2 B_g A_g x = (2, 4); 3 B_l A_l x = (-3, 3).
        (1.0, 1.0, [2.5, 13.5]),
        (0.5, 1.0, [1.5, 11.5]),
        (1.0, -2.0, [11.5, 4.5]),
        (0.0, 0.0, [3.5, 6.5]),
    ],
)
def test_a_gate_scales_the_product_of_its_part_alone(glob, loc, expected):
    layer = hand_worked(glob=glob, loc=loc)
    x = torch.ones(1, 2)
    assert layer(x)[0].tolist() == expected
    layer.merge()
    assert layer(x)[0].tolist() == expected


def test_the_gradient_of_a_gate_is_what_its_part_adds():
    """d sum(y) / d g = sum(2 B_g A_g x) = 2 + 4, d sum(y) / d l = sum(3 B_l A_l x) = -3 + 3, wherever the gates stand."""
    layer = hand_worked(glob=0.5, loc=7.0)
    layer(torch.ones(1, 2)).sum().backward()
    assert [float(layer.lora_gate[part].grad) for part in ("global", "local")] == [6.0, 0.0]


def test_gates_start_at_one_and_change_no_bit_there():
    gated, plain = tiny_site.classifier(recipe=RECIPE), tiny_site.classifier(recipe=replace(RECIPE, gate=False))
    gates = [gate for layer in lora.adapted_layers(gated).values() for gate in layer.lora_gate.values()]
    assert len(gates) == 2 * len(lora.adapted_layers(gated))
    assert {gate.item() for gate in gates} == {1.0}
    assert not any(layer.lora_gate for layer in lora.adapted_layers(plain).values())
    image = torch.rand(2, 2, *tiny_site.SIZE, generator=torch.Generator().manual_seed(2))
    assert torch.equal(gated(image), plain(image))


def test_a_part_that_is_not_there_has_no_gate():
    model = tiny_site.classifier(recipe=replace(RECIPE, rank_local=0))
    assert {tuple(layer.lora_gate) for layer in lora.adapted_layers(model).values()} == {("global",)}


def test_gates_are_private_and_go_from_model_to_model_with_what_is():
    source, target = (tiny_site.classifier(recipe=RECIPE, seed=seed) for seed in (1, 2))
    layers = lora.adapted_layers(source)
    with torch.no_grad():
        for number, layer in enumerate(layers.values()):
            layer.lora_gate["global"].fill_(0.25 + number)
    shared, private = (of(source, OWNED) for of in (adapter_tensors.global_tensors, adapter_tensors.local_tensors))
    assert not any("gate" in name for name in shared)
    assert {name for name in private if "gate" in name} == {
        f"local.{path}.lora_gate.{part}" for path in layers for part in ("global", "local")
    }
    adapter_tensors.load_local(target, OWNED, private)
    found = [layer.lora_gate["global"].item() for layer in lora.adapted_layers(target).values()]
    assert found == [0.25 + number for number in range(len(layers))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    backbone = tiny_site.write_backbone(tmp_path_factory.mktemp("backbone"))

    def make(recipe):
        contract, initial = tiny_site.contract(backbone, recipe)
        return tiny_site.trainer(tmp_path_factory.mktemp("site"), backbone, contract), initial

    return make


def gates_of(tensors):
    return {name: float(value.item()) for name, value in tensors.items() if ".lora_gate." in name}


def test_they_are_trained_where_the_recipe_says_so_and_stay_at_home(site):
    trainer, initial = site(RECIPE)
    groups = []
    hooks = Hooks(on_step=lambda step, steps, optimiser: groups.append([g["name"] for g in optimiser.param_groups]))
    first = trainer.train(1, initial, trainer.initial_local(), hooks)
    assert groups[0] == ["global", "local", "gates", "head_shared", "head_private"]
    assert set(gates_of(trainer.initial_local()).values()) == {1.0}
    moved = gates_of(first.local_tensors)
    assert all(value != 1.0 for name, value in moved.items() if name.endswith("local")), moved
    assert len(set(moved.values())) > 2  # each layer has its own
    assert first.global_tensors.keys() == initial.tensors.keys()


def test_the_next_round_begins_with_them(site):
    trainer, initial = site(RECIPE)
    first = trainer.train(1, initial, trainer.initial_local(), Hooks())
    resting, _ = site(replace(RECIPE, lr_local=0.0))
    second = resting.train(2, initial, first.local_tensors, Hooks())
    assert gates_of(second.local_tensors) == gates_of(first.local_tensors)


def test_without_the_recipes_word_nothing_trains_them(site):
    """FDLoRA's are there to be fitted after the steps."""
    trainer, initial = site(Recipe(name="fdlora", rank_local=2, augmentation="none", local_epochs=1, batch_size=4))
    seen = []

    def look(step, steps, optimiser):
        kept = {id(p) for group in optimiser.param_groups for p in group["params"]}
        gates = [gate for layer in lora.adapted_layers(trainer.model).values() for gate in layer.lora_gate.values()]
        seen.append((any(id(gate) in kept for gate in gates), {gate.item() for gate in gates}))

    trainer.train(1, initial, trainer.initial_local(), Hooks(on_step=look))
    assert seen == [(False, {1.0})] * len(seen)


def test_a_gate_of_the_global_part_moves_nothing_in_what_is_sent_but_through_training(site):
    """With all rates 0 a site sends what it received, whatever its gates."""
    trainer, initial = site(replace(RECIPE, lr_global=0.0, lr_local=0.0, lr_head=0.0))
    private = trainer.initial_local()
    private |= {name: np.full_like(value, 0.3) for name, value in private.items() if ".lora_gate." in name}
    trained = trainer.train(1, initial, private, Hooks())
    assert all(np.array_equal(value, initial.tensors[name]) for name, value in trained.global_tensors.items())

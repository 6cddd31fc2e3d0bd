"""Penalties against the dense out x in matrices that they never form, and their gradients against closed forms."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from shared.methods import GLOBAL_ALONE, JOINT, LOCAL_ALONE, LOCAL_BESIDE_GLOBAL, PERSONAL
from shared.recipe import Recipe
from site_agent.models import adapter_tensors, lora
from site_agent.models.lora import DualLoRALinear
from site_agent.training import penalties
from site_agent.training.penalties import Penalties
from tests.support import tiny_site

PARTS = ("global", "local")
IN, OUT, RANKS, SCALES = 7, 5, {"global": 2, "local": 3}, {"global": 2.0, "local": 0.5}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TRAINING = Recipe(rank_local=2, augmentation="none", local_epochs=2, batch_size=4, lr_local=2e-2)


def random_layer(seed: int, gated: bool = False, ranks=RANKS) -> DualLoRALinear:
    generator = torch.Generator().manual_seed(seed)
    layer = DualLoRALinear(nn.Linear(IN, OUT), SCALES, ranks, gated=gated)
    for part in PARTS:
        nn.init.normal_(layer.lora_A[part], generator=generator)
        nn.init.normal_(layer.lora_B[part], generator=generator)
        if gated:
            nn.init.uniform_(layer.lora_gate[part], 0.3, 2.0, generator=generator)
    return layer


def dense(layer: DualLoRALinear, part: str) -> torch.Tensor:
    """s g B A, out x in."""
    product = layer.scales[part] * layer.lora_B[part] @ layer.lora_A[part]
    return product * layer.lora_gate[part] if part in layer.lora_gate else product


def dense_overlap(layer: DualLoRALinear) -> torch.Tensor:
    first, second = (dense(layer, part) for part in PARTS)
    return (first.T @ second).square().sum() / (first.square().sum() * second.square().sum())


FORMULAS = {
    "inner": (
        lambda layer: penalties.inner(layer, *PARTS),
        lambda layer: (dense(layer, "global") * dense(layer, "local")).sum(),
    ),
    "norm": (lambda layer: penalties.squared_norm(layer, "local"), lambda layer: dense(layer, "local").square().sum()),
    "overlap": (penalties.overlap, dense_overlap),
}


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients_are_those_of_the_dense_matrices(name, seed, gated):
    small, large = FORMULAS[name]
    found, expected = random_layer(seed, gated), random_layer(seed, gated)
    values = small(found), large(expected)
    torch.testing.assert_close(*values, **CLOSE)
    for value in values:
        value.backward()
    other = dict(expected.named_parameters())
    for parameter, value in found.named_parameters():
        if ".lora_" in f".{parameter}":
            wanted = other[parameter].grad
            if value.grad is None:
                assert wanted is None, parameter
            else:
                torch.testing.assert_close(value.grad, wanted, atol=1e-4, rtol=1e-5, msg=parameter)


# --- overlap ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_overlap_is_between_nothing_and_all(seed):
    assert 0 < float(penalties.overlap(random_layer(seed).requires_grad_(False))) < 1


@pytest.mark.parametrize("part", PARTS)
def test_overlap_is_of_the_product_and_not_of_its_factors(part):
    """B Q and Q^-1 A have the same product, for any invertible Q."""
    layer = random_layer(3).requires_grad_(False)
    before = float(penalties.overlap(layer))
    rank = RANKS[part]
    turn = torch.eye(rank) + 0.5 * torch.rand(rank, rank, generator=torch.Generator().manual_seed(8))
    layer.lora_B[part].data = layer.lora_B[part] @ turn
    layer.lora_A[part].data = torch.linalg.solve(turn, layer.lora_A[part])
    assert float(penalties.overlap(layer)) == pytest.approx(before, abs=1e-5)


def test_overlap_of_two_parts_of_the_same_rank_one_direction_is_one():
    layer = random_layer(4, ranks={"global": 1, "local": 1})
    with torch.no_grad():
        layer.lora_A["local"].copy_(-3 * layer.lora_A["global"])
        layer.lora_B["local"].copy_(0.2 * layer.lora_B["global"])
    assert float(penalties.overlap(layer).detach()) == pytest.approx(1.0, abs=1e-5)


def test_overlap_of_parts_with_orthogonal_columns_is_nothing():
    """Columns of B_g among the first rows, of B_l among the others: dW_g^T dW_l = 0, whatever the A."""
    layer = random_layer(5)
    with torch.no_grad():
        layer.lora_B["global"][2:] = 0
        layer.lora_B["local"][:2] = 0
    assert float(penalties.overlap(layer).detach()) == 0.0


@pytest.mark.parametrize("part", PARTS)
def test_a_product_that_is_zero_has_no_overlap_and_no_gradient(part):
    layer = random_layer(6)
    nn.init.zeros_(layer.lora_B[part])
    value = penalties.overlap(layer)
    value.backward()
    assert float(value.detach()) == 0.0
    grads = [v.grad for v in layer.parameters() if v.grad is not None]
    assert grads
    assert all(not grad.any() for grad in grads)


# --- gradients in a model ---------------------------------------------------------------------------------------------


def moved(recipe: Recipe, patients: int = 9, **choices):
    """A model, the terms of a round that begins with it, and then every trainable number elsewhere, with no gradient."""
    model = tiny_site.classifier(recipe=recipe, **choices)
    owned = adapter_tensors.Ownership.of(tiny_site.metadata(recipe, **choices), recipe)
    terms = Penalties.of(model, recipe, owned, patients)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.empty_like(value).uniform_(-0.2, 0.2, generator=generator))
    return model, terms, before


def gradients(model):
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("choices", [{}, {"head_policy": "global"}, {"dense": ("encoder.norm.",)}])
def test_fedprox_draws_what_is_shared_to_where_it_was_received(choices):
    """Gradient mu (w - w_received) of mu/2 || w - w_received ||^2, and none of what is private."""
    mu = 0.25
    model, terms, before = moved(replace(TRAINING, proximal=mu), **choices)
    terms.add_gradient(JOINT)
    found = gradients(model)
    bias = choices.get("head_policy") == "global"
    for name, value in model.named_parameters():
        shared = name.endswith(".global") or (name.startswith("pred_head_dict.") and (bias or name.endswith(".weight")))
        assert (name in found) == (shared or (name.startswith("backbone.encoder.norm.") and "dense" in choices)), name
        if name in found:
            torch.testing.assert_close(found[name], mu * (value.detach() - before[name]), **CLOSE)
    terms.add_gradient(JOINT)
    for name, value in model.named_parameters():
        if name in found:  # added to what is there
            torch.testing.assert_close(value.grad, 2 * mu * (value.detach() - before[name]), **CLOSE)


def test_fedprox_leaves_the_local_parts_steps_alone():
    model, terms, _ = moved(replace(TRAINING, proximal=1.0))
    terms.add_gradient(LOCAL_BESIDE_GLOBAL)
    assert gradients(model) == {}


def assert_decays(model, decay):
    """Gradients decay s^2 B (A A^T) and decay s^2 (B^T B) A, and no others but a gate's; s with the gate."""
    found, layers = gradients(model), lora.adapted_layers(model)
    gates = {f"backbone.{path}.lora_gate.local" for path, layer in layers.items() if layer.lora_gate}
    assert len(found) == 2 * len(layers) + len(gates)
    for path, layer in layers.items():
        a, b, s = layer.lora_A["local"].detach(), layer.lora_B["local"].detach(), layer.scales["local"]
        if layer.lora_gate:
            gate = layer.lora_gate["local"].detach()
            wanted = decay * gate * (s * b @ a).square().sum()
            torch.testing.assert_close(found[f"backbone.{path}.lora_gate.local"], wanted, **CLOSE)
            s = s * gate
        torch.testing.assert_close(found[f"backbone.{path}.lora_B.local"], decay * s**2 * b @ (a @ a.T), **CLOSE)
        torch.testing.assert_close(found[f"backbone.{path}.lora_A.local"], decay * s**2 * (b.T @ b) @ a, **CLOSE)


@pytest.mark.parametrize(
    ("numbers", "patients", "decay"),
    [
        ({"local_decay": 0.5}, 9, 0.5),
        ({"shrinkage_patients": 6.0}, 12, 0.5),
        ({"shrinkage_patients": 6.0}, 24, 0.25),  # twice the patients, half the prior
        ({"local_decay": 0.5, "shrinkage_patients": 6.0}, 12, 1.0),
    ],
)
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("phase", [JOINT, LOCAL_BESIDE_GLOBAL])
def test_the_local_product_is_drawn_to_nothing(numbers, patients, decay, phase, gate):
    model, terms, _ = moved(replace(TRAINING, gate=gate, **numbers), patients)
    terms.add_gradient(phase)
    assert_decays(model, decay)


def test_a_personal_part_is_drawn_to_the_received_global_one_by_its_lambda():
    recipe = replace(TRAINING, name="ditto-lora", ditto_lambda=0.5)
    model, terms, before = moved(recipe)
    terms.add_gradient(GLOBAL_ALONE)
    assert gradients(model) == {}
    terms.add_gradient(PERSONAL)
    found = gradients(model)
    anchors = {name: name.replace(".local", ".global").replace("private_", "pred_") for name in found}
    assert len(anchors) == 2 * len(lora.adapted_layers(model)) + 4
    for name, value in model.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], 0.5 * (value.detach() - before[anchors[name]]), **CLOSE)


def test_parts_are_held_apart_only_in_steps_in_which_both_count():
    model, terms, _ = moved(replace(TRAINING, orthogonality=2.0))
    for phase in (GLOBAL_ALONE, LOCAL_ALONE):
        terms.add_gradient(phase)
        assert gradients(model) == {}
    terms.add_gradient(JOINT)
    found = gradients(model)
    other, *_ = moved(replace(TRAINING, orthogonality=2.0))
    layers = lora.adapted_layers(other).values()
    (2.0 * torch.stack([dense_overlap(layer) for layer in layers]).mean()).backward()
    expected = gradients(other)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)

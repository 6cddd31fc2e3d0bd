"""Penalties and bounds in whole rounds: the cap holds after every step, and what is at zero leaves every bit as it was."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from shared.methods import GLOBAL_ALONE, JOINT, LOCAL_ALONE, LOCAL_BESIDE_GLOBAL
from shared.recipe import Recipe
from site_agent.models import lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.training import local
from site_agent.training.local import Hooks, Position
from site_agent.training.penalties import Penalties
from tests.support import tiny_site

TRAINING = Recipe(rank_local=2, augmentation="none", local_epochs=2, batch_size=4, lr_local=2e-2)
OWNED = Ownership("global+local-bias")


def local_product(layer):
    """s g B A of the local part, out x in."""
    product = layer.scales["local"] * (layer.lora_B["local"] @ layer.lora_A["local"]).detach()
    return product * layer.lora_gate["local"].detach() if "local" in layer.lora_gate else product


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny_site.write_cases(tmp_path_factory.mktemp("cases"), 10)


def trained(cases, recipe, hooks=None):
    model = tiny_site.classifier(recipe=recipe)
    watched = hooks(model) if hooks else Hooks()
    local.train_round(model, tiny_site.activations(model), cases, recipe, OWNED, Position(1, 4, 7), hooks=watched)
    return model


@pytest.mark.parametrize("gate", [False, True])
def test_no_local_product_is_above_its_cap_after_any_step(cases, gate):
    cap, shares = 0.05, []

    def watch(model):
        def look(step, steps, optimiser):
            for layer in lora.adapted_layers(model).values():
                shares.append(float(local_product(layer).norm() / layer.weight.norm()))

        return Hooks(on_step=look)

    trained(cases, replace(TRAINING, local_norm_cap=cap, gate=gate), watch)
    assert max(shares) <= cap * (1 + 1e-5)
    assert sum(share > cap * (1 - 1e-5) for share in shares) > len(shares) / 4  # it is not by chance


def test_what_is_above_the_cap_is_scaled_and_what_is_below_keeps_every_bit():
    layers = list(lora.adapted_layers(tiny_site.classifier(recipe=TRAINING)).values())
    with torch.no_grad():
        layers[0].lora_B["local"].mul_(50)
        layers[1].lora_B["local"].mul_(1e-3)
    before = [(layer.lora_A["local"].clone(), layer.lora_B["local"].clone()) for layer in layers]
    cap = 0.1
    Penalties(replace(TRAINING, local_norm_cap=cap), layers, (), (), 9).keep_bounds()
    for layer, (a, b) in zip(layers, before, strict=True):
        assert torch.equal(layer.lora_A["local"], a)
        most = cap * float(layer.weight.detach().norm())
        norm = float((layer.scales["local"] * b @ a).detach().norm())
        torch.testing.assert_close(layer.lora_B["local"].detach(), b * min(1.0, most / norm), rtol=1e-5, atol=1e-7)
    assert torch.equal(layers[1].lora_B["local"], before[1][1])


# --- off --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [JOINT, LOCAL_BESIDE_GLOBAL, GLOBAL_ALONE, LOCAL_ALONE])
def test_at_zero_no_term_adds_to_a_gradient_and_no_bound_touches_a_number(phase):
    model = tiny_site.classifier(recipe=TRAINING)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    terms = Penalties.of(model, TRAINING, OWNED, 9)
    assert terms.received == terms.anchored == []
    terms.add_gradient(phase)
    terms.keep_bounds()
    for name, value in model.named_parameters():
        assert value.grad is None
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("number", ["proximal", "orthogonality", "local_decay", "shrinkage_patients", "local_norm_cap"])
def test_a_term_tends_to_nothing_with_its_number_and_is_gone_at_zero(cases, number):
    """At 0 a round's bytes are the plain recipe's; at 1e-12 (a cap: 1e12) the numbers are, but for rounding; at 1 they are not."""
    numbers = (0.0, 1e12, 1e-3) if number == "local_norm_cap" else (0.0, 1e-12, 1.0)
    runs = [trained(cases, TRAINING), *(trained(cases, replace(TRAINING, **{number: value})) for value in numbers)]
    plain, off, hardly, much = ([v.detach().numpy() for v in run.parameters() if v.requires_grad] for run in runs)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(plain, off, strict=True))
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(plain, hardly, strict=True))
    assert any(not np.allclose(a, b, atol=1e-3) for a, b in zip(plain, much, strict=True))


@pytest.mark.parametrize("number", ["local_decay", "shrinkage_patients"])
def test_the_more_it_weighs_the_smaller_the_local_part_ends(cases, number):
    norms = []
    for value in (0.0, 1.0, 30.0):
        model = trained(cases, replace(TRAINING, **{number: value}))
        norms.append(sum(float(local_product(layer).norm()) for layer in lora.adapted_layers(model).values()))
    assert all(larger > smaller for larger, smaller in pairwise(norms)), norms

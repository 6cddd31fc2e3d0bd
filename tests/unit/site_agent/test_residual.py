"""The residual beside the global part: in the formula and in every version, never trained, never sent by a site."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from shared.methods import GLOBAL, LOCAL, PARTS
from shared.recipe import Recipe, is_residual
from site_agent import egress
from site_agent.egress import UpdateFacts
from site_agent.models import adapter_tensors, lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.lora import DualLoRALinear
from site_agent.training.local import Hooks
from tests.support import tiny_site

RECIPE = Recipe(name="fedex-lora", rank_local=2, augmentation="none", local_epochs=1, batch_size=8)
OWNED = Ownership("global+local-bias")


def hand_worked() -> DualLoRALinear:
    """y = W x + b + 2 B_g A_g x + 2 B_r A_r x + 3 B_l A_l x, a residual of rank 2 beside parts of rank 1, in two dimensions."""
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    linear.bias.data = torch.tensor([0.5, -0.5])
    layer = DualLoRALinear(
        linear, {"global": 2.0, "local": 3.0, "residual": 2.0}, {"global": 1, "local": 1, "residual": 2}
    )
    for name, down, up in (
        ("global", [[1.0, 0.0]], [[1.0], [2.0]]),
        ("local", [[0.0, 1.0]], [[-1.0], [1.0]]),
        ("residual", [[1.0, 1.0], [0.0, -1.0]], [[1.0, 0.0], [0.0, 4.0]]),
    ):
        layer.lora_A[name].data = torch.tensor(down)
        layer.lora_B[name].data = torch.tensor(up)
    return layer


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # x = (1, 1): W x + b = (3.5, 6.5); global (2, 4); local (-3, 3); residual 2 (1 * 2, 4 * -1) = (4, -8).
        (("global", "local"), [6.5, 5.5]),
        (("global",), [9.5, 2.5]),
        (("local",), [0.5, 9.5]),
        ((), [3.5, 6.5]),
    ],
)
def test_the_formula_by_hand_the_residual_goes_with_the_global_part(parts, expected):
    layer = hand_worked()
    layer.switch(parts)
    x = torch.ones(1, 2)
    assert layer(x)[0].tolist() == expected
    layer.merge()
    assert layer(x)[0].tolist() == expected


def test_it_never_gets_a_gradient():
    layer = hand_worked()
    layer(torch.ones(1, 2)).sum().backward()
    assert layer.lora_A["global"].grad is not None
    assert layer.lora_A["residual"].grad is layer.lora_B["residual"].grad is None
    model = tiny_site.classifier(recipe=RECIPE)
    with adapter_tensors.only_trained(model, {"A", "B"}):
        pass
    trained = adapter_tensors.parameters(model, OWNED)
    residual = {id(value) for name, value in model.named_parameters() if name.endswith(".residual")}
    assert len(residual) == 2 * len(lora.adapted_layers(model))
    assert not any(value.requires_grad for value in model.parameters() if id(value) in residual)
    groups = [getattr(trained, name) for name in trained.__slots__]
    assert not residual & {id(value) for group in groups for value in group}


def test_a_model_is_what_it_would_be_with_the_residual_in_its_base_weights():
    model = tiny_site.classifier(recipe=RECIPE)
    folded = copy.deepcopy(model)
    for layer in lora.adapted_layers(folded).values():
        scale = layer.scales["global"]
        with torch.no_grad():
            layer.weight += scale * layer.lora_B["residual"] @ layer.lora_A["residual"]
            layer.lora_B["residual"].zero_()
    image = torch.rand(2, 2, *tiny_site.SIZE, generator=torch.Generator().manual_seed(2))
    for parts in (PARTS, GLOBAL):
        lora.use(model, parts)
        lora.use(folded, parts)
        torch.testing.assert_close(model(image), folded(image), atol=1e-6, rtol=1e-5)
    lora.use(model, LOCAL)
    assert not torch.allclose(model(image), folded(image), atol=1e-4)


def test_versions_hold_it_and_private_tensors_do_not():
    source = tiny_site.classifier(recipe=RECIPE)
    target = copy.deepcopy(source)
    with torch.no_grad():
        for layer in lora.adapted_layers(target).values():
            layer.lora_B["residual"].zero_()
    version, private = (of(source, OWNED) for of in (adapter_tensors.global_tensors, adapter_tensors.local_tensors))
    held = {name: value.shape for name, value in version.items() if is_residual(name)}
    assert len(held) == 2 * len(lora.adapted_layers(source))
    assert held["base_model.model.encoder.blocks.1.attn.kv.lora_residual_A.weight"] == (12, 12)
    assert held["base_model.model.encoder.blocks.1.attn.kv.lora_residual_B.weight"] == (24, 12)
    assert not any(is_residual(name) for name in private)
    image = torch.rand(2, 2, *tiny_site.SIZE, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(source(image), target(image), atol=1e-4)
    adapter_tensors.load_global(target, OWNED, version)
    assert torch.equal(source(image), target(image))


def test_a_site_trains_beside_the_residual_it_was_sent_and_sends_none_of_it(tmp_path):
    backbone = tiny_site.write_backbone(tmp_path / "base")
    contract, initial = tiny_site.contract(backbone, RECIPE)
    assert all(not value.any() for name, value in initial.tensors.items() if is_residual(name))
    rng = np.random.default_rng(3)
    noisy = {n: rng.normal(0, 0.3, v.shape).astype(np.float32) for n, v in initial.tensors.items() if is_residual(n)}
    received = initial.successor({**initial.tensors, **noisy}, 1)
    trainer = tiny_site.trainer(tmp_path / "site", backbone, contract)
    private = trainer.initial_local()
    plain, beside = (trainer.train(2, version, private, Hooks()) for version in (initial, received))
    assert not any(is_residual(name) for name in (*beside.global_tensors, *beside.local_tensors))
    assert beside.metrics != plain.metrics  # the loss knows of it
    now = adapter_tensors.global_tensors(trainer.model, OWNED)
    assert all(np.array_equal(now[name], value) for name, value in noisy.items())
    facts = UpdateFacts(round=2, base_version=1, training_patients=9, metrics=beside.metrics)
    update, _ = egress.seal(received, beside.global_tensors, RECIPE, facts, 2)
    of_fedit = replace(RECIPE, name="med-duallora").upload_layout(initial.manifest, 2, 2)
    assert [spec.name for spec in update.layout.tensors] == [
        s.name for s in of_fedit.tensors if not is_residual(s.name)
    ]

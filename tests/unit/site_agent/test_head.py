"""Heads by policy: the logits as plain matrix algebra with either part on and off, what travels, what is exported, and arms."""

import copy

import numpy as np
import pytest
import torch

from shared.methods import GLOBAL, LOCAL, PARTS
from shared.recipe import Recipe
from site_agent.models import adapter_tensors, lora
from site_agent.models.adapter_tensors import Ownership
from site_agent.models.head import HEADS
from site_agent.models.lora import HEAD_POLICIES
from site_agent.training import arms
from site_agent.training.arms import Arm
from tests.support import tiny_site

DUAL = Recipe(rank_local=2)
SWITCHED = pytest.mark.parametrize("parts", [PARTS, GLOBAL, LOCAL], ids=["both", "global", "local"])
POLICIES = pytest.mark.parametrize("policy", HEAD_POLICIES)


def filled(policy, seed=0, recipe=DUAL, **choices):
    """A model in which every head tensor, and a gate if there is one, is a random number."""
    model = tiny_site.classifier(recipe=recipe, seed=seed, head_policy=policy, **choices)
    generator = torch.Generator().manual_seed(seed + 5)
    gates = [gate for layer in lora.adapted_layers(model).values() for gate in layer.lora_gate.values()]
    with torch.no_grad():
        for value in (*model.heads().values(), *model.private_heads().values(), *gates):
            value.copy_(torch.randn(value.shape, generator=generator))
    return model


def pooled_of(model, seed=1):
    return torch.randn(3, len(HEADS), model.feature_dim, generator=torch.Generator().manual_seed(seed))


def by_hand(model, pooled, shared, private, bias):
    """The mean over both heads of (W f + b), with the shared and the private layer counted or not, and the shared bias."""
    total = torch.zeros(len(pooled), 2)
    for i, name in enumerate(HEADS):
        weight, offset = (model.heads()[f"pred_head_dict.{name}.{kind}"] for kind in ("weight", "bias"))
        total = total + shared * (pooled[:, i] @ weight.T) + bias * offset
        if private:
            own = model.private_heads()
            total = total + pooled[:, i] @ own[f"pred_head_dict.{name}.weight"].T + own[f"pred_head_dict.{name}.bias"]
    return total / len(HEADS)


@pytest.mark.parametrize(
    ("policy", "parts", "counts"),
    [
        # whether the shared layer, the private one, and the bias of the first count
        *[(policy, parts, (1, 0, 1)) for policy in ("global", "local") for parts in (PARTS, GLOBAL, LOCAL)],
        ("global+local-bias", PARTS, (1, 0, 1)),
        ("global+local-bias", LOCAL, (1, 0, 1)),
        ("global+local-bias", GLOBAL, (1, 0, 0)),
        ("global+local", PARTS, (1, 1, 1)),
        ("global+local", GLOBAL, (1, 0, 1)),
        ("global+local", LOCAL, (0, 1, 0)),
    ],
)
def test_each_part_brings_what_of_the_head_goes_with_it(policy, parts, counts):
    model = filled(policy)
    lora.use(model, parts)
    pooled = pooled_of(model)
    torch.testing.assert_close(model.head(pooled), by_hand(model, pooled, *counts), atol=1e-6, rtol=1e-5)


def test_a_private_head_begins_at_zero_so_that_a_model_begins_as_its_shared_one_says():
    fresh, shared = (tiny_site.classifier(recipe=DUAL, head_policy=p) for p in ("global+local", "global"))
    pooled = pooled_of(fresh)
    assert torch.equal(fresh.head(pooled), shared.head(pooled))
    assert all(torch.equal(a, b) for a, b in zip(fresh.heads().values(), shared.heads().values(), strict=True))


@pytest.mark.parametrize(
    ("policy", "travels", "stays"),
    [
        ("global", {"weight", "bias"}, set()),
        ("local", set(), {"weight", "bias"}),
        ("global+local-bias", {"weight"}, {"bias"}),
        ("global+local", {"weight", "bias"}, {"weight", "bias"}),
    ],
)
def test_what_of_a_head_travels_and_what_stays(policy, travels, stays):
    model, owned = filled(policy), Ownership(policy)
    shared, private = adapter_tensors.global_tensors(model, owned), adapter_tensors.local_tensors(model, owned)
    assert {n for n in shared if "head" in n} == {
        f"base_model.model.pred_head_dict.{h}.{k}" for h in HEADS for k in travels
    }
    assert {n for n in private if "head" in n} == {f"local.pred_head_dict.{h}.{k}" for h in HEADS for k in stays}
    sent = b"".join(value.tobytes() for value in shared.values())
    assert not any(value.tobytes() in sent for value in private.values())


@POLICIES
def test_a_version_and_the_private_tensors_carry_a_head_over_to_another_model(policy):
    source, target, owned = filled(policy, seed=1), filled(policy, seed=2), Ownership(policy)
    pooled = pooled_of(source)
    assert not torch.allclose(source.head(pooled), target.head(pooled))
    adapter_tensors.load_global(target, owned, adapter_tensors.global_tensors(source, owned))
    adapter_tensors.load_local(target, owned, adapter_tensors.local_tensors(source, owned))
    assert torch.equal(source.head(pooled), target.head(pooled))


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extras", [{}, {"gate": True}, {"name": "fedex-lora"}], ids=["plain", "gated", "residual"])
@SWITCHED
@POLICIES
def test_the_exported_adapter_gives_the_models_logits_through_plain_matrices(policy, parts, extras):
    """W0 + B A in place of every adapted weight, W f + b on the features of that network."""
    model = filled(policy, recipe=Recipe(rank_local=2, **extras))
    image = torch.rand(3, 2, *tiny_site.SIZE, generator=torch.Generator().manual_seed(4))
    lora.use(model, parts)
    exported = {name: torch.from_numpy(value) for name, value in adapter_tensors.combined_tensors(model).items()}
    plain = copy.deepcopy(model)
    lora.use(plain, ())
    for path, layer in lora.adapted_layers(plain).items():
        up, down = (exported[f"base_model.model.{path}.lora_{factor}.weight"] for factor in "BA")
        layer.weight.data += up @ down
    with torch.no_grad():
        expected, pooled = model(image), plain.pooled(plain.prefix(image))
    heads = [
        tuple(exported[f"base_model.model.pred_head_dict.{name}.{k}"] for k in ("weight", "bias")) for name in HEADS
    ]
    found = sum(pooled[:, i] @ weight.T + bias for i, (weight, bias) in enumerate(heads)) / len(HEADS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_export_of_a_personal_model_has_its_own_head_alone():
    """Ditto serves the local part: the shared head would be counted in beside the personal one."""
    recipe = Recipe(name="ditto-lora", rank_local=2)
    model = filled("global+local", recipe=recipe)
    exported = adapter_tensors.combined_tensors(model)
    for name, value in model.private_heads().items():
        assert np.array_equal(exported[f"base_model.model.{name}"], value.detach().numpy())
    assert {value.shape[0] for name, value in exported.items() if name.endswith("lora_A.weight")} == {2}


# --- arms -------------------------------------------------------------------------------------------------------------


@POLICIES
def test_the_global_arm_is_the_model_with_its_global_part_alone(policy):
    model, again = filled(policy), filled(policy)
    pooled = pooled_of(model)
    arms.switch_local_off(model)
    lora.use(again, GLOBAL)
    assert torch.equal(model.head(pooled), again.head(pooled))
    assert all(layer.active == ("global",) for layer in lora.adapted_layers(model).values())


@POLICIES
def test_an_arm_brings_private_heads_and_what_counts_of_them_back(policy):
    model = filled(policy)
    pooled = pooled_of(model)
    before, dual = model.head(pooled).detach(), Arm.of(model)
    arms.switch_local_off(model)
    with torch.no_grad():
        for value in (*model.heads().values(), *model.private_heads().values()):
            value.add_(0.3)
    assert not torch.equal(model.head(pooled), before)
    dual.put(model)
    assert torch.equal(model.head(pooled), before)


def test_a_probe_is_fitted_with_all_that_a_site_has_of_a_head(tmp_path):
    model = filled("global+local")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    cases = tiny_site.write_cases(tmp_path, 6)
    lora.use(model, LOCAL)
    arms.fit_probe(model, tiny_site.activations(model), cases, Recipe(rank_local=2, augmentation="none"), 1, 0)
    moved = {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"pred_head_dict", "private_head_dict"}
